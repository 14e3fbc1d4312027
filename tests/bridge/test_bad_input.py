"""Bad input is refused with what was expected, what was found and what to do: one row each."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tiny_pipelines import run, stable_diffusion
from toy import make_scheduler, mixture_epsilon, noise, seeded

import parasample as ps

METHOD = ps.Picard(window=3, tolerance=0)

CONFIG = {
    "window-0": ({"window": 0}, ["window=0", "below 1", "pass"]),
    "window-negative": ({"window": -4}, ["window=-4", "below 1"]),
    "window-float": ({"window": 2.0}, ["window=2.0", "number of steps"]),
    "window-bool": ({"window": True}, ["window=True", "number of steps"]),
    "window-word": ({"window": "all"}, ["'all'", "full", "auto"]),
    "tolerance-negative": ({"tolerance": -0.1}, ["tolerance=-0.1", "at least 0"]),
    "tolerance-nan": ({"tolerance": float("nan")}, ["tolerance=nan", "finite"]),
    "tolerance-inf": ({"tolerance": float("inf")}, ["tolerance=inf", "finite"]),
    "tolerance-word": ({"tolerance": "tight"}, ["tolerance='tight'", "number"]),
    "tolerance-bool": ({"tolerance": False}, ["tolerance=False", "number", "pass"]),
    "update-unknown": ({"update": "newton"}, ["'newton'", "published", "secant"]),
    "stopping-unknown": ({"stopping": "never"}, ["'never'", "x0", "published"]),
    "exact-with-tolerance": ({"exact": True, "tolerance": 0.1}, ["exact=True", "pass tolerance=0"]),
    "states-per-round-0": ({"states_per_round": 0}, ["states_per_round=0", "at least 1"]),
    "states-per-round-float": ({"states_per_round": 1.5}, ["states_per_round=1.5", "whole number"]),
    "states-per-round-bool": ({"states_per_round": True}, ["states_per_round=True", "whole number", "pass"]),
    "prior-variance-0": ({"prior_variance": 0.0}, ["prior_variance=0.0", "positive"]),
    "prior-variance-word": ({"prior_variance": "1"}, ["prior_variance='1'", "number", "pass"]),
    "prior-variance-bool": ({"prior_variance": True}, ["prior_variance=True", "number", "pass"]),
    "memory-9": ({"memory": 9}, ["memory=9", "1 to 8"]),
    "memory-bool": ({"memory": True}, ["memory=True", "1 to 8", "pass"]),
    "exact-word": ({"exact": "yes", "tolerance": 0}, ["exact='yes'", "True nor False", "pass"]),
    "record-number": ({"record": 3}, ["record=3", "True nor False", "pass"]),
    "memory-float": ({"memory": 2.0}, ["memory=2.0", "whole number"]),
}  # fmt: skip


def assert_says(error: pytest.ExceptionInfo[Any], words: list[str]) -> None:
    message = str(error.value)
    assert all(word in message for word in words), f"{message!r} lacks one of {words}"


@pytest.mark.parametrize("row", CONFIG)
def test_config(row: str) -> None:
    arguments, words = CONFIG[row]
    with pytest.raises(ps.ConfigError) as error:
        ps.Picard(**arguments)
    assert_says(error, words)


@pytest.mark.parametrize(
    ("name", "value"),
    [("window", np.int64(7)), ("states_per_round", np.int32(4)), ("memory", np.uint8(3)),
     ("tolerance", np.float32(0.5)), ("tolerance", np.float64(0.25)), ("prior_variance", np.int64(2)),
     ("record", np.bool_(True))],
    ids=lambda value: type(value).__name__ if isinstance(value, np.generic) else value,
)  # fmt: skip
def test_numpy_numbers_become_plain_ones(name: str, value: Any) -> None:
    config = ps.Picard(**{name: value})
    assert type(getattr(config, name)) in (bool, int, float)
    assert config == ps.Picard(**{name: value.item()})
    number = value.item() if name != "prior_variance" else float(value)
    assert repr(config) == repr(ps.Picard(**{name: number})), "ranks compare methods by how they print"


def solve(
    model: Any = mixture_epsilon, scheduler: str = "ddim", method: Any = METHOD, **changes: Any
) -> None:
    arguments: dict[str, Any] = {"x_T": noise(2, 6), "num_inference_steps": 5} | changes
    ps.sample(model, make_scheduler(scheduler), method=method, **arguments)


def nan_at(step: int) -> Any:
    scheduler = make_scheduler("ddim")
    scheduler.set_timesteps(5)
    bad = scheduler.timesteps[step]
    return lambda x, t: torch.where((t == bad)[:, None], torch.nan, mixture_epsilon(x, t))


SAMPLE: dict[str, tuple[Callable[[], None], type[Exception], list[str]]] = {
    "window-exceeds-steps": (
        lambda: solve(method=ps.Picard(window=6)), ps.ConfigError, ["num_steps=5", "pass window<=5"],
    ),
    "method-missing": (lambda: solve(method=None), ps.ConfigError, ["ps.Picard", "NoneType"]),
    "zero-steps": (
        lambda: solve(num_inference_steps=0), ps.ConfigError, ["num_inference_steps=0", "at least 1"],
    ),
    "no-timesteps": (
        lambda: solve(num_inference_steps=None), ps.ConfigError, ["no timesteps", "num_inference_steps"],
    ),
    "no-batch": (lambda: solve(x_T=noise(6)), ps.ConfigError, ["[batch, ...]", "(6,)", "add a batch"]),
    "float-steps": (
        lambda: solve(num_inference_steps=10.0), ps.ConfigError, ["num_inference_steps=10.0", "whole number"],
    ),
    "start-list": (lambda: solve(x_T=[[0.0, 1.0]]), ps.ConfigError, ["x_T", "list", "torch.randn"]),
    "start-int": (
        lambda: solve(x_T=noise(2, 6).long()), ps.ConfigError, ["floating point", "torch.int64", "pass"],
    ),
    "start-complex": (
        lambda: solve(x_T=noise(2, 6).cfloat()), ps.ConfigError, ["floating point", "torch.complex64"],
    ),
    "start-empty": (lambda: solve(x_T=noise(0, 6)), ps.ConfigError, ["one sample", "x_T", "(0, 6)", "pass"]),
    "start-nan": (
        lambda: solve(x_T=noise(2, 6).index_fill(0, torch.tensor(1), torch.nan)),
        ps.ConfigError, ["x_T has NaN", "pass"],
    ),
    "argument-twice": (
        lambda: solve(model_kwargs={"y": 1}, shared_kwargs={"y": 2}), ps.ConfigError, ["y", "one of them"],
    ),
    "generator-number": (
        lambda: solve(generator=0), ps.ConfigError, ["generator", "torch.Generator", "found int"],
    ),
    "model-name": (lambda: solve(model="m"), ps.ConfigError, ["callable", "found str"]),
    "kwargs-list": (lambda: solve(model_kwargs=[1]), ps.ConfigError, ["model_kwargs", "found list"]),
    "step-kwargs-list": (lambda: solve(step_kwargs=[1]), ps.ConfigError, ["step_kwargs", "found list"]),
    "step-kwargs-unknown": (
        lambda: solve(step_kwargs={"zzz": 1}), ps.ConfigError, ["'zzz'", "DDIMScheduler.step", "eta"],
    ),
    "step-kwargs-nan": (
        lambda: solve(step_kwargs={"eta": float("nan")}), ps.ConfigError, ["eta=nan", "finite"],
    ),
    "scheduler-class": (
        lambda: ps.sample(mixture_epsilon, diffusers.DDPMScheduler, noise(2, 6), METHOD, 5),
        ps.ConfigError, ["instance", "the class DDPMScheduler"],
    ),
    "generators": (
        lambda: solve(scheduler="ddpm", generator=[seeded(0)] * 3), ps.ConfigError, ["2", "list of 3"],
    ),
    "wrong-rows": (
        lambda: solve(lambda x, t: mixture_epsilon(x, t)[:1], method=ps.Picard(2, 0)),
        ps.ConfigError, ["expected", "(1, 6)"],
    ),
    "wrong-shape": (
        lambda: solve(lambda x, t: mixture_epsilon(x, t)[:, :3]), ps.ConfigError, ["expected", "6)", "3)"],
    ),
    "not-a-tensor": (lambda: solve(lambda x, t: None), ps.ConfigError, ["tensor", "NoneType"]),
    "complex-output": (
        lambda: solve(lambda x, t: mixture_epsilon(x, t).cfloat()), ps.ConfigError, ["floating", "complex64"],
    ),
    "whole-output": (lambda: solve(lambda x, t: x.long()), ps.ConfigError, ["floating point", "int64"]),
    "nan-first": (lambda: solve(nan_at(0)), ps.DivergedError, ["round 1", "step 0", "sample 0", "NaN"]),
    "nan-later": (lambda: solve(nan_at(3)), ps.DivergedError, ["round", "step 3", "sequentially"]),
    "nan-last": (lambda: solve(nan_at(4)), ps.DivergedError, ["step 4"]),
    "nan-exact": (
        lambda: solve(nan_at(4), method=ps.Picard(2, 0, exact=True)), ps.DivergedError, ["step 4"],
    ),
    "learned-variance": (
        lambda: ps.sample(
            mixture_epsilon, diffusers.DDPMScheduler(variance_type="learned_range"), noise(2, 6), METHOD, 5
        ), ps.UnsupportedPipelineError, ["DDPMScheduler", "learned", "sequentially"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", SAMPLE)
def test_sample(row: str) -> None:
    action, kind, words = SAMPLE[row]
    with pytest.raises(kind) as error:
        action()
    assert_says(error, words)


@pytest.fixture
def tiny() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    return stable_diffusion(2, scheduler=make_scheduler("ddim"))


def with_scheduler(pipe: Any, scheduler: Any) -> Any:
    pipe.scheduler = scheduler
    return pipe


PARALLELIZE: dict[str, tuple[Callable[[Any], Any], type[Exception], list[str]]] = {
    "no-method": (lambda pipe: ps.parallelize(pipe), ps.ConfigError, ["one method", "nothing", "ps.Picard"]),
    "wrong-method": (
        lambda pipe: ps.parallelize(pipe, "picard"),  # type: ignore[arg-type]
        ps.ConfigError, ["str", "ps.Picard"],
    ),
    "two-methods": (lambda pipe: ps.parallelize(pipe, METHOD, METHOD), ps.ConfigError, ["one method"]),
    "twice": (
        lambda pipe: [ps.parallelize(pipe, METHOD) for _ in range(2)],
        ps.ConfigError, ["parallelized already", "restore()"],
    ),
    "no-scheduler": (
        lambda pipe: ps.parallelize(SimpleNamespace(unet=pipe.unet), METHOD),
        ps.UnsupportedPipelineError, ["scheduler", "NoneType", "ps.sample"],
    ),
    "not-a-pipeline": (
        lambda pipe: ps.parallelize(pipe.unet, METHOD),
        ps.UnsupportedPipelineError, ["scheduler", "UNet2DConditionModel"],
    ),
    "no-denoiser": (
        lambda pipe: ps.parallelize(SimpleNamespace(scheduler=pipe.scheduler, vae=pipe.vae), METHOD),
        ps.UnsupportedPipelineError, ["no denoiser", "timestep"],
    ),
    "learned-variance": (
        lambda pipe: ps.parallelize(
            with_scheduler(pipe, diffusers.DDPMScheduler(variance_type="learned")), METHOD
        ),
        ps.UnsupportedPipelineError, ["DDPMScheduler", "learned", "sequentially"],
    ),
    "repaint": (
        lambda pipe: ps.parallelize(with_scheduler(pipe, diffusers.RePaintScheduler()), METHOD),
        ps.UnsupportedPipelineError, ["RePaintScheduler", "sequentially"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", PARALLELIZE)
def test_parallelize(tiny: Any, row: str) -> None:
    action, kind, words = PARALLELIZE[row]
    with pytest.raises(kind) as error:
        action(tiny[0])
    assert_says(error, words)


def nan_hook(pipe: Any) -> None:
    pipe.unet.conv_out.register_forward_hook(lambda module, args, output: output * torch.nan)


def shrink_hook(pipe: Any) -> None:
    pipe.unet.register_forward_hook(lambda module, args, output: (output[0][:, :2],))


CALLS: dict[str, tuple[Callable[[Any], None], dict[str, Any], type[Exception], list[str]]] = {
    "window-exceeds-steps": (
        lambda pipe: None, {"num_inference_steps": 2},
        ps.ConfigError, ["window=3", "num_steps=2", "pass window<=2"],
    ),
    "zero-steps": (
        lambda pipe: None, {"num_inference_steps": 0}, ps.ConfigError, ["=0", "at least 1"],
    ),
    "float-steps": (
        lambda pipe: None, {"num_inference_steps": 5.0}, ps.ConfigError, ["=5.0", "not a whole number"],
    ),
    "nan-latents": (
        lambda pipe: None, {"latents": torch.full((2, 4, 8, 8), torch.nan)},
        ps.DivergedError, ["latents of the first step", "NaN"],
    ),
    "generators": (lambda pipe: None, {"generator": [seeded(0)] * 3}, ValueError, ["3", "2"]),
    "nan": (nan_hook, {}, ps.DivergedError, ["round 1", "step 0", "NaN"]),
    "wrong-shape": (shrink_hook, {}, ps.UnsupportedPipelineError, ["shape", "(2, 4, 8, 8)", "(2, 2, 8, 8)"]),
    "scheduler-replaced": (
        lambda pipe: setattr(pipe, "scheduler", make_scheduler("euler")), {},
        ps.ConfigError, ["EulerDiscreteScheduler", "restore()", "parallelize again"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", CALLS)
def test_call(tiny: Any, row: str) -> None:
    prepare, changes, kind, words = CALLS[row]
    pipe, call = tiny
    handle = ps.parallelize(pipe, METHOD)
    prepare(pipe)
    with pytest.raises(kind) as error:
        run(pipe, call, **changes)
    assert_says(error, words)
    handle.restore()


@pytest.mark.parametrize("tolerance", [1e-300, 1e-162, 1e155, 1e300])
@pytest.mark.parametrize("control", ["host", "device"])
def test_tolerances_whose_square_is_out_of_range(tolerance: float, control: Any) -> None:
    method = ps.Picard(window=3, tolerance=tolerance, control=control)
    found = ps.sample(mixture_epsilon, make_scheduler("ddim"), noise(2, 6), method, 5)
    assert found.sample.isfinite().all()
    assert found.stats.rounds == 5 if tolerance < 1 else found.stats.rounds < 5


def test_a_handle_that_was_restored_is_not_entered_again(tiny: Any) -> None:
    handle = ps.parallelize(tiny[0], METHOD)
    with handle:
        assert "StableDiffusionPipeline" in repr(handle) and "window=3" in repr(handle)
    assert "restored" in repr(handle)
    with pytest.raises(ps.ConfigError, match="parallelize again"), handle:
        pass
