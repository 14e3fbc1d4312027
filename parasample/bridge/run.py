"""One call of a wrapped pipeline, from `set_timesteps` to its last step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from parasample.bridge.auto import WindowChooser, resolve_window
from parasample.bridge.scheduler_wrap import StepCall, step_output
from parasample.bridge.schedulers import ReadScheduler, read_scheduler
from parasample.bridge.solver import make_solver
from parasample.config import Picard
from parasample.errors import ConfigError, DivergedError, UnsupportedPipelineError
from parasample.runtime.picard import PicardSolver, Share
from parasample.runtime.stats import Stats
from parasample.runtime.transports import Ranks

if TYPE_CHECKING:
    from parasample.bridge.denoiser import WrappedDenoiser

logger = logging.getLogger(__name__)
RESTARTS_WORTH_A_WARNING = 3  # one edit by a callback is meant; one per step is how the pipeline works


class PipelineRun:
    """The loop's side of a `PicardSolver`.

    The pipeline's loop makes one iteration per step, as ever. An iteration whose next state is already final
    costs nothing: the denoiser is not run. Otherwise the denoiser is given the round's states, the
    pipeline's own guidance code works on that larger batch, and `step` closes the round; it always makes at
    least one more state final. So callbacks, progress bars and `interrupt` see every step, in order, with
    its own latents.
    """

    def __init__(
        self,
        scheduler: Any,
        config: Picard,
        denoisers: list[WrappedDenoiser],
        ranks: Ranks,
        chooser: WindowChooser | None = None,
        settings: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self.scheduler = scheduler  # an unwrapped copy, as set_timesteps left it
        self.config = self._asked = config
        self.ranks = ranks
        self.active = True
        self.traced = False
        self.row = 0
        self.first_index = 0
        self.timesteps: Tensor = scheduler.timesteps
        self.solver: PicardSolver | None = None
        self.stats = Stats()
        self._denoisers = denoisers
        self._chooser = chooser
        self._part: Share | None = None
        self._skipping = False  # this iteration's next state is final: nothing is evaluated
        self._doubled = False
        self._dtype = torch.float32  # of the latents
        self._unscaled: Tensor | None = None  # what the loop gave scale_model_input in this iteration
        self._restarts = 0
        self._replaceable = True
        self._settings, self._last_settings = settings, dict(settings())
        self._stale = False
        self._began_at = time.perf_counter()
        for denoiser in denoisers:
            denoiser.new_run()

    def take_step(self, scheduler: Any, call: StepCall) -> Any:
        """Close the iteration's round; what the scheduler's own step returns."""
        state = self.step(call.output, call.timestep, call.sample, call.generator, call.settings)
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = self.first_index + self.row
        result = step_output(
            call.original, state, lambda: self.data_prediction(state), call.as_dict, not self.active
        )
        if not self.active:
            self.finish()
            self.stats.seconds = time.perf_counter() - self._began_at
        return result

    def finish(self) -> None:
        """Let go of the trajectory after the last step: only the costs are asked for from then on."""
        if self.solver is None:
            return
        if self._chooser is not None and self._asked.window == "auto":
            self._chooser.observe(self.solver)
        if not self.config.record:
            self.solver = None
            for denoiser in self._denoisers:
                denoiser.new_run()

    # ------------------------------------------------------------------ the denoiser's side

    def start(self, span: tuple[int, int] | None) -> None:
        """The loop's first call to a denoiser; `span` is the part of the timesteps it runs over, if known."""
        if span is not None:
            self.traced = True
            self.first_index = span[0]
            self.timesteps = self.scheduler.timesteps[span[0] : span[1]]
        self._check_window()

    def _check_window(self) -> None:
        if len(self.timesteps) == 0:
            raise ConfigError("num_inference_steps gave no timesteps; pass at least 1")
        self.config = resolve_window(self._asked, len(self.timesteps), self._chooser, self.ranks)
        self.config.window_for(len(self.timesteps))

    @property
    def exact_repeat(self) -> int:
        """How often the first step's rows are repeated so that all calls have one batch size."""
        if not self.config.exact:
            return 1
        return -(-self.config.window_for(len(self.timesteps)) // self.ranks.size)

    @property
    def round_open(self) -> bool:
        """Whether a denoiser was called in this iteration before."""
        return self._part is not None or self._skipping

    def open_share(self, latents: Tensor, changed: bool) -> Share | None:
        """The states to evaluate in this iteration, or None when the next state is final already.

        `changed`: the call is conditioned otherwise than the one of the step before, so that what was
        evaluated ahead no longer holds.
        """
        assert self.solver is not None
        if self.round_open:
            self._stale = self._stale or changed  # the states of this round are evaluated as they should be
            return self._part
        self._honour_changes(latents)
        settings = dict(self._settings())
        if changed or self._stale or settings != self._last_settings:
            self._restart(self.solver.state(self.row))
        self._stale, self._last_settings = False, settings
        self._skipping = self.solver.finished(self.row + 1)
        if not self._skipping:
            self._part = self.solver.open_round()
        return self._part

    def _honour_changes(self, latents: Tensor) -> None:
        """Restart from this step if somebody (a callback, the pipeline) replaced the latents we returned."""
        assert self.solver is not None
        scale = self.solver.table.input_scale[self.row]
        if self._unscaled is not None and self._unscaled.shape == latents.shape:
            latents, scale = self._unscaled, 1.0  # before it was scaled
        state = self.solver.state(self.row).to(self._dtype)
        given = latents[: self.solver.batch]
        if given.shape[1] != state.shape[1]:
            given = given[:, : state.shape[1]]
        expected = state if scale == 1 else (state * scale).to(given.dtype)
        same = torch.equal(given, expected)
        if scale != 1 and not same:  # a pipeline that scales by itself may round otherwise
            rounding = 8 * torch.finfo(given.dtype).eps
            same = torch.allclose(given, expected, rtol=rounding, atol=rounding)
        if same:
            return
        if not self._replaceable:
            raise UnsupportedPipelineError(
                f"step {self.row}: the latents were replaced (by a callback or the pipeline), and "
                f"{type(self.scheduler).__name__} goes on from its own last state, not from those "
                "latents; leave them alone, choose another scheduler, or sample sequentially"
            )
        self._restart(given if scale == 1 else given.to(self.solver.dtype) / scale)

    def _restart(self, state: Tensor) -> None:
        """Solve again from this step's `state`: what is known of later steps is no longer true."""
        assert self.solver is not None
        self._restarts += 1
        if self._restarts == RESTARTS_WORTH_A_WARNING:
            logger.warning(
                "latents or conditioning were changed after %d steps; what was known of later steps is lost "
                "each time, so that sampling in parallel costs more than it gains: sample this pipeline "
                "sequentially",
                self._restarts,
            )
        self.solver.restart(self.row, state)

    def scale_input(self, sample: Tensor) -> Tensor | None:
        """The scheduler's `scale_model_input` at this step; its own answer counts in the first one."""
        if self.solver is None:
            return None
        self._unscaled = sample
        scale = self.solver.table.input_scale[self.row]
        return sample if scale == 1 else sample * scale

    def data_prediction(self, like: Tensor) -> Tensor:
        """The data prediction D of the step just taken, shaped and typed as the latents."""
        assert self.solver is not None
        prediction = self.solver.data_prediction(self.row - 1).to(like.dtype)
        return torch.cat([prediction, prediction]) if self._doubled else prediction

    # ------------------------------------------------------------------ the scheduler's side

    def step(
        self, output: Tensor, timestep: Any, sample: Tensor, generator: Any, kwargs: Mapping[str, Any]
    ) -> Tensor:
        """Close this iteration's round, if it had one; the state after this step, as `sample` is."""
        if self.solver is None:
            self._first_step(output, timestep, sample, generator, kwargs)
        elif self._part is not None:
            part, self._part = self._part, None
            self._check_output(output, sample, len(part) * (2 if self._doubled else 1))
            self.solver.close_round(part, output[: len(part)] if self._doubled else output)
        elif not self.solver.finished(self.row + 1):
            raise UnsupportedPipelineError(
                f"step {self.row} was taken without a call to a wrapped denoiser; sample this pipeline "
                "sequentially"
            )
        self._skipping = False
        for denoiser in self._denoisers:
            denoiser.new_step()
        assert self.solver is not None
        self.row += 1
        state = self.solver.state(self.row)
        if self._doubled:
            state = torch.cat([state, state])
        state = state.to(sample.dtype, copy=not self._doubled)
        self._dtype, self._unscaled = sample.dtype, None
        if self.row == self.solver.num_steps:
            self.active = False
        return state

    def _first_step(
        self, output: Tensor, timestep: Any, sample: Tensor, generator: Any, kwargs: Mapping[str, Any]
    ) -> None:
        if not any(denoiser.sites for denoiser in self._denoisers):
            raise UnsupportedPipelineError(
                "the pipeline took a step without calling a denoiser that takes a timestep; sample it "
                "sequentially"
            )
        if not self.traced:
            self._find_start(timestep)
        self._check_output(output, sample, sample.shape[0])
        if isinstance(generator, list) and len(generator) != sample.shape[0]:
            raise ConfigError(
                f"expected one generator or {sample.shape[0]} (one per sample), found a list of "
                f"{len(generator)}"
            )
        if not bool(sample.isfinite().all()):
            raise DivergedError(
                "the latents of the first step are not finite: the pipeline, or latents= of its call, gave "
                "NaN or infinity; pass finite latents"
            )
        read = read_scheduler(self.scheduler, begin_index=self.first_index, step_kwargs=dict(kwargs))
        if read.table.num_steps > len(self.timesteps):
            read = replace(read, table=read.table.head(len(self.timesteps)))  # the loop stops early
        self._check_start(read, sample)
        self._replaceable = read.replaceable
        half = sample.shape[0] // 2
        # Pipelines that keep both guidance halves in the sample (DiT) have equal halves: solved once. Noise
        # is drawn for each half, so that equal halves of a stochastic run may be two samples.
        self._doubled = (
            not read.table.stochastic
            and sample.shape[0] % 2 == 0
            and torch.equal(sample[:half], sample[half:])
            and torch.equal(output[:half], output[half:])
        )
        batch = half if self._doubled else sample.shape[0]
        self.solver = make_solver(
            read, self.scheduler, self.first_index, sample, batch, self.config, generator, kwargs, self.ranks
        )
        self.stats = self.solver.stats
        part = self.solver.open_round(start_only=True)
        self.solver.close_round(part, output[: len(part)])

    def _check_output(self, output: Tensor, sample: Tensor, rows: int) -> None:
        expected = (rows, *sample.shape[1:])
        if tuple(output.shape) != expected:
            raise UnsupportedPipelineError(
                f"step {self.row}: expected a model output of shape {expected}, found "
                f"{tuple(output.shape)}; the model must return one output of the latents' shape per input; "
                "sample this pipeline sequentially"
            )

    def _find_start(self, timestep: Any) -> None:
        value = float(timestep)
        matches = [i for i, t in enumerate(self.scheduler.timesteps.tolist()) if t == value]
        if not matches:
            raise UnsupportedPipelineError(
                f"expected the first step at one of the scheduler's timesteps, found {value:g}; sample "
                "sequentially"
            )
        self.first_index = matches[0]
        self.timesteps = self.scheduler.timesteps[self.first_index :]
        self._check_window()

    def _check_start(self, read: ReadScheduler, sample: Tensor) -> None:
        """The first call must have been given the scaled latents, in blocks, or we would swap others."""
        expected = sample * read.table.input_scale[0]
        for denoiser in self._denoisers:
            for site in denoiser.sites:
                given = site.latents
                blocks, rest = divmod(site.rows, sample.shape[0])
                fits = rest == 0 and blocks > 0 and given.ndim == sample.ndim
                fits = fits and given.shape[1] >= sample.shape[1] and given.shape[2:] == sample.shape[2:]
                if fits:
                    tiled = expected.repeat(blocks, *(1,) * (sample.ndim - 1)).to(given.dtype)
                    rounding = _rounding(given)
                    fits = torch.allclose(given[:, : sample.shape[1]], tiled, rtol=rounding, atol=rounding)
                if not fits:
                    raise UnsupportedPipelineError(
                        f"{denoiser.name}: expected the scheduler's latents {tuple(sample.shape)} as first "
                        "argument (repeated for guidance), found something else of shape "
                        f"{tuple(given.shape)}: the pipeline changes the latents before the denoiser, so "
                        "steps cannot be evaluated ahead; sample it sequentially"
                    )


def _rounding(tensor: Tensor) -> float:
    return 1e-2 if tensor.dtype in (torch.float16, torch.bfloat16) else 1e-4
