"""One call of a pipeline that is parallelized in depth, from `set_timesteps` to its last step."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from parasample.bridge.depth.agreement import on_every_rank, require_same_call
from parasample.bridge.depth.arguments import at_step, plain, structure, with_states
from parasample.bridge.depth.cut import Cut
from parasample.bridge.depth.denoiser import DepthDenoiser, Site, gives_latents
from parasample.bridge.depth.reading import choose_reading, draws_noise, expected_reading, read_for
from parasample.bridge.scheduler_wrap import StepCall
from parasample.bridge.solver import copied, generator_states
from parasample.bridge.timesteps import TracedTimestep
from parasample.config import Async
from parasample.errors import ConfigError, UnsupportedPipelineError
from parasample.plan.schedule import Schedule
from parasample.plan.timetable import READINGS, Reading
from parasample.runtime.component import ComponentRunner
from parasample.runtime.prediction import LatentPredictor
from parasample.runtime.sharding import ShardedWeights, needed_places
from parasample.runtime.stats import RoundRecord, Stats
from parasample.runtime.transports import Ranks
from parasample.runtime.transports.choose import make_exchange
from parasample.runtime.transports.exchange import Exchange
from parasample.runtime.transports.mailbox import Mailboxes


class DepthRun:
    """The loop's side of the runners.

    The pipeline makes every iteration as ever. In the first step every rank runs the whole denoiser; then
    what is read of whom is settled and the connections are made; from the second step on the schedule rules.
    With sharded weights it rules from the first step on. Where the pipeline goes over to another denoiser on
    the way (one for much noise, one for little), the rest of the steps is shared as a run of its own.
    """

    def __init__(
        self, scheduler: Any, config: Async, denoisers: list[DepthDenoiser], ranks: Ranks, emulated: bool
    ) -> None:
        self.scheduler = scheduler  # an unwrapped copy, as set_timesteps left it
        self.config = config
        self.ranks = ranks
        self.active = True
        self.traced = False
        self.row = 0  # the step, counted from where the denoiser was last changed for another
        self._before = 0  # steps before that
        self.timesteps: Tensor = scheduler.timesteps
        self.first_index = 0
        self.stats = Stats()
        self._denoisers = denoisers
        self._local = list(range(config.num_ranks)) if emulated else [ranks.rank]
        self._emulated = emulated
        self._predictor: LatentPredictor | None = None
        self._sites: list[tuple[DepthDenoiser, Site]] = []
        self._began_at = self._step_began_at = time.perf_counter()
        for denoiser in denoisers:
            denoiser.ordinal = 0  # the call before may have ended on the way
        self._bytes_before = 0

    @property
    def schedules(self) -> list[Schedule]:
        """Of each of the pipeline's calls of a denoiser in a step."""
        return [site.runners[0].schedule for _, site in self._sites]

    # ------------------------------------------------------------------ the denoiser's side

    def call(self, denoiser: DepthDenoiser, call: dict[str, Any]) -> Any:
        """One call of a denoiser by the pipeline's loop."""
        if self.row > 0 and not denoiser.whole and all(owner is not denoiser for owner, _ in self._sites):
            self._change_denoiser(denoiser)
        if self.row == 0:
            return self._first_step(denoiser, call)
        arguments = plain(call)
        if denoiser.whole:
            return denoiser.forward(**arguments)
        if denoiser.ordinal >= len(denoiser.sites):
            raise UnsupportedPipelineError(
                f"{denoiser.name}: step {self.row} calls it more often than the first step did; sample "
                f"sequentially"
            )
        site = denoiser.sites[denoiser.ordinal]
        denoiser.ordinal += 1
        latents = call[denoiser.latents_name]
        if latents.shape != site.latents.shape:
            raise UnsupportedPipelineError(
                f"{denoiser.name}: step {self.row} has latents of shape {tuple(latents.shape)}, the first "
                f"step had {tuple(site.latents.shape)}; guidance that is switched on or off on the way "
                "changes them: keep it, or sample sequentially"
            )
        return self._shared_step(denoiser, site, call)

    def _shared_step(self, denoiser: DepthDenoiser, site: Site, call: dict[str, Any]) -> Any:
        """The forwards of this process's workers, and the denoiser's output, whoever made it."""
        assert denoiser.cut is not None
        at_work = {runner.worker: runner for runner in site.runners}
        for workers in site.runners[0].schedule.forwards(list(at_work), self.row):
            runners = [at_work[worker] for worker in workers]
            given = self._arguments(denoiser, call, runners[0])
            denoiser.cut.blocks.run(runners, self.row, partial(denoiser.forward, **given))
            for runner in runners:
                runner.send_output()
        outputs = [runner.take_output(self.row) for runner in site.runners]
        return next(output for output in outputs if output is not None)

    def _change_denoiser(self, denoiser: DepthDenoiser) -> None:
        """The pipeline goes on with a denoiser that it did not call so far: its steps start from here."""
        if any(other.ordinal for other in self._denoisers):
            raise UnsupportedPipelineError(
                f"step {self._before + self.row} calls {denoiser.name}, which earlier steps did not, beside "
                "another denoiser; sample this pipeline sequentially"
            )
        for _, site in self._sites:  # never finished: their last messages are left unread
            for runner in site.runners:
                runner.settle()
        self._sites, self._bytes_before = [], 0
        self.timesteps = self.timesteps[self.row :]
        self._before, self.row = self._before + self.row, 0

    def _first_step(self, denoiser: DepthDenoiser, call: dict[str, Any]) -> Any:
        latents = call.get(denoiser.latents_name)
        if not isinstance(latents, Tensor) or latents.ndim < 2:
            raise UnsupportedPipelineError(
                f"{denoiser.name}: expected a tensor of latents as argument {denoiser.latents_name!r}, found "
                f"{type(latents).__name__}; sample this pipeline sequentially"
            )
        self._find_span(call)
        arguments = plain(call)
        timesteps = None if self._sites else self.timesteps
        require_same_call(self.ranks, denoiser, arguments, timesteps, self.config)
        if denoiser.whole:
            return on_every_rank(self.ranks, partial(denoiser.forward, **arguments))
        if denoiser.ordinal == 0 and denoiser.changed:  # an adapter was loaded, a block replaced
            denoiser.forget()
        if denoiser.cut is None:
            with denoiser.aside():
                noisy = draws_noise(self.scheduler, self.first_index)
                module, weights = denoiser.module, denoiser.weights
                denoiser.cut = Cut(module, arguments, self.config, self.ranks, weights, noisy, self._emulated)
        site = self._site(denoiser, latents)
        if denoiser.weights is not None:
            return self._first_shared(denoiser, denoiser.weights, site, call)
        site.prepare((self._schedule(denoiser.cut, reading) for reading in READINGS), self._local)
        everybody = [runner for runners in site.candidates.values() for runner in runners]
        forward = partial(denoiser.forward, **arguments)
        on_every_rank(self.ranks, partial(denoiser.cut.blocks.run, everybody, 0, forward))
        output = site.runners[-1].take_output(0)
        if not gives_latents(output, latents):
            self._leave_whole(denoiser)
        return output

    def _first_shared(
        self, denoiser: DepthDenoiser, weights: ShardedWeights, site: Site, call: dict[str, Any]
    ) -> Any:
        """A call of the first step where no rank has all weights: shared as those after it.

        Shapes come from the meta device. What is read of whom may change when the step is taken: that changes
        nothing in a warm-up whose ranks wait for each other.
        """
        cut = denoiser.cut
        assert cut is not None
        arguments = plain(call)
        shapes = structure(arguments)
        if site.recorded != shapes:
            with denoiser.aside():
                cut.record(site.templates, arguments, site.latents.device)
            site.recorded = shapes
        if not gives_latents(site.templates[len(cut.graph) - 1].output_like, site.latents):
            self._leave_whole(denoiser)
            return denoiser.forward(**arguments)
        schedule = self._schedule(cut, expected_reading(self.config, self.scheduler, self.first_index, cut))
        site.prepare([schedule], self._local)
        for runner in site.runners:
            weights.keep(needed_places(denoiser.module, schedule, schedule.stage(runner.worker)))
        site.finished = False
        site.connect(partial(self._exchanges, site))
        return self._shared_step(denoiser, site, call)

    def _leave_whole(self, denoiser: DepthDenoiser) -> None:
        """The denoiser gives no latents: every rank runs all of it."""
        assert denoiser.cut is not None
        denoiser.cut.remove()
        if denoiser.weights is not None:
            denoiser.weights.restore()
        denoiser.cut, denoiser.whole, denoiser.sites = None, True, []
        self._sites = [(owner, site) for owner, site in self._sites if owner is not denoiser]

    def _find_span(self, call: dict[str, Any]) -> None:
        traced = [leaf for leaf in tree_leaves(call) if isinstance(leaf, TracedTimestep)]
        if traced and not self.traced:
            self.traced = True
            start, stop = traced[0].span
            self.first_index, self.timesteps = start, self.scheduler.timesteps[start:stop]
        if len(self.timesteps) == 0:
            raise ConfigError("num_inference_steps gave no timesteps; pass at least 1")
        self.stats.num_steps = self._before + len(self.timesteps)

    def _site(self, denoiser: DepthDenoiser, latents: Tensor) -> Site:
        assert denoiser.cut is not None
        if denoiser.ordinal == len(denoiser.sites):
            denoiser.sites.append(Site(latents, len(denoiser.cut.graph)))
        site = denoiser.sites[denoiser.ordinal]
        site.latents = latents
        denoiser.ordinal += 1
        if not site.finished:  # a call before this one was interrupted, its messages are still there
            site.disconnect(failed=False)
        self._bytes_before += site.bytes_sent
        self._sites.append((denoiser, site))
        return site

    def _schedule(self, cut: Cut, reading: Reading) -> Schedule:
        steps = len(self.timesteps)
        return Schedule(
            cut.graph, cut.split, steps, self.config.stride, min(self.config.warm_up, steps), reading,
            sharded=self.config.shard_weights,
        )  # fmt: skip

    def _arguments(
        self, denoiser: DepthDenoiser, call: dict[str, Any], runner: ComponentRunner
    ) -> dict[str, Any]:
        """The arguments of a worker's call: the timestep, maybe the latents, of the step it works on."""
        schedule, worker = runner.schedule, runner.worker
        target = schedule.target(worker, self.row)
        if self.config.time_shift and not schedule.together(worker, self.row):
            target = max(target - 1, 0)
        arguments = plain(call)
        if target != self.row:
            arguments = at_step(call, denoiser, self.timesteps, self.row, target)
        ahead = schedule.latents_step(worker, self.row)
        if ahead > self.row and self._predictor is not None:
            name = denoiser.latents_name
            ahead += self._before
            state = self._predictor.predict(ahead) * self._predictor.table.input_scale[ahead]
            arguments[name] = with_states(arguments[name], state)
        return arguments

    # ------------------------------------------------------------------ the scheduler's side

    def scale_input(self, sample: Tensor) -> None:
        """The scheduler scales its input itself."""
        return None

    def take_step(self, scheduler: Any, call: StepCall) -> Any:
        """The scheduler's own step."""
        if self.row == 0:
            self._settle(scheduler, call)
        output = call.output
        if self._predictor is not None:
            self._predictor.observe(call.sample)
            if self.row >= min(self.config.warm_up, len(self.timesteps)):  # made for predicted latents
                output = self._predictor.correct(output)
        result = call.take(scheduler, output)
        state = result[0] if isinstance(result, tuple) else result.prev_sample
        if self._predictor is not None and self.row + 1 < len(self.timesteps):
            self._predictor.advance(output, state)
        self._next_step()
        return result

    def _next_step(self) -> None:
        self.row += 1
        for denoiser in self._denoisers:
            denoiser.ordinal = 0
        now, sent = time.perf_counter(), sum(site.bytes_sent for _, site in self._sites)
        self.stats.add(
            RoundRecord(
                evaluations=self.stats.batch, residual=0.0,
                begin=[self._before + self.row] * self.stats.batch,
                seconds=now - self._step_began_at, bytes_sent=sent - self._bytes_before,
            )
        )  # fmt: skip
        self.stats.bytes_sent += sent - self._bytes_before
        self._step_began_at, self._bytes_before = now, sent
        if self.row == len(self.timesteps):
            self._end()
        elif self._predictor is not None:
            self._look_ahead()

    def _look_ahead(self) -> None:
        """Predict what any rank works on in this step, the same on every rank."""
        assert self._predictor is not None
        schedules = {
            id(runner.schedule): runner.schedule for _, site in self._sites for runner in site.runners
        }
        for schedule in schedules.values():
            for worker in range(schedule.num_workers):
                if schedule.head(worker, self.row) == self.row:
                    self._predictor.predict(self._before + schedule.latents_step(worker, self.row))

    def _end(self) -> None:
        self.active = False
        for _, site in self._sites:
            for runner in site.runners:
                runner.settle()
            site.finished = True
        self.stats.seconds = time.perf_counter() - self._began_at

    def fail(self) -> None:
        """This rank cannot go on: the others learn of it at once."""
        self.active = False
        for denoiser in self._denoisers:
            denoiser.disconnect(failed=True)

    # ------------------------------------------------------------------ after the first step

    def _settle(self, scheduler: Any, call: StepCall) -> None:
        """What components read of each other, and the connections for it."""
        if not self._sites:
            raise UnsupportedPipelineError(
                "the pipeline took a step without calling a denoiser that gives latents; sample it "
                "sequentially"
            )
        self.stats.batch = call.sample.shape[0]
        read, reason = read_for(
            self.config, self.scheduler, self.first_index, call, self._sites, self._before
        )
        if read is not None and any(read.noise.draws) and self.ranks.size > 1:
            states = generator_states(call.generator, call.sample.device)
            self.ranks.require_same("the generator", torch.cat(states))
        reading, blend = choose_reading(self.config, read, reason, self._sites)
        if self._before > 0 and self._predictor is None:
            reading = "stale"  # a predictor follows the run from its first step
        if reading == "stale":
            self._predictor = None
        elif self._predictor is None:
            assert read is not None
            source = copied(call.generator, call.sample.device)
            like = call.sample
            self._predictor = LatentPredictor(
                read.table, like, lambda step: read.noise.draw(step, like, source), read.to_output
            )
        for denoiser, site in self._sites:
            assert denoiser.cut is not None
            site.settle(self._schedule(denoiser.cut, reading), self._local, blend)
            site.finished = False
            site.connect(partial(self._exchanges, site))

    def _exchanges(self, site: Site) -> list[Exchange]:
        if self._emulated:
            return list(Mailboxes(self.config.num_ranks).exchanges)
        return [make_exchange(self.ranks, site.latents.device)]
