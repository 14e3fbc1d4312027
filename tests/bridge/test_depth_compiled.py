"""Denoisers whose blocks the user has compiled: these run compiled in depth, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_pipelines import run, stable_diffusion

import parasample as ps
from parasample.bridge.depth import AsyncHandle

SPLIT = {"down_blocks": 0, "mid_block": 0, "up_blocks": 1}
CONFIG = ps.Async(2, split=SPLIT, extrapolate=None)


class Backend:
    """Compiles to what it was given, and counts the graphs it compiled and ran."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.compiled += 1

        def ran(*args: Any) -> Any:
            self.ran += 1
            return graph.forward(*args)

        return ran


def in_place(unet: Any, backend: Backend) -> int:
    """Blocks that would be expanded otherwise."""
    blocks = [*unet.down_blocks, *unet.up_blocks]
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)


def replaced(unet: Any, backend: Backend) -> int:
    for blocks in (unet.down_blocks, unet.up_blocks):
        for index, block in enumerate(blocks):
            blocks[index] = torch.compile(block, backend=backend)
    return len(unet.down_blocks) + len(unet.up_blocks)


def inside(unet: Any, backend: Backend) -> int:
    unet.mid_block.resnets[0].compile(backend=backend)
    return 1


def repeated(unet: Any, backend: Backend) -> int:
    unet.compile_repeated_blocks(backend=backend, dynamic=False)
    compiled = [module for module in unet.modules() if module._compiled_call_impl is not None]
    return len(compiled)


@pytest.mark.parametrize("compile_blocks", [in_place, replaced, inside, repeated])
def test_compiled_blocks_run_compiled(compile_blocks: Callable[[Any, Backend], int]) -> None:
    torch._dynamo.reset()  # past its limit of recompilations, which other tests use up, it compiles no more
    torch.manual_seed(0)
    pipe, call = stable_diffusion()
    eager = run(pipe, call)
    with AsyncHandle(pipe, CONFIG, emulated=True):
        uncompiled = run(pipe, call)
    backend = Backend()
    count = compile_blocks(pipe.unet, backend)
    before = {name: module._compiled_call_impl for name, module in pipe.unet.named_modules()}
    with AsyncHandle(pipe, CONFIG, emulated=True):
        found = run(pipe, call)
        known, ran = backend.compiled, backend.ran
        assert torch.equal(run(pipe, call), found)
    assert torch.equal(found, uncompiled)
    assert backend.compiled == known, "nothing is compiled again for a second call"
    # All six steps but the last, in which nobody reads any more what the first component makes.
    assert backend.ran - ran >= count * 5
    assert not torch.equal(found, eager)
    assert {name: module._compiled_call_impl for name, module in pipe.unet.named_modules()} == before
    with AsyncHandle(pipe, ps.Async(2, split=SPLIT, warm_up=100), emulated=True):
        assert torch.equal(run(pipe, call), eager)
    assert torch.equal(run(pipe, call), eager)


def in_place_whole(pipe: Any) -> None:
    pipe.unet.compile(backend="eager")


def replaced_whole(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


@pytest.mark.parametrize("compile_whole", [in_place_whole, replaced_whole])
def test_a_denoiser_compiled_as_a_whole_is_refused(compile_whole: Callable[[Any], None]) -> None:
    pipe, call = stable_diffusion()
    with AsyncHandle(pipe, CONFIG, emulated=True):
        compile_whole(pipe)
        with pytest.raises(ps.ConfigError, match="unet is compiled as a whole.*compile_repeated_blocks"):
            run(pipe, call)
    with pytest.raises(ps.ConfigError, match="unet is compiled as a whole"):
        AsyncHandle(pipe, CONFIG, emulated=True)
