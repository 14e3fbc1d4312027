"""Law 1 through `ps.sample`: with tolerance 0 the sample is the sequential loop's, to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import SCHEDULERS, make_scheduler, mixture_epsilon, noise, seeded, sequential, start, step_arguments

import parasample as ps
from parasample.config import UPDATES

STEPS = 9


def both(
    name: str, config: ps.Picard, batch: int = 3, generators: Any = lambda: seeded(5)
) -> tuple[torch.Tensor, ps.Solution, Any]:
    """The sequential sample, the parallel solution and the generators that each left behind."""
    x_T, first, second = start(name, batch, 2, 4, 4), generators(), generators()
    expected = sequential(mixture_epsilon, make_scheduler(name), x_T, STEPS, first, **step_arguments(name))
    found = ps.sample(
        mixture_epsilon, make_scheduler(name), x_T, config, STEPS,
        generator=second, step_kwargs=step_arguments(name),
    )  # fmt: skip
    return expected, found, (first, second)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * max(scale, 1.0))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("window", [1, 5, "full"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_tolerance_zero_equals_sequential(name: str, window: Any, update: Any) -> None:
    expected, found, _ = both(name, ps.Picard(window=window, tolerance=0, update=update))
    assert_same(found.sample, expected)
    assert found.stats.rounds <= found.stats.num_steps


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++2m"])
def test_few_states_per_round(name: str, limit: int) -> None:
    expected, found, _ = both(name, ps.Picard(window=5, tolerance=0, states_per_round=limit))
    assert_same(found.sample, expected)
    assert max(found.stats.window) <= limit * 3, "3 samples, at most `limit` states of each"


@pytest.mark.parametrize("name", ["ddpm", "ddim-eta1", "euler-ancestral", "sde-dpm++", "lcm"])
def test_one_generator_per_sample(name: str) -> None:
    expected, found, (first, second) = both(
        name, ps.Picard(window=4, tolerance=0), generators=lambda: [seeded(1), seeded(2), seeded(3)]
    )
    assert_same(found.sample, expected)
    for ours, theirs in zip(second, first, strict=True):
        assert torch.equal(ours.get_state(), theirs.get_state()), (
            "generators must end where sequential leaves them"
        )


@pytest.mark.parametrize("name", ["ddpm", "euler-ancestral"])
def test_global_generator(name: str) -> None:
    def seed_globally() -> None:
        torch.manual_seed(11)

    x_T = start(name, 2, 2, 4, 4)
    seed_globally()
    expected = sequential(mixture_epsilon, make_scheduler(name), x_T, STEPS)
    after = torch.get_rng_state()
    seed_globally()
    found = ps.sample(mixture_epsilon, make_scheduler(name), x_T, ps.Picard(window=4, tolerance=0), STEPS)
    assert_same(found.sample, expected)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++2m", "unipc"])
def test_float64_agrees_to_its_own_rounding(name: str) -> None:
    x_T = start(name, 2, 2, 4, 4, dtype=torch.float64)
    expected = sequential(mixture_epsilon, make_scheduler(name), x_T, STEPS, seeded(5))
    found = ps.sample(
        mixture_epsilon,
        make_scheduler(name),
        x_T,
        ps.Picard(window=4, tolerance=0),
        STEPS,
        generator=seeded(5),
    )
    # Schedulers keep their own tables in float32, so 1e-7 is what their arithmetic promises.
    torch.testing.assert_close(found.sample, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["tuple", "object"])
def test_other_forms_of_model_output(form: str) -> None:
    class Output:
        def __init__(self, sample: torch.Tensor) -> None:
            self.sample = sample

    def model(x: torch.Tensor, t: torch.Tensor) -> Any:
        output = mixture_epsilon(x, t)
        return (output, "more") if form == "tuple" else Output(output)

    x_T, config = start("ddim", 2, 6), ps.Picard(window=3, tolerance=0)
    expected = ps.sample(mixture_epsilon, make_scheduler("ddim"), x_T, config, STEPS).sample
    assert torch.equal(ps.sample(model, make_scheduler("ddim"), x_T, config, STEPS).sample, expected)


@pytest.mark.parametrize("batch", [1, 3])
def test_conditioning_stays_with_its_sample(batch: int) -> None:
    """Batched conditioning is repeated per state; what has no batch dimension is passed as it is."""
    own, shared = noise(batch, 6, seed=3), noise(5, 6, seed=4)

    def model(
        x: torch.Tensor, t: torch.Tensor, cond: dict[str, torch.Tensor], table: torch.Tensor
    ) -> torch.Tensor:
        assert cond["own"].shape[0] == x.shape[0] and table is shared
        return mixture_epsilon(x + 0.3 * cond["own"], t) + 0.1 * table.mean(0)

    x_T, conditioning = start("ddpm", batch, 6), {"cond": {"own": own}, "table": shared}
    expected = sequential(
        lambda x, t: model(x, t, **conditioning), make_scheduler("ddpm"), x_T, STEPS, seeded(5)
    )
    found = ps.sample(
        model, make_scheduler("ddpm"), x_T, ps.Picard(window=4, tolerance=0), STEPS, conditioning, seeded(5)
    )
    assert_same(found.sample, expected)


def test_shared_conditioning_is_never_indexed() -> None:
    """A table that has as many rows as the batch by accident reaches every call as the very same object."""
    batch = 3
    own, table = noise(batch, 6, seed=3), noise(batch, 6, seed=4)

    def model(x: torch.Tensor, t: torch.Tensor, own: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        assert own.shape[0] == x.shape[0]
        return mixture_epsilon(x + 0.3 * own, t) + 0.1 * table.mean(0)

    def watched(x: torch.Tensor, t: torch.Tensor, own: torch.Tensor, **shared: Any) -> torch.Tensor:
        assert shared["table"] is table and shared["groups"] == 2
        return model(x, t, own, table)

    x_T = start("ddim", batch, 6)
    expected = sequential(lambda x, t: model(x, t, own, table), make_scheduler("ddim"), x_T, STEPS)
    found = ps.sample(
        watched, make_scheduler("ddim"), x_T, ps.Picard(window=4, tolerance=0), STEPS,
        model_kwargs={"own": own}, shared_kwargs={"table": table, "groups": 2},
    )  # fmt: skip
    assert_same(found.sample, expected)


def test_scheduler_that_starts_late() -> None:
    """`set_begin_index` (image to image) starts at that step."""
    scheduler = make_scheduler("dpm++2m")
    scheduler.set_timesteps(12)
    scheduler.set_begin_index(5)
    x = noise(2, 6)
    found = ps.sample(mixture_epsilon, scheduler, x, ps.Picard(window=4, tolerance=0))
    for t in scheduler.timesteps[5:]:
        x = scheduler.step(mixture_epsilon(x, t.expand(2)), t, x, return_dict=False)[0]
    assert found.stats.num_steps == 7
    assert_same(found.sample, x)


def test_the_callers_scheduler_is_untouched() -> None:
    scheduler = make_scheduler("dpm++2m")
    before = repr(sorted(vars(scheduler).items()))
    ps.sample(mixture_epsilon, scheduler, noise(2, 6), ps.Picard(window=4, tolerance=0), STEPS)
    assert repr(sorted(vars(scheduler).items())) == before
