"""Schedulers with every setting that changes their coefficients, and their sequential and tabulated runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor

from parasample.bridge.schedulers import ReadScheduler

SHAPE = (2, 3, 2, 2)  # [B, C, H, W]


@dataclass(frozen=True)
class Case:
    """A scheduler and how it is run; `timesteps` are set_timesteps' arguments."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = 10
    timesteps: Mapping[str, Any] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    begin: int | None = None

    def __str__(self) -> str:
        settings = {**self.config, **self.timesteps, **self.kwargs}
        short = [f"{key}={value}" for key, value in settings.items() if not isinstance(value, list)]
        begin = [] if self.begin is None else [f"begin{self.begin}"]
        return "-".join([self.name.removesuffix("Scheduler"), f"T{self.steps}", *short, *begin])

    def make(self, **changes: Any) -> Any:
        scheduler = getattr(diffusers, self.name)(**{**self.config, **changes})
        scheduler.set_timesteps(
            **({} if self.steps is None else {"num_inference_steps": self.steps}), **self.timesteps
        )
        return scheduler


@dataclass
class Run:
    """A sequential run by the scheduler's own step."""

    states: list[Tensor]
    outputs: list[Tensor]
    inputs: list[Tensor]
    generator: torch.Generator


def model(scaled: Tensor, timestep: Tensor) -> Tensor:
    """A smooth, nonlinear, contracting stand-in for a denoiser."""
    return torch.tanh(0.7 * scaled + 0.1 * float(timestep) / 1000) * 0.9 - 0.2 * scaled


def sequential(scheduler: Any, case: Case, start: Tensor) -> Run:
    """Loop as pipelines do, on a copy of the scheduler."""
    scheduler = copy.deepcopy(scheduler)
    if case.begin is not None and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(case.begin)
    run = Run([start], [], [], torch.Generator().manual_seed(7))
    kwargs = dict(case.kwargs)
    if "generator" in scheduler.step.__code__.co_varnames:
        kwargs["generator"] = run.generator
    for timestep in scheduler.timesteps[case.begin or 0 :]:
        scaled = run.states[-1]
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(scaled, timestep)
        run.inputs.append(scaled)
        run.outputs.append(model(scaled, timestep))
        step = scheduler.step(run.outputs[-1], timestep, run.states[-1], return_dict=False, **kwargs)
        run.states.append(step[0])
    return run


def replay(
    read: ReadScheduler, start: Tensor, outputs: list[Tensor] | None, generator: torch.Generator
) -> list[Tensor]:
    """The table's own run in float64: with given raw outputs, or (None) with the model in the loop."""
    table, states, converted = read.table, [start.double()], []
    for i in range(table.num_steps):
        state = states[-1]
        raw = (
            outputs[i]
            if outputs is not None
            else model(table.input_scale[i] * state, torch.tensor(table.timesteps[i]))
        )
        steps = torch.full((len(state),), i)
        converted.append(
            raw.double() if read.to_output is None else read.to_output(raw.double(), state, steps)
        )
        draw = read.noise.draw(i, start, generator)
        state = torch.zeros_like(state) if draw is None else table.noise[i] * draw.double()
        for k in range(min(i, table.depth) + 1):
            state = state + table.state[i][k] * states[i - k] + table.output[i][k] * converted[i - k]
        states.append(state)
    return states


def start_of(scheduler: Any) -> Tensor:
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    return start * float(getattr(scheduler, "init_noise_sigma", 1.0))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.square().mean().sqrt())


def grid() -> list[Case]:
    """Every scheduler with what changes its coefficients, one row each."""
    beta = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    no_clip = {"clip_sample": False}
    v = {"prediction_type": "v_prediction"}
    minimum = {"final_sigmas_type": "sigma_min"}
    spacings = [{"timestep_spacing": spacing} for spacing in ("leading", "linspace", "trailing")]
    zero_snr = {**v, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    thresholding = {"thresholding": True, "sample_max_value": 1.5}
    cases = []

    def add(name: str, *configs: Mapping[str, Any], **options: Any) -> None:
        cases.extend(Case(f"{name}Scheduler", config, **options) for config in configs or ({},))

    ddim = [{**no_clip, **spacing} for spacing in spacings]
    ddim += [{**no_clip, "set_alpha_to_one": False}, {"set_alpha_to_one": False}, {}, {**no_clip, **v}]
    ddim += [{**no_clip, "prediction_type": "sample"}, {**beta, "clip_sample_range": 0.5}]
    ddim += [thresholding, {**v, **thresholding}]
    for kwargs in ({}, {"eta": 0.5}, {"eta": 1.0}, {"eta": 0.5, "use_clipped_model_output": True}):
        add("DDIM", *ddim, kwargs=kwargs)
    add("DDIM", {**no_clip, **zero_snr})  # not with eta = 1, which takes the root of a negative number there
    add("DDIMParallel", {}, no_clip, kwargs={"eta": 0.5})
    ddpm = [{**no_clip, **spacing} for spacing in spacings] + [{**no_clip, "prediction_type": "sample"}]
    ddpm += [{**no_clip, "variance_type": kind} for kind in ("fixed_small", "fixed_small_log", "fixed_large")]
    ddpm += [{**no_clip, **v}, {**no_clip, **zero_snr}, {}, thresholding]
    add("DDPM", *ddpm)
    add("DDPM", no_clip, steps=None, timesteps={"timesteps": [900, 700, 400, 200, 10]})
    add("DDPMParallel", {}, no_clip)

    for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"):
        end = {} if algorithm.endswith("++") else minimum
        for order in (1, 2, 3):
            if (algorithm, order) == ("sde-dpmsolver", 3):
                continue  # diffusers has no such update
            settings = {"algorithm_type": algorithm, "solver_order": order, **end}
            add("DPMSolverMultistep", settings, {**settings, "solver_type": "heun"})
    for setting in ({"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_lu_lambdas": True}):
        add("DPMSolverMultistep", setting, {**setting, "algorithm_type": "sde-dpmsolver++"}, steps=20)
    for setting in (
        {"lower_order_final": False},
        {"euler_at_final": True},
        minimum,
        v,
        zero_snr,
        thresholding,
    ):
        add("DPMSolverMultistep", {"solver_order": 3, **setting})
    add("DPMSolverMultistep", {"prediction_type": "sample"}, *spacings)
    add(
        "DPMSolverMultistep",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    )
    for order in (1, 2, 3):
        add(
            "DPMSolverSinglestep", {"solver_order": order}, {"solver_order": order, "use_karras_sigmas": True}
        )
    add(
        "DPMSolverSinglestep", {"algorithm_type": "sde-dpmsolver++"}, {"solver_type": "heun"}, v, thresholding
    )
    add("DPMSolverSinglestep", {"algorithm_type": "dpmsolver", **minimum})
    add("DEISMultistep", {}, {"solver_order": 3}, {"use_karras_sigmas": True}, v, thresholding)

    add(
        "EulerDiscrete",
        {},
        *spacings,
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        v,
        zero_snr,
    )
    add("EulerDiscrete", beta, {"prediction_type": "sample"}, minimum)
    add("EulerDiscrete", {}, kwargs={"s_churn": 3.0, "s_noise": 1.1})
    add("EulerAncestralDiscrete", {}, *spacings, v, zero_snr)
    add("HeunDiscrete", {}, beta, *spacings, {"use_karras_sigmas": True}, v, {"prediction_type": "sample"})
    add("HeunDiscrete", {"clip_sample": True})
    add("KDPM2Discrete", {}, {"use_karras_sigmas": True}, v)
    add("KDPM2AncestralDiscrete", {}, {"use_karras_sigmas": True}, v)
    add(
        "FlowMatchEulerDiscrete",
        {},
        {"shift": 3.0},
        {"stochastic_sampling": True},
        {"use_karras_sigmas": True},
    )
    add("FlowMatchEulerDiscrete", {"invert_sigmas": True}, {"shift": 2.0, "shift_terminal": 0.1})
    add("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}, timesteps={"mu": 1.1})
    add("FlowMatchEulerDiscrete", {}, steps=None, timesteps={"sigmas": [1.0, 0.8, 0.5, 0.45, 0.1]})
    add("FlowMatchHeunDiscrete", {}, {"shift": 3.0})
    add("FlowMatchLCM", {})
    add("LTXEulerAncestralRF", {}, {"eta": 0.5})

    add(
        "PNDM",
        {},
        {"skip_prk_steps": True},
        {"skip_prk_steps": True, **v},
        {"set_alpha_to_one": True},
        steps=20,
    )
    add("PNDM", *({"skip_prk_steps": True, **spacing} for spacing in spacings))
    add("IPNDM", {})
    add("LCM", {}, v, {"prediction_type": "sample"}, {"clip_sample": True}, thresholding, steps=8)
    for eta in (0.0, 0.3, 1.0):
        add("TCD", {}, v, steps=8, kwargs={"eta": eta})
    add("EDMEuler", {}, v, {"sigma_schedule": "exponential"}, minimum)
    add("EDMEuler", {}, kwargs={"s_churn": 3.0})
    add(
        "EDMDPMSolverMultistep",
        {},
        v,
        {"solver_order": 3},
        {"algorithm_type": "sde-dpmsolver++"},
        thresholding,
    )
    add("CMStochasticIterative", {})
    add("CogVideoXDDIM", {}, v)

    for order in (1, 2, 3):
        add("UniPCMultistep", {"solver_order": order}, {"solver_order": order, **v})
        add("UniPCMultistep", {"solver_order": order, "predict_x0": False, **minimum})
    add(
        "UniPCMultistep",
        {"solver_type": "bh1", **minimum},
        {"use_karras_sigmas": True},
        {"disable_corrector": [0, 1]},
    )
    add("UniPCMultistep", {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0})
    add("UniPCMultistep", {"prediction_type": "sample"}, thresholding, zero_snr, steps=20)
    for orders in ((1, 1), (2, 2), (3, 4)):
        add("SASolver", {"predictor_order": orders[0], "corrector_order": orders[1]}, steps=20)
    add(
        "SASolver",
        {"algorithm_type": "noise_prediction"},
        v,
        thresholding,
        {"use_karras_sigmas": True},
        steps=20,
    )

    every = (
        "DDPM DDIM DPMSolverMultistep DPMSolverSinglestep EulerDiscrete EulerAncestralDiscrete HeunDiscrete"
    )
    every += (
        " PNDM FlowMatchEulerDiscrete FlowMatchHeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete IPNDM LCM"
    )
    every += " UniPCMultistep SASolver TCD EDMEuler EDMDPMSolverMultistep DEISMultistep"
    for name in every.split():
        # IPNDM's only step of one goes to the point 0, whatever the model says.
        for steps in (2, 3, 50) if name == "IPNDM" else (1, 2, 3, 50):
            add(name, {"skip_prk_steps": True} if name == "PNDM" else {}, steps=steps)
    # Multistep solvers space 1000 steps over timesteps that repeat, and then divide by zero themselves.
    for name in ("DDPM", "DDIM", "EulerDiscrete", "FlowMatchEulerDiscrete", "PNDM", "DPMSolverSinglestep"):
        add(name, steps=1000)
    add("DPMSolverMultistep", {"timestep_spacing": "trailing"}, steps=1000)
    # Image to image starts late; what was the first step's order then is a later step's.
    late = (
        "DDIM DDPM EulerDiscrete DPMSolverMultistep UniPCMultistep DEISMultistep FlowMatchEulerDiscrete IPNDM"
    )
    late += " LCM"
    for name in late.split():
        add(name, begin=4)
    add("HeunDiscrete", begin=6)
    add("PNDM", {"skip_prk_steps": True}, begin=4)
    return cases
