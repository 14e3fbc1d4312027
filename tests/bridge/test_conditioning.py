"""Conditioning that changes while a pipeline runs; modules and schedulers shared between pipelines."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import diffusers
import pytest
import torch
from tiny_pipelines import _ddim, _unet, _vae, run, stable_diffusion
from torch import Tensor
from toy import make_scheduler

import parasample as ps

STEPS = 10
UPDATES = ["v", "secant", "anderson", "published"]


def both(
    pipe: Any, call: dict[str, Any], change: Any, method: ps.Picard, **more: Any
) -> tuple[Tensor, Tensor]:
    """The sequential and the parallel result of a call whose callback is `change()`."""
    expected = run(pipe, call, num_inference_steps=STEPS, callback_on_step_end=change(), **more)
    with ps.parallelize(pipe, method):
        found = run(pipe, call, num_inference_steps=STEPS, callback_on_step_end=change(), **more)
    return expected, found


def change_guidance() -> Any:
    def callback(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            pipe._guidance_scale = 1.7
        return {}

    return callback


def change_prompt() -> Any:
    def callback(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": kwargs["prompt_embeds"] * -1.5} if step in (2, 5) else {}

    return callback


def change_prompt_in_place() -> Any:
    def callback(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            kwargs["prompt_embeds"].mul_(-1.5)
        return {}

    return callback


def guidance_off() -> Any:
    """The documented way to stop guidance halfway: one row per sample from then on."""

    def callback(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step != 4:
            return {}
        pipe._guidance_scale = 1.0
        return {"prompt_embeds": kwargs["prompt_embeds"].chunk(2)[-1]}

    return callback


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(
    "change", [change_guidance, change_prompt, change_prompt_in_place, guidance_off], ids=lambda c: c.__name__
)
def test_conditioning_changed_by_a_callback(change: Any, update: Any) -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion(batch=2)
    call |= {name: 20 * call[name] for name in ("prompt_embeds", "negative_prompt_embeds")}  # to be heard
    inputs = ["latents", "prompt_embeds"]
    method = ps.Picard(window="full", tolerance=1e-3, update=update)
    expected, found = both(pipe, call, change, method, callback_on_step_end_tensor_inputs=inputs)
    plain = run(pipe, call, num_inference_steps=STEPS)
    effect = (expected - plain).norm()
    assert effect > 1e-3 * plain.norm(), "the change must matter"
    assert (found - expected).norm() < 0.05 * effect


def controlled(end: float) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    pipe, call = stable_diffusion(batch=1)
    controlnet = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_channels=3).eval()
    with torch.no_grad():  # its outputs start at zero
        for parameter in controlnet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    pipe.vae = diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4, sample_size=64,
    )  # fmt: skip
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **parts, controlnet=controlnet, requires_safety_checker=False
    )
    call = {k: v for k, v in call.items() if k not in ("height", "width")}
    return pipe, call | {"image": torch.rand(1, 3, 64, 64), "control_guidance_end": end}


@pytest.mark.parametrize("end", [1.0, 0.5])
def test_controlnet(end: float) -> None:
    pipe, call = controlled(end)
    expected = run(pipe, call, num_inference_steps=STEPS)
    with ps.parallelize(pipe, ps.Picard(window="full", tolerance=1e-4)) as handle:
        found = run(pipe, call, num_inference_steps=STEPS)
    assert (found - expected).norm() < 1e-3 * expected.norm()
    if end == 1.0:
        assert handle.stats.rounds < STEPS, "residuals made anew for every step are no change of conditioning"


def test_equal_latents_of_a_stochastic_run_are_two_samples() -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion(batch=2, scheduler=make_scheduler("ddpm"), guidance_scale=1.0)
    call["prompt_embeds"] = call["prompt_embeds"][:1].repeat(2, 1, 1)
    call["latents"] = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1)
    expected = run(pipe, call, num_inference_steps=STEPS)
    assert not torch.equal(expected[0], expected[1])
    with ps.parallelize(pipe, ps.Picard(window=4, tolerance=0)):
        torch.testing.assert_close(run(pipe, call, num_inference_steps=STEPS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_small_edits_of_half_precision_latents_count(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion(batch=1)
    pipe.unet.to(dtype), pipe.vae.to(dtype)
    call = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in call.items()}

    def shrink() -> Any:
        return lambda pipe, step, t, kwargs: {"latents": kwargs["latents"] * 0.98}

    expected, found = both(pipe, call, shrink, ps.Picard(window=4, tolerance=0))
    plain = run(pipe, call, num_inference_steps=STEPS)
    assert (expected - plain).norm() > 0.05 * plain.norm()
    assert (found - expected).norm() < 0.02 * expected.norm()


def pair() -> tuple[Any, Any, dict[str, Any]]:
    """Two pipelines around one U-Net, and a call for both."""
    torch.manual_seed(0)
    first, call = stable_diffusion()
    second = diffusers.StableDiffusionPipeline(
        **{k: v for k, v in first.components.items() if k not in ("image_encoder", "scheduler")},
        scheduler=_ddim(), requires_safety_checker=False,
    )  # fmt: skip
    return first, second, call


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first-first", "last-first"])
def test_two_pipelines_around_one_denoiser(order: tuple[int, int]) -> None:
    first, second, call = pair()
    expected = run(first, call)
    handles = [ps.parallelize(pipe, ps.Picard(window=3, tolerance=0)) for pipe in (first, second)]
    for pipe in (first, second):
        torch.testing.assert_close(run(pipe, call), expected, rtol=1e-4, atol=1e-4)
    handles[order[0]].restore()
    for pipe in (first, second):
        torch.testing.assert_close(run(pipe, call), expected, rtol=1e-4, atol=1e-4)
    handles[order[1]].restore()
    assert "forward" not in first.unet.__dict__
    assert torch.equal(run(first, call), expected) and torch.equal(run(second, call), expected)


def test_a_wrapper_put_over_ours_stays() -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion()
    expected = run(pipe, call)
    handle = ps.parallelize(pipe, ps.Picard(window=3, tolerance=0))
    inner = pipe.unet.forward
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inner(*args, **kwargs)

    pipe.unet.forward = counted
    handle.restore()
    assert torch.equal(run(pipe, call), expected) and calls


def test_copies_and_pipelines_made_of_a_parallel_one_are_plain() -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion()
    expected = run(pipe, call)
    handle = ps.parallelize(pipe, ps.Picard(window=3, tolerance=0))
    other = diffusers.StableDiffusionPipeline.from_pipe(pipe, requires_safety_checker=False)
    scheduler = pickle.loads(pickle.dumps(pipe.scheduler))
    assert type(scheduler) is type(copy.deepcopy(pipe.scheduler)) is diffusers.DDIMScheduler
    handle.restore()
    torch.testing.assert_close(run(other, call), expected, rtol=1e-4, atol=1e-4)


def test_a_scheduler_changed_underneath_is_refused() -> None:
    torch.manual_seed(0)
    pipe, call = stable_diffusion()
    scheduler = pipe.scheduler
    with ps.parallelize(pipe, ps.Picard(window=3)):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod * 0.9
        with pytest.raises(ps.ConfigError, match="changed after parallelize"):
            run(pipe, call)


def test_a_pipeline_that_reads_the_data_prediction() -> None:
    torch.manual_seed(0)
    pipe = diffusers.LatentConsistencyModelPipeline(
        vae=_vae(), text_encoder=None, tokenizer=None, unet=_unet(time_cond_proj_dim=8), safety_checker=None,
        scheduler=diffusers.LCMScheduler(), feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    call = {"prompt_embeds": torch.randn(1, 5, 8), "output_type": "latent", "height": 8, "width": 8}
    expected = run(pipe, call)
    with ps.parallelize(pipe, ps.Picard(window=3, tolerance=0)):
        torch.testing.assert_close(run(pipe, call), expected, rtol=1e-4, atol=1e-4)


class Loop:
    """The least a pipeline can be; keeps what `step` returns."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.unet, self.scheduler = _unet(), _ddim()

    @torch.no_grad()
    def __call__(self) -> tuple[Tensor, list[Any]]:
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        context, kept = torch.ones(1, 5, 8), []
        self.scheduler.set_timesteps(5)
        for t in self.scheduler.timesteps:
            output = self.scheduler.step(self.unet(latents, t, context).sample, t, latents)
            latents = output.prev_sample
            kept.append(output)
        return latents, kept


def test_step_returns_the_data_prediction_as_the_scheduler_does() -> None:
    loop = Loop()
    _, expected = loop()
    with ps.parallelize(loop, ps.Picard(window=3, tolerance=0)):
        _, found = loop()
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is type(theirs)
        torch.testing.assert_close(ours.prev_sample, theirs.prev_sample, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            ours.pred_original_sample, theirs.pred_original_sample, rtol=1e-3, atol=1e-3
        )
