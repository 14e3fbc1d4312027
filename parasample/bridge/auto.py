"""window="auto": choose from what earlier calls of the same pipeline cost, without extra measurements."""

from __future__ import annotations

import logging
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parasample.config import Picard
from parasample.plan.cost import CostCurve, Prediction, candidate_windows, predict_seconds, recommend
from parasample.plan.rounds import fit_scale, simulate, uniform_profile
from parasample.runtime.picard import PicardSolver
from parasample.runtime.transports import LOCAL, Ranks

logger = logging.getLogger(__name__)

# Before anything is known: wide enough for most of the gain, narrow enough not to waste evaluations.
FIRST_WINDOW = 32
# Rounds of the first call that are not timed: they compile kernels, fill caches and allocate memory.
COLD_ROUNDS = 2


class WindowChooser:
    """Chooses windows for one pipeline (or model) from the calls it has seen.

    The first call has a window of at most 32 and is observed: how long rounds of different sizes took, and
    how many rounds the window needed. From then on the window predicted to be the fastest is used; window 1
    where sequential sampling is. Nothing is evaluated for the sake of measuring.
    """

    def __init__(self) -> None:
        self._timings: list[tuple[int, float]] = []
        self._solver: weakref.ref[PicardSolver] | None = None
        self._chosen: dict[int, tuple[int, int]] = {}  # steps -> (batch, window)

    def observe(self, solver: PicardSolver) -> None:
        """Learn from a finished run; later runs with as many steps and samples change nothing."""
        if not solver.done or (self._solver is not None and self._solver() is solver):
            return
        self._solver = weakref.ref(solver)
        steps = solver.num_steps
        if self._chosen.get(steps, (0, 0))[0] == solver.batch:
            return
        if solver.window == 1 and steps > 1:  # shows nothing of wider windows at this batch: look again
            self._chosen.pop(steps, None)
            return
        history = solver.stats.history[0 if self._timings else COLD_ROUNDS :]
        self._timings += [(record.evaluations, record.seconds) for record in history]
        if len({size for size, _ in self._timings}) >= 2:
            self._chosen[steps] = (solver.batch, self._fastest(solver))

    def window(self, num_steps: int) -> int:
        """The window for a run of this many steps."""
        return self._chosen.get(num_steps, (0, min(num_steps, FIRST_WINDOW)))[1]

    def _fastest(self, solver: PicardSolver) -> int:
        cost, batch, steps = CostCurve.from_samples(self._timings), solver.batch, solver.num_steps
        tolerance = solver.config.tolerance
        profile = fit_scale(
            uniform_profile(solver.table, travel(solver).tolist(), solver.config.prior_variance),
            solver.window, tolerance, solver.stats.rounds, solver.stats.evaluations / batch,
        )  # fmt: skip
        sequential = Prediction(1, steps, steps * batch, steps * cost(batch))
        found = [sequential]
        for window in candidate_windows(steps):
            states = [batch * count for count in simulate(profile, window, tolerance)]
            found.append(Prediction(window, len(states), sum(states), predict_seconds(states, cost)))
        best = recommend(found)
        fastest = min(found[1:], key=lambda prediction: prediction.seconds)
        if steps == 1:
            return 1
        if best.window == 1:
            logger.warning(
                'window="auto" samples %d steps sequentially: about %.3g s, against %.3g s with window %d, '
                "because a round of many states costs nearly as much as its states one by one here",
                steps, sequential.seconds, fastest.seconds, fastest.window,
            )  # fmt: skip
        else:
            logger.info(
                'window="auto" chose %d for %d steps: about %.3g s, against %.3g s sequentially',
                best.window, steps, best.seconds, sequential.seconds,
            )  # fmt: skip
        return best.window


def travel(solver: PicardSolver) -> Tensor:
    """RMS distances of the data predictions of any two rows of a finished run's first sample, [T, T]."""
    states, outputs = solver.anchors[:-1, 0].float(), solver.outputs[:, 0].float()
    coefficients = solver.recurrence.x0_coef.float()
    predictions = coefficients[:, :1] * states + coefficients[:, 1:] * outputs
    return torch.cdist(predictions, predictions).cpu() / predictions.shape[1] ** 0.5


def resolve_window(
    config: Picard, num_steps: int, chooser: WindowChooser | None = None, ranks: Ranks = LOCAL
) -> Picard:
    """`config` with window="auto" replaced by a number of steps, the same on every rank."""
    if config.window != "auto":
        return config
    window = min(num_steps, FIRST_WINDOW) if chooser is None else chooser.window(num_steps)
    if ranks.size > 1:  # timings differ from rank to rank: the first rank's choice counts
        window = int(ranks.all_gather(torch.tensor([window]))[0])
    return replace(config, window=max(window, 1))


_CHOOSERS: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], WindowChooser]] = weakref.WeakKeyDictionary()


def chooser_for(model: Any, scheduler: Any, start: Tensor, config: Picard) -> WindowChooser:
    """The chooser of a bare model with this kind of scheduler, batch and method (its tolerance and update
    decide how many rounds a window takes); new for models without identity.
    """
    key = (type(scheduler), tuple(start.shape), start.dtype, start.device, config)
    try:
        return _CHOOSERS.setdefault(model, {}).setdefault(key, WindowChooser())
    except TypeError:
        return WindowChooser()
