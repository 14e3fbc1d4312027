"""The Picard solver: a trajectory, the model outputs known about it, and rounds that improve it.

It knows nothing of models or pipelines. Each round it names states (`open_round`), takes the outputs that
somebody evaluated there (`close_round`), updates the trajectory by one fused scan and decides, per sample,
how many steps are finished. Rows of the trajectory are states: row 0 is the start, row T the finished sample.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from parasample.config import Picard
from parasample.errors import DivergedError
from parasample.plan.table import AffineTable
from parasample.plan.window import REEVALUATE_AT, SampleProgress, share
from parasample.runtime.anderson import Anderson
from parasample.runtime.recurrence import Recurrence
from parasample.runtime.secant import Evaluations, SecantHistory, green
from parasample.runtime.stats import RoundRecord, Stats
from parasample.runtime.transports import LOCAL, Ranks

DrawNoise = Callable[[int], Tensor | None]
ToOutput = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Share:
    """The states that one rank evaluates in a round: n pairs (step, sample), int64 [n], sample-major.

    Every rank has the same n; a pair may be repeated to make it so.
    """

    steps: Tensor
    samples: Tensor

    def __len__(self) -> int:
        return self.steps.shape[0]


class PicardSolver:
    """Solves one batch of trajectories.

    Args:
        table: the scheduler's recurrence, T steps.
        start: x[0], [B, ...] in any float dtype; the trajectory is kept in fp32 (fp64 for fp64).
        config: what the user chose; `config.window` is a number or "full".
        draw_noise: `draw_noise(i)` gives the noise of step i, [B, ...]; called once per step, in order.
        to_output: converts raw model outputs [n, ...] at states [n, ...] of steps [n] into the table's.
        ranks: who shares the evaluations; all must be given the same `start`.
    """

    def __init__(
        self,
        table: AffineTable,
        start: Tensor,
        config: Picard,
        draw_noise: DrawNoise | None = None,
        to_output: ToOutput | None = None,
        ranks: Ranks = LOCAL,
    ) -> None:
        self.table = table
        self.config = config
        self.ranks = ranks
        self.num_steps = table.num_steps
        self.window = config.window_for(table.num_steps)
        self.batch = start.shape[0]
        self.shape = tuple(start.shape[1:])
        self.dtype = torch.float64 if start.dtype == torch.float64 else torch.float32
        self.device = start.device
        self._draw_noise = draw_noise
        self._to_output = to_output
        self._noise_rows = 0

        rows, size = self.num_steps + 1, math.prod(self.shape)
        self.states = start.new_zeros((rows, self.batch, size), dtype=self.dtype)
        self.states[0] = start.reshape(self.batch, size)
        self.anchors = torch.zeros_like(self.states)
        self.outputs = torch.zeros_like(self.states[:-1])
        self.noise = torch.zeros_like(self.outputs) if table.stochastic and draw_noise else None
        self.states[1:] = self.states[0]  # the paper's initial guess; the other updates overwrite it

        self.recurrence = Recurrence(table, config, self.states)
        self.progress = [SampleProgress(self.num_steps) for _ in range(self.batch)]
        self.secants: SecantHistory | None = None
        if config.update == "secant":
            self.secants = SecantHistory(
                self.outputs, config.memory, green(table, self.recurrence.rule), self.recurrence.slope
            )
        self.anderson = Anderson(config.memory) if config.update == "anderson" else None
        self.stats = Stats(num_steps=self.num_steps, batch=self.batch)
        self._items: tuple[Tensor, Tensor] | None = None
        self._opened_at = time.perf_counter()

    # ------------------------------------------------------------------ rounds

    @property
    def done(self) -> bool:
        return all(progress.done for progress in self.progress)

    def finished(self, row: int) -> bool:
        """Whether the state at `row` is final for every sample."""
        return all(progress.begin >= row for progress in self.progress)

    def state(self, row: int) -> Tensor:
        """The state before step `row`, [B, ...]: a view, which later rounds change."""
        return self.states[row].view(self.batch, *self.shape)

    def data_prediction(self, row: int) -> Tensor:
        """D of step `row` as last evaluated, [B, ...]."""
        prediction = self.anchors[row] * self.table.x0_state[row]
        prediction.add_(self.outputs[row], alpha=self.table.x0_output[row])
        return prediction.view(self.batch, *self.shape)

    def open_round(self, start_only: bool = False) -> Share:
        """Choose this round's states and return the part that this rank evaluates.

        With `start_only` every rank evaluates every sample's first state (a pipeline's first step, before
        anything is known of its batch); the first rank's outputs are the ones that count.
        """
        steps, samples = self._choose(start_only)
        self._opened_at = time.perf_counter()
        every = torch.tensor([steps, samples], device=self.device)
        self._items = (every[0], every[1])
        self._item_steps, self._item_samples = steps, samples
        if self.ranks.size == 1 or start_only:
            return Share(*self._items)
        mine = torch.tensor(share(len(steps), self.ranks.size, self.ranks.rank), device=self.device)
        return Share(every[0][mine], every[1][mine])

    def _choose(self, start_only: bool) -> tuple[list[int], list[int]]:
        """This round's (steps, samples), sample-major."""
        limit = self.config.states_per_round or self.window
        # These two are defined on whole windows; the others evaluate only states that moved.
        whole = self.config.update in ("published", "anderson")
        threshold = -1.0 if whole else REEVALUATE_AT**2
        steps: list[int] = []
        samples: list[int] = []
        for sample, progress in enumerate(self.progress):
            if progress.done:
                continue
            # Before anything is known of a trajectory, its start alone is worth an evaluation: the others
            # would be guesses, and evaluating them saved a third of a round for a tenth more evaluations.
            fresh = progress.hold < 0 and not whole
            rows = progress.choose(self.window, 1 if fresh or start_only else limit, threshold)
            steps += rows
            samples += [sample] * len(rows)
        return steps, samples

    def states_at(self, part: Share) -> Tensor:
        """The states of a share, [n, ...], unscaled, in the trajectory's dtype."""
        return self.states[part.steps, part.samples].reshape(len(part), *self.shape)

    def model_inputs(self, part: Share) -> Tensor:
        """The states of a share as the model takes them, [n, ...]: scaled as the scheduler scales them."""
        states = self.states_at(part)
        scale = self.recurrence.input_scale
        if scale is None:
            return states
        return states * scale[part.steps].view(-1, *(1,) * len(self.shape))

    def close_round(self, part: Share, raw_outputs: Tensor) -> None:
        """Take the model outputs of this rank's share, [n, ...], and improve the trajectory.

        Raises:
            DivergedError: when a model output, or a state made from it, is not finite.
            TransportError: when another rank does not deliver its share.
        """
        if self._items is None:
            raise RuntimeError("close_round without open_round")
        outputs = raw_outputs
        if self._to_output is not None:
            outputs = self._to_output(raw_outputs, self.states_at(part), part.steps)
        flat = outputs.reshape(len(part), -1).to(self.dtype)
        if self.ranks.size > 1:
            gathered = self.ranks.all_gather(flat)
            self.stats.bytes_sent += flat.numel() * flat.element_size() * (self.ranks.size - 1)
            flat = gathered[: len(self._item_steps)]
        steps, samples = self._items
        states = self.states[steps, samples]
        rows: dict[int, list[int]] = {}
        for step, sample in zip(self._item_steps, self._item_samples, strict=True):
            rows.setdefault(sample, []).append(step)
        if self.secants is not None:
            holds = self._known()
            known = steps <= torch.tensor(holds, device=self.device)[samples]
            self.secants.learn(Evaluations(steps, samples, states, flat, known), self.anchors, self.outputs)
            self.secants.ready.update(sample for sample in rows if rows[sample][0] <= holds[sample])
        self.anchors[steps, samples] = states
        self.outputs[steps, samples] = flat
        for sample, evaluated in rows.items():
            self.progress[sample].evaluated(evaluated)
        self._update()
        self._items = None

    def _known(self) -> list[int]:
        return [progress.hold for progress in self.progress]

    def _update(self) -> None:
        begins = [progress.begin for progress in self.progress]
        ends = [
            progress.begin if progress.done else progress.scan_end(self.window) for progress in self.progress
        ]
        if self.config.update == "published":  # only evaluated rows; new ones copy the last state
            ends = [min(end, progress.hold + 1) for end, progress in zip(ends, self.progress, strict=True)]
        self._prepare_noise(max(ends))
        bounds = torch.tensor([begins, self._known(), ends], device=self.device)
        scan = self.recurrence.scan
        residual = scan(self.states, self.anchors, self.outputs, self.noise, bounds)
        if self.secants is not None:
            corrected = self.secants.correct(self.states, self.anchors, self.outputs, begins, self._known())
            residual = scan(self.states, self.anchors, corrected, self.noise, bounds)
        if self.anderson is not None:
            residual = self.anderson.mix(self, begins, ends, residual)
        self._advance(begins, ends, residual)

    def _advance(self, begins: list[int], ends: list[int], residual: Tensor) -> None:
        first, last = min(begins) + 1, max(max(ends), min(begins) + 1)
        rows = residual[first : last + 1].T.tolist()  # the round's one host synchronisation
        largest = 0.0
        for sample, progress in enumerate(self.progress):
            begin, end = begins[sample], ends[sample]
            if not progress.done:
                window = rows[sample][begin + 1 - first : end + 1 - first]
                self._check_finite(window, begin, sample)
                progress.advance([self._relative(value) for value in window])
                evaluated = window[: max(progress.hold - begin, 0)]
                largest = max(largest, *(math.sqrt(value) for value in evaluated), 0.0)
                if self.config.update == "published":
                    fill_end = min(progress.begin + self.window, self.num_steps)
                    self.states[end + 1 : fill_end + 1, sample] = self.states[end, sample]
        self._record(largest, residual)

    def _record(self, largest: float, residual: Tensor | None) -> None:
        record = RoundRecord(
            evaluations=len(self._item_steps),
            residual=largest,
            begin=[progress.begin for progress in self.progress],
            seconds=time.perf_counter() - self._opened_at,
        )
        if self.config.record:
            record.states = self.states.to("cpu", copy=True)
            record.residuals = None if residual is None else residual.to("cpu", copy=True)
        self.stats.add(record)

    def _relative(self, residual: float) -> float:
        """A squared residual in units of the tolerance squared."""
        if self.config.tolerance == 0:
            return 0.0 if residual == 0 else math.inf
        ratio = math.sqrt(residual) / self.config.tolerance  # its square may be out of range, infinity is not
        return ratio * ratio

    def _check_finite(self, window: list[float], begin: int, sample: int) -> None:
        for offset, value in enumerate(window):
            if not math.isfinite(value):
                step = begin + offset
                raise DivergedError(
                    f"round {self.stats.rounds + 1}: step {step} of sample {sample} (timestep "
                    f"{self.table.timesteps[step]:g}) is not finite; the model returned NaN or infinity, or "
                    "left the range of its dtype; sample sequentially to see whether it does so too, or in "
                    "float32"
                )

    def _prepare_noise(self, rows: int) -> None:
        """Draw the noise of the steps before `rows`, once each and in order, as sequential sampling does."""
        if self._draw_noise is None:
            return
        while self._noise_rows < rows:
            noise = self._draw_noise(self._noise_rows)
            if noise is not None and self.noise is not None:
                self.noise[self._noise_rows] = noise.reshape(self.batch, -1)
            self._noise_rows += 1

    def restart(self, row: int, state: Tensor) -> None:
        """Replace the state before step `row`, [B, ...], and solve again from there."""
        self.states[row] = state.reshape(self.batch, -1).to(self.dtype)
        if self.secants is not None:
            self.secants.forget(row)
        if self.anderson is not None:
            self.anderson.forget()
        for progress in self.progress:
            progress.restart(row)
