"""A scheduler's table reproduces the scheduler's own sequential steps and knows its noise levels."""

from __future__ import annotations

import math

import pytest
import torch
from scheduler_cases import Case, grid, relative, replay, sequential, start_of

from parasample.bridge.schedulers import ReadScheduler, read_scheduler

# Relative to the final sample, over a whole run in float32 against the table in float64.
TOLERANCE = 1e-4
# Classes that divide a rounded difference by a small sigma: float32 itself is this far from float64.
ROUNDING = {"FlowMatchHeunDiscreteScheduler": 1e-3}

LMS = [
    Case("LMSDiscreteScheduler", config, steps=steps)
    for config in ({}, {"use_karras_sigmas": True}, {"prediction_type": "v_prediction"})
    for steps in (1, 2, 3, 10)
]
SCIPY = [
    Case(name, {"use_beta_sigmas": True}) for name in ("EulerDiscreteScheduler", "UniPCMultistepScheduler")
]


def _reproduces(case: Case) -> None:
    scheduler = case.make()
    read = read_scheduler(scheduler, begin_index=case.begin, step_kwargs=case.kwargs)
    start = start_of(scheduler)
    run = sequential(scheduler, case, start)
    assert all(state.isfinite().all() for state in run.states)
    assert read.table.timesteps == tuple(scheduler.timesteps[case.begin or 0 :].double().tolist())
    for scale, state, scaled in zip(read.table.input_scale, run.states, run.inputs, strict=False):
        torch.testing.assert_close(scaled, scale * state)
    tolerance = ROUNDING.get(case.name, TOLERANCE)
    generator = torch.Generator().manual_seed(7)
    assert relative(replay(read, start, run.outputs, generator)[-1], run.states[-1].double()) < tolerance
    _is_sound(read)
    assert torch.equal(generator.get_state(), run.generator.get_state()), "the generators moved differently"
    closed = replay(read, start, None, torch.Generator().manual_seed(7))
    assert relative(closed[-1], run.states[-1].double()) < tolerance


def _is_sound(read: ReadScheduler) -> None:
    """What users of a table divide by is not 0, and no level is negative."""
    assert all(math.isfinite(value) and value > 0 for value in read.table.variance)
    assert all(value >= 0 for value in (*read.table.alpha, *read.table.sigma))
    assert all(value != 0 for value in read.table.x0_output)


@pytest.mark.parametrize("case", grid(), ids=str)
def test_table_reproduces_sequential_steps(case: Case) -> None:
    _reproduces(case)


@pytest.mark.parametrize("case", LMS + SCIPY, ids=str)
def test_table_reproduces_sequential_steps_where_scipy_is_installed(case: Case) -> None:
    pytest.importorskip("scipy", reason="diffusers computes these coefficients with scipy")
    _reproduces(case)


@pytest.mark.parametrize(
    ("case", "depth"),
    [
        (Case("DDIMScheduler"), 0),
        (Case("DPMSolverMultistepScheduler"), 1),
        (Case("DPMSolverMultistepScheduler", {"solver_order": 3}), 2),
        (Case("HeunDiscreteScheduler"), 1),
        (Case("PNDMScheduler", {"skip_prk_steps": True}), 4),
        (Case("PNDMScheduler", steps=20), 12),
        (Case("UniPCMultistepScheduler"), 2),
        (Case("UniPCMultistepScheduler", {"solver_order": 3}, steps=50), 3),
        (Case("SASolverScheduler", steps=20), 2),
    ],
    ids=str,
)
def test_depth_is_the_smallest_that_fits(case: Case, depth: int) -> None:
    assert read_scheduler(case.make()).table.depth == depth


# ------------------------------------------------------------------ noise levels and data predictions


def test_levels_are_in_the_state_s_own_convention() -> None:
    ddim = Case("DDIMScheduler", {"clip_sample": False}).make()
    table = read_scheduler(ddim).table
    alpha = [float(ddim.alphas_cumprod[t].sqrt()) for t in ddim.timesteps]
    assert table.alpha == pytest.approx([*alpha, 1.0], rel=1e-5)
    assert all(
        math.hypot(a, s) == pytest.approx(1.0, abs=1e-6)
        for a, s in zip(table.alpha, table.sigma, strict=True)
    )
    euler = Case("EulerDiscreteScheduler").make()
    table = read_scheduler(euler).table
    assert table.alpha == pytest.approx([1.0] * 11) and table.sigma == pytest.approx(
        euler.sigmas.tolist(), abs=1e-9
    )
    flow = Case("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}).make()
    table = read_scheduler(flow).table
    assert table.sigma == pytest.approx(flow.sigmas.tolist()) and table.alpha[0] == pytest.approx(0.0)


def test_halfway_evaluations_have_their_own_level() -> None:
    """KDPM2 evaluates between the levels that its add_noise knows."""
    scheduler = Case("KDPM2DiscreteScheduler").make()
    table = read_scheduler(scheduler).table
    assert table.sigma[1] == pytest.approx(float(scheduler.sigmas_interpol[1]), rel=1e-4)


@pytest.mark.parametrize(
    ("case", "sigma"),
    [
        (Case("DDIMScheduler", {"set_alpha_to_one": False}), 0.01),
        (Case("DPMSolverMultistepScheduler"), 0.0),
        (Case("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}), 0.01),
        (Case("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}), 0.01),
        (Case("FlowMatchEulerDiscreteScheduler"), 0.0),
        (Case("UniPCMultistepScheduler"), 0.0),
    ],
    ids=str,
)
def test_final_level_is_the_scheduler_s_own_end(case: Case, sigma: float) -> None:
    table = read_scheduler(case.make()).table
    assert table.alpha[-1] == pytest.approx(1.0, abs=1e-4)
    assert table.sigma[-1] == pytest.approx(sigma, abs=1e-5)


TWINS = [
    Case(f"{name}Scheduler", {**extra, "prediction_type": kind})
    for name, extra in (
        ("DDIM", {"clip_sample": False}),
        ("DDPM", {"clip_sample": False}),
        ("EulerDiscrete", {}),
        ("HeunDiscrete", {}),
        ("DPMSolverMultistep", {}),
        ("DPMSolverMultistep", {"use_karras_sigmas": True}),
        ("UniPCMultistep", {}),
        ("DEISMultistep", {}),
        ("LCM", {}),
        ("TCD", {}),
    )
    for kind in ("epsilon", "v_prediction")
] + [Case("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True})]


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_data_prediction_agrees_with_the_scheduler_s_sample_twin(case: Case) -> None:
    """The twin that predicts data has coefficients A', B': D = ((A - A') x + B m) / B'."""
    ours = read_scheduler(case.make()).table
    twin = read_scheduler(case.make(prediction_type="sample")).table
    for i in range(ours.num_steps):
        # float32 coefficients leave rounding in the difference A - A', magnified by 1 / B'.
        rounding = 3e-6 * max(1.0, abs(ours.state[i][0])) / abs(twin.output[i][0])
        state = (ours.state[i][0] - twin.state[i][0]) / twin.output[i][0]
        assert ours.x0_state[i] == pytest.approx(state, rel=1e-3, abs=rounding)
        assert ours.x0_output[i] == pytest.approx(ours.output[i][0] / twin.output[i][0], rel=1e-3)
