"""Drawing a scheduler's noise outside the scheduler: same numbers, same order, same generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None


@dataclass(frozen=True)
class NoiseSource:
    """Which steps draw noise, and in which dtype.

    Attributes:
        draws: [T] whether the step draws; also true where the scheduler then multiplies the draw by 0.
        dtype: dtype of the draw; None means that of the model output handed to `step`.
    """

    draws: tuple[bool, ...]
    dtype: torch.dtype | None

    def draw(self, step_index: int, sample: Tensor, generator: Generators = None) -> Tensor | None:
        """The noise z of one step, bit-identical to what the scheduler's own `step` would have drawn.

        Args:
            step_index: of the table, 0..T-1. Steps must be asked for in order, each once.
            sample: [B, ...] a tensor with the shape, dtype and device of the model output of that step.
            generator: as given to the pipeline: one generator, a list with one per sample of the batch, or
                None for torch's global one. It advances as the scheduler would advance it.

        Returns:
            [B, ...] on sample's device, or None where the scheduler draws nothing.
        """
        if not self.draws[step_index]:
            return None
        dtype = self.dtype or sample.dtype
        return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=dtype)
