"""More unmodified pipelines in miniature: inpainting, upscaling, ControlNet, video and other transformers.

As in tiny_pipelines; `MORE_PIPELINES[name]()` gives the pipeline and the arguments of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from tiny_pipelines import _ddim, _randn, _sd_call, _unet, _vae
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 8 + 6 * 4,
}


def _shaken(module: nn.Module) -> Any:
    """Parts that start at zero would hide what depends on them."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


def _sdxl_parts() -> dict[str, Any]:
    return {
        "vae": _vae(), "text_encoder": None, "text_encoder_2": None, "tokenizer": None, "tokenizer_2": None,
        "scheduler": diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        "add_watermarker": False,
    }  # fmt: skip


def _pooled(batch: int) -> dict[str, Any]:
    pooled = {"pooled_prompt_embeds": _randn(batch, 8)}
    return pooled | {"negative_pooled_prompt_embeds": _randn(batch, 8, seed=9)}


def sdxl_inpainting() -> tuple[Any, dict[str, Any]]:
    pipe = diffusers.StableDiffusionXLInpaintPipeline(unet=_unet(in_channels=9, **SDXL), **_sdxl_parts())
    picture = {"image": _randn(1, 3, 8, 8).clamp(-1, 1), "mask_image": (_randn(1, 1, 8, 8) > 0).float()}
    return pipe, _sd_call(1, guidance_scale=5.0, strength=0.99) | _pooled(1) | picture


def sdxl_controlnet() -> tuple[Any, dict[str, Any]]:
    unet = _unet(**SDXL)
    controlnet = diffusers.ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(4, 4), load_weights_from_unet=False
    )
    pipe = diffusers.StableDiffusionXLControlNetPipeline(
        unet=unet, controlnet=_shaken(controlnet), **_sdxl_parts()
    )
    # Its embedding halves the picture once; the VAE here does not make pictures smaller.
    pipe.controlnet.controlnet_cond_embedding.blocks[1].stride = (1, 1)
    picture = {"image": _randn(1, 3, 8, 8).sigmoid(), "controlnet_conditioning_scale": 0.8}
    return pipe, _sd_call(1, guidance_scale=5.0) | _pooled(1) | picture


def upscaling() -> tuple[Any, dict[str, Any]]:
    unet = _unet(in_channels=7, num_class_embeds=1000, only_cross_attention=(True, False))
    pipe = diffusers.StableDiffusionUpscalePipeline(
        vae=_vae(), text_encoder=None, tokenizer=None, unet=unet, scheduler=_ddim(),
        low_res_scheduler=diffusers.DDPMScheduler(),
    )  # fmt: skip
    call = _sd_call(1, guidance_scale=5.0, image=_randn(1, 3, 8, 8).clamp(-1, 1))
    return pipe, {name: value for name, value in call.items() if name not in ("height", "width")}


def animatediff() -> tuple[Any, dict[str, Any]]:
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4,
        motion_num_attention_heads=2, motion_max_seq_length=4,
    )  # fmt: skip
    unet = _unet(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                 up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    pipe = diffusers.AnimateDiffPipeline(
        vae=_vae(), text_encoder=None, tokenizer=None, unet=unet, motion_adapter=adapter, scheduler=_ddim()
    )
    _shaken(pipe.unet)
    return pipe, _sd_call(1, guidance_scale=5.0, num_frames=3)


def stable_video() -> tuple[Any, dict[str, Any]]:
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=8, projection_dim=8, num_hidden_layers=1, num_attention_heads=2, image_size=16,
            intermediate_size=16, patch_size=8,
        )
    )  # fmt: skip
    unet = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8, block_out_channels=(32, 64), num_frames=2, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=(2, 4), addition_time_embed_dim=4, projection_class_embeddings_input_dim=12,
        layers_per_block=1,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",), latent_channels=4, sample_size=8
    )
    pipe = diffusers.StableVideoDiffusionPipeline(
        vae=vae.eval(), image_encoder=encoder.eval(), unet=unet.eval(),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_schedule="scaled_linear", prediction_type="v_prediction", use_karras_sigmas=True,
            timestep_type="continuous", sigma_min=0.002, sigma_max=700.0,
        ),
        feature_extractor=CLIPImageProcessor(crop_size=16, size=16),
    )  # fmt: skip
    return pipe, {
        "image": _randn(1, 3, 16, 16).sigmoid(), "height": 16, "width": 16, "num_frames": 2,
        "output_type": "latent",
    }  # fmt: skip


def pixart() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=3, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        caption_channels=8,
    )  # fmt: skip
    pipe = diffusers.PixArtSigmaPipeline(
        tokenizer=None, text_encoder=None, vae=_vae(), transformer=_shaken(transformer),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear"),
    )  # fmt: skip
    masks = {"prompt_attention_mask": torch.ones(1, 5), "negative_prompt_attention_mask": torch.ones(1, 5)}
    call = _sd_call(1, guidance_scale=4.0, use_resolution_binning=False, negative_prompt=None)
    return pipe, call | masks


def _wan_transformer() -> Any:
    return _shaken(diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=48, num_layers=3, rope_max_seq_len=32,
    ))  # fmt: skip


def wan(**parts: Any) -> tuple[Any, dict[str, Any]]:
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4, temperal_downsample=[False, True, True],
    )  # fmt: skip
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=vae.eval(), transformer=_wan_transformer(),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        **parts,
    )  # fmt: skip
    return pipe, _sd_call(1, height=64, width=64, num_frames=5, guidance_scale=4.0)


def wan_two_transformers() -> tuple[Any, dict[str, Any]]:
    """As Wan 2.2: one transformer for much noise, another from the middle on."""
    return wan(transformer_2=_wan_transformer(), boundary_ratio=0.8)


def cogvideox() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=8, num_layers=3, sample_width=8, sample_height=8, sample_frames=9, patch_size=2,
        max_text_seq_length=5,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        transformer=_shaken(transformer),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )
    return pipe, _sd_call(1, height=64, width=64, num_frames=9, guidance_scale=4.0)


def sana() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=3, num_attention_heads=2,
        attention_head_dim=8, num_cross_attention_heads=2, cross_attention_head_dim=8,
        cross_attention_dim=16, caption_channels=8, sample_size=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"), decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
    )  # fmt: skip
    pipe = diffusers.SanaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        transformer=_shaken(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    masks = {"prompt_attention_mask": torch.ones(1, 5), "negative_prompt_attention_mask": torch.ones(1, 5)}
    call = _sd_call(1, height=32, width=32, guidance_scale=4.0, use_resolution_binning=False)
    return pipe, call | {"negative_prompt": None} | masks


MORE_PIPELINES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "StableDiffusionXL-inpainting": sdxl_inpainting,
    "StableDiffusionXL-ControlNet": sdxl_controlnet,
    "StableDiffusion-upscaling": upscaling,
    "AnimateDiff": animatediff,
    "StableVideoDiffusion": stable_video,
    "PixArt": pixart,
    "Sana": sana,
    "Wan": wan,
    "Wan-two-transformers": wan_two_transformers,
    "CogVideoX": cogvideox,
}
