"""A denoiser whose calls go to the running pipeline call, to be shared between ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from parasample.bridge.denoiser import forward_parameters
from parasample.bridge.depth.cut import Cut
from parasample.bridge.timesteps import has_traced
from parasample.errors import UnsupportedPipelineError
from parasample.plan.schedule import Schedule
from parasample.plan.timetable import Reading
from parasample.runtime.component import ComponentRunner, make_channels
from parasample.runtime.forward import ReplacedForward
from parasample.runtime.sharding import ShardedWeights
from parasample.runtime.templates import Templates
from parasample.runtime.transports.exchange import Exchange
from parasample.runtime.transports.router import Router

if TYPE_CHECKING:
    from parasample.bridge.depth.run import DepthRun


class Site:
    """One of the pipeline's calls to a denoiser in each step: its shapes, its runners and their exchanges."""

    def __init__(self, latents: Tensor, num_blocks: int) -> None:
        self.latents = latents
        self.templates = Templates(num_blocks)
        self.candidates: dict[Reading, list[ComponentRunner]] = {}  # until it is settled what is read
        self.runners: list[ComponentRunner] = []
        self.routers: list[Router] = []
        self.finished = True  # nothing sent is left unread
        self.recorded = ""  # the arguments that the templates were made for without running the denoiser
        self._open: Any = None

    def prepare(self, schedules: Iterable[Schedule], ranks: Sequence[int]) -> None:
        """Runners for the workers of these ranks, by each of the schedules that may turn out to rule."""
        self.candidates = {
            schedule.reading: [
                ComponentRunner(worker, schedule, self.templates)
                for rank in ranks
                for worker in schedule.workers_on(rank)
            ]
            for schedule in schedules
        }
        self.runners = next(iter(self.candidates.values()))

    def settle(self, schedule: Schedule, ranks: Sequence[int], blend: bool) -> None:
        """The schedule that rules from now on."""
        before = [runner for runners in self.candidates.values() for runner in runners]
        if schedule.reading not in self.candidates:
            self.prepare([schedule], ranks)
            for runner in self.runners:
                for other in before:
                    if other.rank == runner.rank:
                        runner.adopt(other)
        self.runners, self.candidates = self.candidates[schedule.reading], {}
        for runner in self.runners:
            runner.blend = blend

    def connect(self, make: Callable[[], list[Exchange]]) -> None:
        """Open channels for the schedule on this site's exchanges, unless they are open and unused.
        Collective.
        """
        schedule = self.runners[0].schedule
        channels, places = make_channels(schedule, self.templates)
        wanted = (channels, schedule.rank_of)
        if channels and self._open != wanted:
            for runner in self.runners:
                runner.release()
            exchanges = [router.exchange for router in self.routers] or make()
            self.routers = [Router(exchange, schedule.rank_of) for exchange in exchanges]
            for router in self.routers:
                router.open(channels)
            self._open = wanted
        at = {router.exchange.rank: router for router in self.routers}
        for runner in self.runners if channels else ():
            runner.connect(at[runner.rank].endpoint(runner.worker), places)

    @property
    def bytes_sent(self) -> int:
        """Bytes that this process has sent so far."""
        return sum(router.exchange.bytes_sent for router in self.routers)

    def disconnect(self, failed: bool) -> None:
        """Close the exchanges; after a failure of this rank the others learn of it."""
        for router in self.routers:
            if failed:
                router.abort()
            router.close()
        self.routers, self._open = [], None


class DepthDenoiser:
    """Replaces `module.forward` until `remove()`; keeps the cut and the connections from call to call."""

    def __init__(self, name: str, module: nn.Module, current_run: Callable[[], DepthRun | None]) -> None:
        self.name = name
        self.module = module
        self.parameters = forward_parameters(module)
        self.latents_name = self.parameters[0]
        self.cut: Cut | None = None
        self.weights: ShardedWeights | None = None
        self.whole = False  # gives no latents (a ControlNet): every rank runs all of it
        self.sites: list[Site] = []
        self.ordinal = 0
        self._current_run = current_run
        self._aside = False
        self._replaced = ReplacedForward(module, self._call)
        self.forward = self._replaced.original

    def put_weights_aside(self) -> None:
        """From now on this rank holds only what its own blocks need; see `ShardedWeights`."""
        self.weights = ShardedWeights(self.module)

    def remove(self) -> None:
        """Put the module's own forward, its blocks' and its weights back."""
        self.disconnect(failed=False)
        if self.cut is not None:
            self.cut.remove()
        self._replaced.remove()
        if self.weights is not None:
            self.weights.restore()

    @property
    def changed(self) -> bool:
        """Whether its modules are not those any more that were cut."""
        return self.cut is not None and self.cut.blocks.changed

    def forget(self) -> None:
        """Cut the denoiser anew in the next call."""
        self.disconnect(failed=False)
        if self.cut is not None:
            self.cut.remove()
        self.cut, self.sites = None, []

    def disconnect(self, failed: bool) -> None:
        """Close all connections; the next call makes new ones."""
        for site in self.sites:
            site.disconnect(failed)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within, calls of the module are its own."""
        self._aside = True
        try:
            yield
        finally:
            self._aside = False

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        run = None if self._aside else self._current_run()
        call = dict(zip(self.parameters, args, strict=False)) | kwargs
        if run is None or not run.active or (run.traced and not has_traced(call)):
            if self.weights is not None and not self.weights.complete and not self._aside:
                raise UnsupportedPipelineError(
                    f"{self.name} is called outside of the sampling loop, where shard_weights=True leaves no "
                    "rank with all of its weights; pass shard_weights=False, or call handle.restore() first"
                )
            return self.forward(*args, **kwargs)  # not a call of the loop
        try:
            return run.call(self, call)
        except BaseException:
            run.fail()
            raise


def gives_latents(output: Any, latents: Tensor) -> bool:
    """Whether a module's output is shaped as the latents it was given are, but for the number of channels."""
    first = next((leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)), None)
    if first is None or first.ndim != latents.ndim or first.shape[0] != latents.shape[0]:
        return False
    differing = sum(a != b for a, b in zip(first.shape[1:], latents.shape[1:], strict=True))
    return differing <= 1 and not torch.is_complex(first)
