"""Reading a scheduler: its noise and clipping, what is left untouched, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from scheduler_cases import SHAPE, Case
from torch import Tensor

from parasample.bridge.schedulers import read_scheduler
from parasample.errors import ConfigError, UnsupportedPipelineError

STOCHASTIC = [
    Case("DDPMScheduler"),
    Case("EulerAncestralDiscreteScheduler"),
    Case("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    Case("KDPM2AncestralDiscreteScheduler"),
    Case("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
]


@pytest.mark.parametrize("case", STOCHASTIC, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_noise_is_bit_identical_per_sample_generators_too(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = case.make()
    read = read_scheduler(scheduler)
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    drawn: list[Tensor] = []
    original = module.randn_tensor
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: drawn.append(original(*a, **k)) or drawn[-1])
    theirs = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    ours = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    output, found = torch.zeros(SHAPE, dtype=dtype), []
    for i, timestep in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(output, timestep) if hasattr(scheduler, "scale_model_input") else None
        scheduler.step(output, timestep, output, generator=theirs)
        found.append(read.noise.draw(i, output, ours))
    found = [draw for draw in found if draw is not None]
    assert len(found) == len(drawn) > 0
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, drawn, strict=True))


def test_draws_that_are_multiplied_by_zero_still_move_the_generator() -> None:
    read = read_scheduler(Case("EulerAncestralDiscreteScheduler").make())
    assert read.table.noise[-1] == 0.0 and read.noise.draws[-1]


# ------------------------------------------------------------------ clipping


@pytest.mark.parametrize("thresholding", [False, True])
def test_each_item_is_clipped_at_its_own_step_and_by_itself(thresholding: bool) -> None:
    scheduler = Case("DDPMScheduler", {"thresholding": thresholding, "sample_max_value": 2.0}).make()
    to_output = read_scheduler(scheduler).to_output
    values = torch.Generator().manual_seed(0)
    output, state = (2 * torch.randn(7, 3, 2, 2, generator=values) for _ in range(2))
    steps = torch.tensor([0, 9, 3, 3, 8, 1, 5])
    together = to_output(output, state, steps)
    for i in range(7):
        one = slice(i, i + 1)
        torch.testing.assert_close(together[one], to_output(output[one], state[one], steps[one]))
        own = copy.deepcopy(scheduler).step(output[one], scheduler.timesteps[steps[i]], state[one])
        torch.testing.assert_close(together[one], own.pred_original_sample, rtol=1e-4, atol=1e-5)


def test_half_precision_outputs_are_clipped_in_float32() -> None:
    to_output = read_scheduler(Case("DDIMScheduler").make()).to_output
    output = torch.randn(3, 4, dtype=torch.bfloat16)
    assert to_output(output, output, torch.tensor([0, 1, 2])).dtype == torch.float32


def test_clipped_tables_are_written_in_data_predictions() -> None:
    table = read_scheduler(Case("DDIMScheduler").make()).table
    assert set(table.x0_state) == {0.0} and set(table.x0_output) == {1.0}


# ------------------------------------------------------------------ the user's objects stay as they were


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistep", "UniPCMultistep", "EulerAncestralDiscrete", "PNDM", "DDIM"]
)
def test_scheduler_and_random_state_are_untouched(name: str) -> None:
    scheduler = Case(f"{name}Scheduler").make()
    before, random_state = copy.deepcopy(vars(scheduler)), torch.get_rng_state()
    read_scheduler(scheduler)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert vars(scheduler).keys() == before.keys()
    for key, value in vars(scheduler).items():
        same = (
            torch.equal(value, before[key]) if isinstance(value, Tensor) else repr(value) == repr(before[key])
        )
        assert same, key


def test_begin_index_set_by_the_pipeline_is_followed() -> None:
    scheduler = Case("DPMSolverMultistepScheduler").make()
    scheduler.set_begin_index(4)
    read = read_scheduler(scheduler)
    assert read.table.num_steps == 6
    assert read.table == read_scheduler(Case("DPMSolverMultistepScheduler").make(), begin_index=4).table


def test_equal_schedules_are_read_once_and_others_again() -> None:
    config = {"use_dynamic_shifting": True}
    case = Case("FlowMatchEulerDiscreteScheduler", config, timesteps={"mu": 0.7})
    first = read_scheduler(case.make())
    assert read_scheduler(case.make()) is first
    other = Case("FlowMatchEulerDiscreteScheduler", config, timesteps={"mu": 0.8})
    assert read_scheduler(other.make()).table != first.table
    ddim = Case("DDIMScheduler").make()
    assert read_scheduler(ddim, step_kwargs={"eta": 1.0}).table != read_scheduler(ddim).table


# ------------------------------------------------------------------ refusals


class Nonlinear(diffusers.EulerDiscreteScheduler):
    def step(self, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().step(torch.tanh(model_output), *args, **kwargs)


class OwnNoise(diffusers.EulerDiscreteScheduler):
    """Draws without the generator, as Brownian trees do."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        result = super().step(*args, **kwargs)
        result.prev_sample = result.prev_sample + 1e-3 * torch.rand(result.prev_sample.shape)
        return result


class Averaging(diffusers.EulerDiscreteScheduler):
    """Remembers all outputs for ever."""

    average: Any = 0.0

    def step(self, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.average = 0.5 * self.average + 0.5 * model_output
        return super().step(self.average, *args, **kwargs)


class DrawsTwice(diffusers.EulerAncestralDiscreteScheduler):
    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, **kwargs: Any
    ) -> Any:
        noise = torch.randn(sample.shape, generator=generator)
        return super().step(model_output, timestep, sample + noise, generator=generator, **kwargs)


class Softened(diffusers.DDPMScheduler):
    """Thresholds each sample by what the others are."""

    def _threshold_sample(self, sample: Tensor) -> Tensor:
        return super()._threshold_sample(sample) * float(sample.abs().mean())


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (Nonlinear(), "differs from the coefficients"),
        (OwnNoise(), "history is not bounded"),
        (Averaging(), "history is not bounded"),
        (DrawsTwice(), "draws noise more than once"),
        (diffusers.DDPMScheduler(variance_type="learned_range"), "size of its noise from the model's output"),
        (diffusers.DDPMScheduler(variance_type="learned"), "size of its noise from the model's output"),
        (diffusers.RePaintScheduler(), "original_image"),
        (diffusers.CogVideoXDPMScheduler(), "timestep_back"),
        (ScoreSdeVpScheduler(), "no step"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_refused_with_its_reason_and_a_remedy(scheduler: Any, reason: str) -> None:
    scheduler.set_timesteps(20)
    with pytest.raises(UnsupportedPipelineError, match=reason) as error:
        read_scheduler(scheduler)
    assert type(scheduler).__name__ in str(error.value) and "run it sequentially" in str(error.value)


def test_steps_that_are_not_finite_are_refused() -> None:
    """1000 linearly spaced steps repeat timesteps, and multistep solvers divide by their distance."""
    with pytest.raises(UnsupportedPipelineError, match="NaN or infinity"):
        read_scheduler(Case("DPMSolverMultistepScheduler", steps=1000).make())


def test_a_given_noise_tensor_is_refused() -> None:
    scheduler = Case("DDIMScheduler").make()
    with pytest.raises(UnsupportedPipelineError):
        read_scheduler(scheduler, step_kwargs={"eta": 1.0, "variance_noise": torch.ones(2, 2, 2, 2)})


def test_thresholding_that_mixes_the_samples_of_a_batch_is_refused() -> None:
    scheduler = Softened(thresholding=True)
    scheduler.set_timesteps(5)
    with pytest.raises(UnsupportedPipelineError, match="differs from the coefficients"):
        read_scheduler(scheduler)


def test_timesteps_must_have_been_set_and_begin_must_be_one_of_them() -> None:
    with pytest.raises(ConfigError, match="set_timesteps"):
        read_scheduler(diffusers.DDIMScheduler())
    with pytest.raises(ConfigError, match="outside 0..9"):
        read_scheduler(Case("DDIMScheduler").make(), begin_index=10)
