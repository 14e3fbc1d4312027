"""Judges samples as a classifier sees them: features, agreement with the prompt, Frechet distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parasample.cli.bench.results import prompts_for
from parasample.cli.sampling import Sampled, decode, sample_rounds
from parasample.models import CLASS_PROMPTS, load_classifier

Sample = Callable[[list[str], float, list[int]], Sampled]
"""Samples prompts with a guidance scale, a seed for each."""


@dataclass
class Judged:
    """A row's samples as the classifier sees them."""

    latents: Tensor
    features: Tensor
    agreement: float
    rounds: list[float]
    evaluations: float


class Judge:
    """A classifier for the pictures of a pipeline's latents."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.classifier = load_classifier().to(pipe.device)

    @torch.no_grad()
    def __call__(
        self,
        sample: Sample,
        guidance: float,
        samples: int,
        batch: int,
        offset: int = 0,
        on_samples: Callable[[int], object] = lambda _: None,
    ) -> Judged:
        """Sample seeds 0 .. samples - 1, each for its class's prompt and moved by `offset`; look at them."""
        right, evaluations = 0, 0
        rounds: list[float] = []
        latents, features = [], []
        for first in range(0, samples, batch):
            seeds = list(range(first, min(first + batch, samples)))
            found = sample(prompts_for(seeds), guidance, [seed + offset for seed in seeds])
            images = decode(self.pipe, found.latents).permute(0, 3, 1, 2) * 2 - 1
            logits, feature = self.classifier(images.to(self.pipe.device))
            labels = torch.tensor([seed % len(CLASS_PROMPTS) for seed in seeds])
            right += int((logits.argmax(1).cpu() == labels).sum())
            rounds += sample_rounds(found.stats) if found.stats else [float(found.rounds)] * len(seeds)
            evaluations += found.evaluations
            latents.append(found.latents)
            features.append(feature.cpu())
            on_samples(len(seeds))
        return Judged(torch.cat(latents), torch.cat(features), right / samples, rounds, evaluations / samples)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance of Gaussians fitted to two sets of features [N, F] (arXiv 1706.08500, eq. 6); fp64."""
    means, covariances = [], []
    for features in (first.double(), second.double()):
        means.append(features.mean(dim=0))
        covariances.append(torch.cov(features.T))
    # tr sqrt(C1 C2) = tr sqrt(C1^1/2 C2 C1^1/2), whose argument is symmetric.
    root = _matrix_root(covariances[0])
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    distance = (means[0] - means[1]).square().sum() + sum(c.trace() for c in covariances) - 2 * cross
    return max(float(distance), 0.0)


def _matrix_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
