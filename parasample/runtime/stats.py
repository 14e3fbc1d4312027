"""What a call cost: rounds, evaluations, bytes, seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class RoundRecord:
    """One round: states evaluated, largest residual, first unfinished step per sample after it, seconds.

    `residual` is the root of the stopping rule's weighted mean square, over the states the round evaluated;
    `states` [T+1, B, D] and `residuals` [T+1, B] are kept only with `Picard(record=True)`.
    """

    evaluations: int
    residual: float
    begin: list[int]
    seconds: float = 0.0
    bytes_sent: int = 0
    states: Tensor | None = None
    residuals: Tensor | None = None


@dataclass(repr=False)
class Stats:
    """Costs of the last call.

    `evaluations` counts states evaluated over all samples and ranks (with guidance one state may be two rows
    of the model's batch); `bytes_sent` is what this rank sent. `rounds_ahead`, with control="device", is how
    many rounds (0 or 1) had begun before the host learned that none was needed; no other figure counts them.
    """

    num_steps: int = 0
    batch: int = 0
    bytes_sent: int = 0
    seconds: float = 0.0
    rounds_ahead: int = 0
    history: list[RoundRecord] = field(default_factory=list)

    def add(self, record: RoundRecord) -> None:
        self.history.append(record)

    @property
    def rounds(self) -> int:
        return len(self.history)

    @property
    def evaluations(self) -> int:
        """States evaluated in all rounds, over all samples and ranks: the sum of `window`."""
        return sum(record.evaluations for record in self.history)

    @property
    def window(self) -> list[int]:
        """States evaluated in each round, over all samples and ranks; `evaluations` is their sum.

        It is what the rounds cost, not how far they reached: with `Picard(window=8)` and B samples an entry
        is at most 8 B, and less at either end of a run and where states already held. A state that ranks
        repeat for equal shares counts once; exact mode, which pads every round to one size, counts the rows
        it pads with, too.
        """
        return [record.evaluations for record in self.history]

    @property
    def residual(self) -> list[float]:
        return [record.residual for record in self.history]

    def __repr__(self) -> str:
        if not self.history:
            return "Stats(no call yet)"
        return (
            f"Stats({self.num_steps} steps x {self.batch} samples in {self.rounds} rounds, "
            f"{self.evaluations} evaluations, {self.seconds:.3g} s, {self.bytes_sent} bytes sent)"
        )
