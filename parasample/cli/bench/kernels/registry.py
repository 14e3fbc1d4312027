"""What the benchmark of kernels has to know of an op: a module of `ops/` for each, holding one `Op`."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from parasample.cli.bench.kernels import ops
from parasample.kernels import faces

Call = Callable[[], Any]
Build = Callable[[Any], Call]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}  # by the tag that cases have
FACES = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}  # in the order of "auto"


@dataclass(frozen=True)
class Case:
    """One set of shapes and dtypes at which all contenders meet.

    Attributes:
        label: short and unique within the op; goals name cases by it.
        kind: what sets its arithmetic intensity apart, in a word or two for the roofline.
        settings: every value that the arguments depend on; stored in the row.
        size: where the case stands on the axis of the bandwidth plot, elements of one state.
        in_sweep: belongs to the bandwidth plot, whose cases differ in size only.
        hot: a stream of calls on the same arguments is timed by the wall-clock, launches included; otherwise
            each call by itself, its arguments out of cache.
        compiled: torch.compile's contenders take part; each costs seconds of compilation.
    """

    label: str
    kind: str
    settings: dict[str, Any]
    size: int
    in_sweep: bool = False
    hot: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class Contender:
    """One way to compute the op.

    Attributes:
        name: as in the table.
        build: gives the call to time on these arguments; what is done here is not timed. The call changes the
            arguments as the op does, so that it can be repeated.
        baseline: the column of speedups that it counts in (the fastest of several), None for our own faces.
    """

    name: str
    build: Build
    baseline: str | None = None


@dataclass(frozen=True)
class Goal:
    """What our op is to reach: `figure` is "share" (of copy bandwidth), "us", or a baseline's name."""

    case: str
    figure: str
    target: float
    device: Literal["cpu", "cuda"]
    threads: int | None = None  # where the goal is for a number of CPU threads

    def met(self, value: float) -> bool:
        """Times must be short, all else large."""
        return value <= self.target if self.figure == "us" else value >= self.target

    def text(self, value: float) -> str:
        """A figure of this goal's kind in words."""
        if self.figure == "us":
            return f"{value:.1f} us"
        return f"{value:.0%} of copy" if self.figure == "share" else f"{value:.1f}x {self.figure}"


class Op(ABC):
    """Shapes, arguments, cost, truth and contenders of one op."""

    name: str
    sweep: str  # what the cases of the bandwidth plot have in common, in words
    goals: Sequence[Goal] = ()

    @abstractmethod
    def cases(self, device: str, quick: bool) -> list[Case]:
        """What to measure on a device type, the most telling first; three cases if quick."""

    @abstractmethod
    def arguments(self, case: Case, device: torch.device) -> Any:
        """The op's arguments from a fixed seed; copied with copy.deepcopy where a call changes them."""

    @abstractmethod
    def bytes_moved(self, case: Case) -> int:
        """Bytes that any implementation must read or write at least once."""

    @abstractmethod
    def flops(self, case: Case) -> int:
        """Floating point operations of the op; a fused multiply-add counts as two."""

    @abstractmethod
    def contenders(self, case: Case, device: torch.device) -> list[Contender]:
        """Ours first; the first one is judged by the goals."""

    @abstractmethod
    def expected(self, arguments: Any) -> dict[str, Tensor]:
        """The results in float64 by the reference; leaves the arguments alone."""

    @abstractmethod
    def found(self, arguments: Any, returned: Any) -> dict[str, Tensor]:
        """The results of a call under the names of `expected`: what it returned, or changed in arguments."""

    @abstractmethod
    def tolerances(self, case: Case) -> dict[str, float]:
        """Largest error of each result: RMS over its last dimension, relative to the expected RMS."""


def faces_to_time(op: str, device: torch.device, build: Callable[[str], Build]) -> list[Contender]:
    """An op's own contenders: "auto" under the name of parasample, and the faces that it did not choose."""
    available = {status.face for status in faces() if status.op == op and status.available}
    others = [face for face in FACES[device.type] if face in available][1:]  # "auto" is the first
    return [Contender("parasample", build("auto")), *(Contender(face, build(face)) for face in others)]


def find_ops() -> list[Op]:
    """The `OP` of every module in `ops/`, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(ops.__path__))
    return [importlib.import_module(f"{ops.__name__}.{name}").OP for name in names]
