"""Unmodified diffusers pipelines with tiny random denoisers; prompts are embeddings: nothing is fetched.

`PIPELINES[name]()` gives the pipeline and the arguments of a call that returns latents or an image tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

STEPS = 6


def _randn(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _vae(channels: int = 4) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8,), latent_channels=channels, norm_num_groups=4, sample_size=8
    ).eval()


def _unet(**changes: Any) -> diffusers.UNet2DConditionModel:
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**config | changes).eval()


def _ddim(**changes: Any) -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1, **changes
    )


def _sd(cls: type, scheduler: Any, **unet: Any) -> Any:
    return cls(
        vae=_vae(), text_encoder=None, tokenizer=None, unet=_unet(**unet), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sd_call(batch: int, **changes: Any) -> dict[str, Any]:
    return {
        "prompt_embeds": _randn(batch, 5, 8),
        "negative_prompt_embeds": _randn(batch, 5, 8, seed=8),
        "output_type": "latent",
        "height": 8, "width": 8,
    } | changes  # fmt: skip


def stable_diffusion(batch: int = 1, scheduler: Any = None, **call: Any) -> tuple[Any, dict[str, Any]]:
    pipe = _sd(diffusers.StableDiffusionPipeline, scheduler or _ddim())
    return pipe, _sd_call(batch, guidance_scale=5.0) | call


def stable_diffusion_img2img() -> tuple[Any, dict[str, Any]]:
    pipe = _sd(diffusers.StableDiffusionImg2ImgPipeline, _ddim())
    call = _sd_call(1, guidance_scale=5.0, image=_randn(1, 4, 8, 8), strength=0.7)
    return pipe, {k: v for k, v in call.items() if k not in ("height", "width")}


def stable_diffusion_xl() -> tuple[Any, dict[str, Any]]:
    unet = _unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"), add_watermarker=False,
    )  # fmt: skip
    pooled = {"pooled_prompt_embeds": _randn(2, 8), "negative_pooled_prompt_embeds": _randn(2, 8, seed=9)}
    return pipe, _sd_call(2, guidance_scale=5.0) | pooled


def stable_diffusion_3() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=8, pooled_projection_dim=8,
        pos_embed_max_size=8,
    ).eval()  # fmt: skip
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_vae(),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None,
        tokenizer_3=None,
    )  # fmt: skip
    pooled = {"pooled_prompt_embeds": _randn(1, 8), "negative_pooled_prompt_embeds": _randn(1, 8, seed=9)}
    return pipe, _sd_call(1, guidance_scale=4.0) | pooled


def flux() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = diffusers.FluxPipeline(
        transformer=transformer, scheduler=scheduler, vae=_vae(1), text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    call = {
        "prompt_embeds": _randn(2, 5, 8), "pooled_prompt_embeds": _randn(2, 8), "output_type": "latent",
        "height": 16, "width": 16, "guidance_scale": 3.5,
    }  # fmt: skip
    return pipe, call


def flux_true_cfg() -> tuple[Any, dict[str, Any]]:
    pipe, call = flux()
    negative = {
        "negative_prompt_embeds": _randn(2, 5, 8, seed=8),
        "negative_pooled_prompt_embeds": _randn(2, 8, seed=9),
    }
    return pipe, call | negative | {"true_cfg_scale": 2.0}


def dit() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    pipe = diffusers.DiTPipeline(transformer=transformer, vae=_vae(), scheduler=_ddim())
    return pipe, {"class_labels": [1, 207], "guidance_scale": 4.0, "output_type": "np"}


def _pixel_unet() -> diffusers.UNet2DModel:
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    ).eval()  # fmt: skip


def ddpm() -> tuple[Any, dict[str, Any]]:
    pipe = diffusers.DDPMPipeline(unet=_pixel_unet(), scheduler=diffusers.DDPMScheduler())
    return pipe, {"batch_size": 2, "output_type": "np"}


def ddim() -> tuple[Any, dict[str, Any]]:
    pipe = diffusers.DDIMPipeline(unet=_pixel_unet(), scheduler=diffusers.DDIMScheduler())
    return pipe, {"batch_size": 2, "output_type": "np", "eta": 0.5}


PIPELINES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "StableDiffusion": stable_diffusion,
    "StableDiffusion-no-guidance": lambda: stable_diffusion(guidance_scale=1.0),
    "StableDiffusion-rescale": lambda: stable_diffusion(guidance_rescale=0.7),
    "StableDiffusion-batch": lambda: stable_diffusion(batch=3, eta=1.0),
    "StableDiffusionImg2Img": stable_diffusion_img2img,
    "StableDiffusionXL": stable_diffusion_xl,
    "StableDiffusion3": stable_diffusion_3,
    "Flux": flux,
    "Flux-true-cfg": flux_true_cfg,
    "DiT": dit,
    "DDPM": ddpm,
    "DDIM": ddim,
}


def run(pipe: Any, call: dict[str, Any], seed: int = 0, **changes: Any) -> Tensor:
    """One call with a fresh generator; the first field of its output as a tensor."""
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": STEPS} | call | changes
    arguments.setdefault("generator", torch.Generator().manual_seed(seed))
    return torch.as_tensor(pipe(**arguments)[0])
