"""The handle of a pipeline that is parallelized in depth."""

from __future__ import annotations

from typing import Any

from torch import nn

from parasample.bridge.depth.agreement import text_bits
from parasample.bridge.depth.denoiser import DepthDenoiser
from parasample.bridge.depth.run import DepthRun
from parasample.bridge.handle import Handle
from parasample.config import Async
from parasample.errors import ConfigError
from parasample.plan.schedule import Schedule
from parasample.runtime.forward import compiled
from parasample.runtime.sharding import require_shardable


class AsyncHandle(Handle):
    """A pipeline parallelized in depth.

    Args:
        pipe, config: as given to `parallelize`.
        emulated: play all ranks in this process, one after the other: the same numbers, without the speed.
    """

    def __init__(self, pipe: Any, config: Async, emulated: bool = False) -> None:
        self.config = config
        self.emulated = emulated
        super().__init__(pipe)
        if config.shard_weights:
            try:
                for denoiser in self._denoisers:
                    denoiser.put_weights_aside()  # type: ignore[attr-defined]
            except BaseException:
                self.restore()
                raise

    @property
    def schedules(self) -> list[Schedule]:
        """Of the last call of the pipeline: who did what, for each of its calls of a denoiser in a step."""
        return self._run.schedules if isinstance(self._run, DepthRun) else []

    def _check(self, modules: dict[str, nn.Module]) -> None:
        self._ranks.require_same("the method", text_bits(repr(self.config)))
        expected, found = self.config.num_ranks, self._ranks.size
        if self.emulated and found != 1:
            raise ConfigError(f"emulated=True plays all ranks in one process, found {found}; start one")
        if not self.emulated and found != expected:
            raise ConfigError(
                f"components={self.config.components} with stride={self.config.stride} takes {expected} "
                f"ranks, "
                f"found {found}; run `torchrun --nproc-per-node {expected}`, or choose components and "
                f"stride such "
                f"that components + stride - 1 is {found}"
            )
        if self.emulated and self.config.shard_weights:
            raise ConfigError(
                "emulated=True plays all ranks in one process, which needs all weights; pass "
                "shard_weights=False"
            )
        for name, module in modules.items():
            if self.config.shard_weights:
                require_shardable(module)
            _refuse_compiled(name, module)

    def _wrap(self, name: str, module: nn.Module) -> DepthDenoiser:
        return DepthDenoiser(name, module, self._current_run)  # type: ignore[arg-type]

    def _new_run(self, scheduler: Any) -> DepthRun:
        for name in self._modules:
            _refuse_compiled(name, getattr(self.pipe, name))
        return DepthRun(scheduler, self.config, self._denoisers, self._ranks, self.emulated)  # type: ignore[arg-type]


def _refuse_compiled(name: str, denoiser: nn.Module) -> None:
    if compiled(denoiser):
        raise ConfigError(
            f"{name} is compiled as a whole, so that its blocks cannot be told apart; compile its blocks "
            f"instead, before parallelize: pipe.{name}.compile_repeated_blocks()"
        )
