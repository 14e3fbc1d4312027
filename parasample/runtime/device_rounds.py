"""Picard rounds that wait for nobody: every round is the same sequence of operations on the device.

A round evaluates the whole window of every sample, improves the trajectory by one fused scan, counts on the
device how many states have converged and moves each sample's begin index itself. Shapes and addresses never
change, so that a CUDA graph can hold a round, the model included. The host reads where the samples are from
copies that arrive on their own, and stops when all are finished: one round late at most, and a round more
changes nothing, because what is finished is masked.

Rows of the trajectory are as in `parasample.runtime.picard`; a row more at the end of each buffer takes what
masked positions write and is never read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from parasample.config import Picard
from parasample.errors import DivergedError
from parasample.kernels import gather_inputs
from parasample.plan.table import AffineTable
from parasample.runtime.device_secant import DeviceSecants
from parasample.runtime.graphs import replayed
from parasample.runtime.notices import Notices
from parasample.runtime.picard import DrawNoise, ToOutput
from parasample.runtime.recurrence import Recurrence
from parasample.runtime.secant import green
from parasample.runtime.stats import RoundRecord, Stats

Evaluate = Callable[[Tensor, Tensor], Tensor]


class DeviceRounds:
    """Solves one batch of trajectories with no host synchronisation in a round.

    Args:
        table: the scheduler's recurrence, T steps.
        start: x[0], [B, ...] in any float dtype, which is also that of the model's inputs; the trajectory is
            kept in fp32 (fp64 for fp64).
        config: what the user chose; `config.window` is a number or "full".
        draw_noise: `draw_noise(i)` gives the noise of step i, [B, ...]; called once per step, in order, all
            before the first round.
        to_output: converts raw model outputs [n, ...] at states [n, ...] of steps [n] into the table's.
    """

    def __init__(
        self,
        table: AffineTable,
        start: Tensor,
        config: Picard,
        draw_noise: DrawNoise | None = None,
        to_output: ToOutput | None = None,
    ) -> None:
        self.table, self.config = table, config
        self.num_steps, self.batch = table.num_steps, start.shape[0]
        self.window = config.window_for(table.num_steps)
        self.shape, self.device = tuple(start.shape[1:]), start.device
        self.dtype = torch.float64 if start.dtype == torch.float64 else torch.float32
        self.stats = Stats(num_steps=self.num_steps, batch=self.batch)
        self._input_dtype, self._to_output = start.dtype, to_output
        if to_output is not None:  # it copies its coefficients to the device when first asked
            nothing = torch.zeros_like(start[:1], dtype=self.dtype)
            to_output(nothing, nothing, torch.zeros(1, dtype=torch.int64, device=self.device))

        rows, size = self.num_steps + 1, math.prod(self.shape)
        self._states = start.new_zeros((rows + 1, self.batch, size), dtype=self.dtype)
        self._anchors = torch.zeros_like(self._states)
        self._outputs = torch.zeros_like(self._states[:-1])
        self._states[:rows] = start.reshape(1, self.batch, size)
        self.noise = self._draw(draw_noise)
        self.recurrence = Recurrence(table, config, self.states)

        self._secants: DeviceSecants | None = None
        if config.update == "secant":
            effect = green(table, self.recurrence.rule)
            self._secants = DeviceSecants(self._outputs, config.memory, effect, self.recurrence.slope)
        self._begin = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
        self._progress = torch.zeros(3, self.batch, device=self.device)  # begin, first bad row, residual
        self._offsets = torch.arange(self.window, device=self.device)
        self._rows = torch.arange(rows, device=self.device)
        self.samples = torch.arange(self.batch, device=self.device).repeat_interleave(self.window)
        self._notices = Notices(tuple(self._progress.shape), self.device)
        self._finished, self._noted_at = False, time.perf_counter()

    def _draw(self, draw_noise: DrawNoise | None) -> Tensor | None:
        if draw_noise is None:
            return None
        noise = torch.zeros_like(self._outputs[:-1]) if self.table.stochastic else None
        for step in range(self.num_steps):
            drawn = draw_noise(step)
            if drawn is not None and noise is not None:
                noise[step] = drawn.reshape(self.batch, -1)
        return noise

    @property
    def states(self) -> Tensor:
        """The trajectory, [T+1, B, D]: a view, which later rounds change."""
        return self._states[:-1]

    @property
    def done(self) -> bool:
        """Whether the host knows that every sample is finished."""
        return self._finished

    def state(self, row: int) -> Tensor:
        """The state before step `row`, [B, ...]: a view, which later rounds change."""
        return self._states[row].view(self.batch, *self.shape)

    # ------------------------------------------------------------------ the host's side

    def solve(self, evaluate: Evaluate) -> None:
        """Run rounds until all samples are finished.

        Args:
            evaluate: `evaluate(inputs, steps)` gives the raw model outputs [n, ...] for scaled inputs
                [n, ...] at table steps [n] (int64, on the device); n = B W, samples as in `self.samples`. It
                must not wait for the device. With control="graph" it runs in the first two rounds only.

        On CUDA the rounds run on a stream of their own, which the current stream then waits for.

        Raises:
            DivergedError: when a model output, or a state made from it, is not finite.
        """

        def one_round() -> None:
            self.round(evaluate)

        with replayed(one_round, self.device, capture=self.config.control == "graph") as run:
            launched = 0
            while not self._finished:
                run()
                launched += 1
                self._notices.post(self._progress)
                for numbers in self._notices.arrived():
                    self._note(*numbers)
        self.stats.rounds_ahead = launched - self.stats.rounds

    def _note(self, begins: list[float], bad_rows: list[float], residuals: list[float]) -> None:
        """Take the numbers that a round left behind, in the order of rounds."""
        if self._finished:
            return  # of the round that ran ahead
        for sample, row in enumerate(bad_rows):
            if row > 0:
                step = int(row) - 1
                raise DivergedError(
                    f"round {self.stats.rounds + 1}: step {step} of sample {sample} (timestep "
                    f"{self.table.timesteps[step]:g}) is not finite; the model returned NaN or infinity, or "
                    "left the range of its dtype; sample sequentially to see whether it does so too, or in "
                    "float32"
                )
        now = time.perf_counter()
        evaluations = self.batch * self.window
        begin = [int(value) for value in begins]
        self.stats.add(RoundRecord(evaluations, max(residuals), begin, now - self._noted_at))
        self._noted_at = now
        self._finished = all(value >= self.num_steps for value in begin)

    # ------------------------------------------------------------------ the device's side

    def round(self, evaluate: Evaluate) -> None:
        """Enqueue one round. What the host does here depends on no value in a tensor.

        (masked_fill and not torch.where for constants: where would copy them from the host.)
        """
        T, begin = self.num_steps, self._begin
        rows = begin[:, None] + self._offsets  # [B, W]
        steps = rows.clamp(max=T - 1).reshape(-1)
        slots = rows.clamp(max=T).reshape(-1)  # rows past the end write into the spare row T
        states = gather_inputs(self.states, steps, self.samples)
        self._take(states, self._evaluate(evaluate, states, steps), steps, slots)
        hold = (begin + self.window).clamp(max=T) - 1
        published = self.config.update == "published"
        end = hold + 1 if published else (hold + 1 + self.window).clamp(max=T)
        residual = self._scan(rows, torch.stack((begin, hold, end)))
        self._advance(rows, hold, end, residual)
        if published:
            self._fill(end)

    def _evaluate(self, evaluate: Evaluate, states: Tensor, steps: Tensor) -> Tensor:
        """The table's outputs [n, D] at states [n, D]."""
        scale, inputs = self.recurrence.input_scale, states
        if scale is not None or self._input_dtype != self.dtype:
            inputs = gather_inputs(self.states, steps, self.samples, scale, dtype=self._input_dtype)
        outputs = evaluate(inputs.view(-1, *self.shape), steps)
        if self._to_output is not None:
            outputs = self._to_output(outputs, states.view(-1, *self.shape), steps)
        return outputs.reshape(len(steps), -1).to(self.dtype)

    def _take(self, states: Tensor, outputs: Tensor, steps: Tensor, slots: Tensor) -> None:
        """Note outputs [n, D] and the states [n, D] they were evaluated at; finished samples write aside."""
        if self._secants is not None:
            at = slots, self.samples
            change, defect = states - self._anchors[at], outputs - self._outputs[at]
            self._secants.learn(steps, slots, self.samples, change, defect)
        self._anchors[slots, self.samples] = states
        self._outputs[slots, self.samples] = outputs

    def _scan(self, rows: Tensor, bounds: Tensor) -> Tensor:
        """Improve the trajectory; residuals [T+1, B] as of `picard_update`."""
        anchors, outputs = self._anchors[:-1], self._outputs[:-1]
        residual = self.recurrence.scan(self.states, anchors, outputs, self.noise, bounds)
        if self._secants is None:
            return residual
        slots = rows.clamp(max=self.num_steps)
        samples = self.samples.view_as(slots)
        move = self._states[slots, samples] - self._anchors[slots, samples]  # [B, W, D]
        corrections = self._secants.solve(slots, samples, move)
        return self.recurrence.scan(self.states, anchors, outputs, self.noise, bounds, *corrections)

    def _advance(self, rows: Tensor, hold: Tensor, end: Tensor, residual: Tensor) -> None:
        """Move every begin index over the states that converged, and write down what the host shall know."""
        T, begin = self.num_steps, self._begin
        after = rows[:, 1:]  # [B, W-1]: the first row was final before this round
        error = residual.T.gather(1, after.clamp(max=T))
        evaluated = after < T
        kept = (error <= self.config.tolerance * self.config.tolerance) & evaluated  # NaN is not kept
        self._progress[2] = error.masked_fill(~evaluated, 0).amax(1).sqrt() if self.window > 1 else 0
        index = self._rows[:, None]
        bad = (index > begin) & (index <= end) & ~residual.isfinite()
        first = index.expand_as(bad).masked_fill(~bad, T + 1).amin(0)
        self._progress[1] = first % (T + 1)  # 0 for none: row 0 is where nothing moves
        moved = begin + 1 + kept.to(torch.int64).cumprod(1).sum(1)
        begin.copy_(torch.where(begin < T, moved, begin))
        self._progress[0] = begin

    def _fill(self, end: Tensor) -> None:
        """Start states that enter the window as copies of the last one before (arXiv 2305.16317, alg. 1)."""
        T, samples = self.num_steps, self.samples.view(self.batch, self.window)
        entering = end[:, None] + 1 + self._offsets  # [B, W]
        last = (self._begin + self.window).clamp(max=T)[:, None]
        slots = entering.masked_fill(entering > last, T + 1)
        self._states[slots, samples] = self._states[end[:, None], samples]
