"""Weights put aside come back to the bit: tied ones, views, other strides, after a cast, or not at all."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parasample.errors import ConfigError, UnsupportedPipelineError
from parasample.runtime.sharding import ShardedWeights, require_shardable


class Model(nn.Module):
    """Weights in every form that models have them: tied, parts of one memory, transposed, buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        together = torch.randn(2, 4)
        self.upper, self.lower = nn.Parameter(together[0]), nn.Parameter(together[1])
        self.register_buffer("positions", torch.arange(5))
        self.register_buffer("none", None)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return all(torch.equal(after[name], t) and after[name].dtype == t.dtype for name, t in before.items())


def test_everything_comes_back_in_its_own_form() -> None:
    model = Model()
    before, strides = values(model), model.conv.weight.stride()
    weights = ShardedWeights(model)
    assert all(tensor.numel() == 0 for tensor in model.state_dict().values())
    assert {name: t.shape for name, t in weights.on_meta().items()} == {
        name: before[name].shape for name in before if name != "tied.weight"
    }
    weights.restore()
    weights.restore()
    assert same(model, before) and model.conv.weight.stride() == strides
    assert model.tied.weight is model.first.weight
    memory = model.upper.untyped_storage().data_ptr()
    assert model.lower.untyped_storage().data_ptr() == memory, "parts of one memory are so again"


def test_only_what_is_needed_is_kept_and_what_is_tied_to_it() -> None:
    model = Model()
    before = values(model)
    weights = ShardedWeights(model)
    weights.keep({(id(model.tied), "weight"), (id(model), "lower")})
    held = {name for name, tensor in model.state_dict().items() if tensor.numel()}
    assert held == {"first.weight", "tied.weight", "upper", "lower"}
    assert not weights.complete
    weights.restore()
    assert weights.complete and same(model, before)


def test_a_cast_meanwhile_is_a_cast_of_all() -> None:
    model = Model()
    expected = {n: t.half() if t.is_floating_point() else t for n, t in values(model).items()}
    weights = ShardedWeights(model)
    weights.keep({(id(model.other), "weight")})
    model.half()
    weights.restore()
    assert same(model, expected)


def test_what_cannot_be_put_aside_is_refused_untouched() -> None:
    quantized, meta, hooked = Model(), Model().to("meta"), Model()
    quantized.other.weight = Quantized(torch.zeros(4, 4))
    hooked.other._hf_hook = object()  # type: ignore[assignment]
    before = values(hooked)
    with pytest.raises(UnsupportedPipelineError, match="Linear.weight, a Quantized"):
        ShardedWeights(quantized)
    with pytest.raises(UnsupportedPipelineError, match="a meta tensor"):
        require_shardable(meta)
    with pytest.raises(ConfigError, match="other has a hook that moves its weights"):
        ShardedWeights(hooked)
    assert same(hooked, before)


class Quantized(nn.Parameter):
    pass


def test_a_full_disk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    before = values(model)
    write, written = os.pwrite, 0

    def full(*arguments: Any) -> int:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ConfigError, match="No space left on device; free space there, or set TMPDIR"):
        ShardedWeights(model)
    assert same(model, before)
