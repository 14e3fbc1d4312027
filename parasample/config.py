"""What a user chooses: one frozen dataclass per method, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeGuard

from parasample.errors import ConfigError

Update = Literal["published", "v", "gaussian", "secant", "anderson"]
UPDATES: tuple[str, ...] = ("published", "v", "gaussian", "secant", "anderson")
Stopping = Literal["x0", "published"]
STOPPING_RULES: tuple[str, ...] = ("x0", "published")
Control = Literal["host", "device", "graph"]
CONTROLS: tuple[str, ...] = ("host", "device", "graph")


@dataclass(frozen=True)
class Picard:
    """Parallel-in-time sampling (ParaDiGMS, arXiv 2305.16317): fixed-point iteration over a window of steps.

    Args:
        window: steps that may be in flight at once for one sample, 1 to the number of steps; "full" is all
            of them; "auto" observes the first call and then takes the window it predicts to be fastest, so
            that results may differ between calls by up to the tolerance: pass a number where they must not.
        tolerance: when a state counts as converged, unitless and at least 0. With `stopping="x0"` the
            root-mean-square error that the state's change implies for the finished sample (data scaled to
            about unit variance); with "published" the paper's tolerance. 0 reproduces sequential sampling
            to rounding.
        update: how a model output is carried over to a state it was not evaluated at. "published" freezes
            the drift (the paper), "v" freezes the velocity, "gaussian" assumes Gaussian data of variance
            `prior_variance`, "secant" learns each step's Jacobian from earlier rounds on top of "gaussian",
            "anderson" mixes earlier rounds of the whole window.
        stopping: "x0" (default) or the paper's rule, "published".
        states_per_round: at most this many model evaluations per sample and round, the earliest states that
            need one; None evaluates every state of the window that needs it. On a device that one
            evaluation fills, use the number of ranks.
        prior_variance: variance of the data that "gaussian", "secant" and "anderson" assume; 1 is "v".
        memory: earlier evaluations of a state that "secant" and "anderson" learn from, 1 to 8.
        exact: with tolerance 0, be bit-equal to sequential sampling whose model calls have the same batch
            size; costs as many rounds as steps.
        record: keep every round's trajectory in `stats.history`, for plots.
        control: who decides after a round how far it got. "host" evaluates only the states that need it, but
            waits for every round. "device" evaluates the whole window in every round and decides on the
            device; the host runs up to one round ahead. For `ps.sample` in one process, with small models
            that are called often: the waiting is then what a round costs. "graph" also captures the round,
            the model included, in a CUDA graph and replays it: the model's Python runs in the first two
            rounds only. On a CPU "graph" is "device".

    Raises:
        ConfigError: for a value outside the ranges above.
    """

    window: int | Literal["full", "auto"] = "auto"
    tolerance: float = 0.01
    update: Update = "secant"
    stopping: Stopping = "x0"
    states_per_round: int | None = None
    prior_variance: float = 1.0
    memory: int = 2
    exact: bool = False
    record: bool = False
    control: Control = "host"

    def __post_init__(self) -> None:
        for name in ("window", "states_per_round", "memory"):
            self._plain(name, Integral, int)
        for name in ("tolerance", "prior_variance"):
            self._plain(name, Real, float)
        for name in ("exact", "record"):
            self._flag(name)
        if not (isinstance(self.window, str) and self.window in ("full", "auto")):
            if not _is_int(self.window):
                raise ConfigError(
                    f'window={self.window!r} is neither a number of steps, "full" nor "auto"; pass one'
                )
            if self.window < 1:
                raise ConfigError(
                    f"window={self.window} is below 1; pass the number of steps to work on at once"
                )
        if not (_is_number(self.tolerance) and self.tolerance >= 0):
            raise ConfigError(
                f"tolerance={self.tolerance!r} is not a finite number of at least 0; pass one, such as 0.01"
            )
        if self.update not in UPDATES:
            raise ConfigError(f"update={self.update!r} is unknown; choose one of {', '.join(UPDATES)}")
        if self.stopping not in STOPPING_RULES:
            raise ConfigError(
                f"stopping={self.stopping!r} is unknown; choose one of {', '.join(STOPPING_RULES)}"
            )
        if self.states_per_round is not None and not (
            _is_int(self.states_per_round) and self.states_per_round >= 1
        ):
            raise ConfigError(
                f"states_per_round={self.states_per_round!r} is not a whole number of at least 1; pass one, "
                "or None for every state of the window that needs an evaluation"
            )
        if not (_is_number(self.prior_variance) and self.prior_variance > 0):
            raise ConfigError(
                f"prior_variance={self.prior_variance!r} is not a positive finite number; pass the data's "
                "variance, about 1"
            )
        if not (_is_int(self.memory) and 1 <= self.memory <= 8):
            raise ConfigError(
                f"memory={self.memory!r} is not a whole number from 1 to 8; pass one, such as 2"
            )
        if self.exact and self.tolerance != 0:
            raise ConfigError(
                f"exact=True needs tolerance=0, found tolerance={self.tolerance}; pass tolerance=0"
            )
        self._check_control()

    def _check_control(self) -> None:
        if self.control not in CONTROLS:
            raise ConfigError(f"control={self.control!r} is unknown; choose one of {', '.join(CONTROLS)}")
        if self.control == "host":
            return
        refused = {
            'update="anderson"': self.update == "anderson",
            f"states_per_round={self.states_per_round}": self.states_per_round is not None,
            "exact=True": self.exact,
            "record=True": self.record,
        }
        for setting in (name for name, found in refused.items() if found):
            raise ConfigError(
                f"{setting} needs the host in every round, found control={self.control!r}; "
                f'leave it out, or pass control="host"'
            )

    def _plain(self, name: str, kind: type, plain: Callable[[Any], int | float]) -> None:
        # NumPy's numbers become Python's, so that equal methods print alike (ranks compare them by that).
        value = getattr(self, name)
        if isinstance(value, kind) and type(value) not in (bool, int, float):
            object.__setattr__(self, name, plain(value))

    def _flag(self, name: str) -> None:
        value = getattr(self, name)
        plain = value.item() if hasattr(value, "item") else value  # of NumPy
        if not isinstance(plain, bool):
            raise ConfigError(f"{name}={value!r} is neither True nor False; pass one of them")
        object.__setattr__(self, name, plain)

    def window_for(self, num_steps: int) -> int:
        """The window in steps for a run of `num_steps`; "auto" must have been resolved before."""
        if self.window == "full":
            return num_steps
        if not isinstance(self.window, int):
            raise ConfigError('window="auto" was not resolved to a number of steps before sampling')
        if self.window > num_steps:
            raise ConfigError(f"window={self.window} exceeds num_steps={num_steps}; pass window<={num_steps}")
        return self.window


Extrapolate = Literal["auto", "latents", "linear"]
EXTRAPOLATIONS: tuple[str, ...] = ("auto", "latents", "linear")


@dataclass(frozen=True)
class Async:
    """Parallel in depth (AsyncDiff, arXiv 2406.06911): the denoiser cut into components on several devices.

    Run under `torchrun --nproc-per-node N+S-1`; every rank makes the same call and gets the same result.

    Args:
        components: N, the parts that the denoiser is cut into, at least 1.
        stride: S, steps that one parallel batch finishes, at least 1; takes S - 1 more devices.
        warm_up: steps at the start that are sampled as ever, at least 1; more than there are means all.
        time_shift: after the warm-up the denoiser is told the timestep of the step before (the paper's option
            for models that leave noise behind).
        split: "auto" measures the denoiser in the first call and searches the best split; or a component for
            each module by its path, such as {"down_blocks": 0, "mid_block": 0, "up_blocks": 1}: the longest
            path that fits a module counts, and the component with the output must be the last.
        extrapolate: what stands in for what other components have not made yet. None: what they made one
            batch before, as published. "linear": their last two outputs, extrapolated. "latents": each
            component works ahead, on the latents predicted for the step in which it will be finished.
            "auto": "latents" where that is more accurate, else "linear" for samplers without noise, else
            None.
        shard_weights: a rank keeps only the weights of its own component; the others wait in a file in TMPDIR
            until `restore()`. The warm-up then runs as a pipeline across the ranks. Call `pipe.to("cuda")`
            after `parallelize`: it moves what is kept. Splits are then balanced by operations, not times,
            and by weights: no component has more than 1/N and 8% of them where the blocks allow it.

    Raises:
        ConfigError: for a value outside the ranges above.
    """

    components: int
    stride: int = 1
    warm_up: int = 1
    time_shift: bool = False
    split: Literal["auto"] | Mapping[str, int] = "auto"
    extrapolate: Extrapolate | None = "auto"
    shard_weights: bool = False

    def __post_init__(self) -> None:
        for name, what in (("components", "parts"), ("stride", "steps"), ("warm_up", "steps")):
            value = getattr(self, name)
            if isinstance(value, Integral) and not isinstance(value, bool):
                object.__setattr__(self, name, int(value))
            elif not _is_int(value):
                raise ConfigError(f"{name}={value!r} is not a whole number of {what}; pass one of at least 1")
            if value < 1:
                raise ConfigError(f"{name}={value} is below 1; pass at least 1")
        if self.extrapolate is not None and self.extrapolate not in EXTRAPOLATIONS:
            raise ConfigError(
                f"extrapolate={self.extrapolate!r} is unknown; choose one of {', '.join(EXTRAPOLATIONS)} "
                f"or None"
            )
        if self.time_shift and self.extrapolate == "latents":
            raise ConfigError(
                "time_shift=True contradicts extrapolate='latents', which knows every component's "
                "timestep; pass "
                "time_shift=False, or another extrapolate"
            )
        if self.split == "auto":
            return
        if not isinstance(self.split, Mapping) or not self.split:
            raise ConfigError(
                f'split={self.split!r} is neither "auto" nor a component for each module; pass for example '
                '{"down_blocks": 0, "mid_block": 0, "up_blocks": 1}'
            )
        object.__setattr__(self, "split", dict(self.split))

    @property
    def num_ranks(self) -> int:
        """Devices that it takes, N + S - 1."""
        return self.components + self.stride - 1


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
