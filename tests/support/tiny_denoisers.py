"""Every kind of denoiser in miniature, with random weights and arguments as its pipeline would pass them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

WIDTHS = (32, 64)
SD_BLOCKS = {
    "block_out_channels": WIDTHS,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "layers_per_block": 2,
}


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def build(name: str, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some start at zero, which would hide what depends on them
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def unet_sd() -> Case:
    model = build("UNet2DConditionModel", sample_size=8, **SD_BLOCKS)
    return model, (randn(2, 4, 8, 8), torch.tensor(7), randn(2, 5, 32)), {"return_dict": False}


def unet_sd_controlnet() -> Case:
    model, args, kwargs = unet_sd()
    down = [randn(2, 32, 8, 8), randn(2, 32, 8, 8), randn(2, 32, 8, 8), randn(2, 32, 4, 4)]
    down += [randn(2, 64, 4, 4), randn(2, 64, 4, 4)]
    residuals = {
        "down_block_additional_residuals": down,
        "mid_block_additional_residual": randn(2, 64, 4, 4),
    }
    return model, args, kwargs | residuals


def unet_ip_adapter() -> Case:
    model = build("UNet2DConditionModel", sample_size=8, **SD_BLOCKS)
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    torch.manual_seed(1)
    processors = {}
    for name, processor in model.attn_processors.items():
        if "attn2" in name:
            width = WIDTHS[0] if "down_blocks.0" in name or "up_blocks.1" in name else WIDTHS[1]
            processors[name] = IPAdapterAttnProcessor2_0(width, 32, num_tokens=(3,))
        else:
            processors[name] = processor
    model.set_attn_processor(processors)
    model.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(16, 32, 3)])
    model.config.encoder_hid_dim_type = "ip_image_proj"
    kwargs = {"added_cond_kwargs": {"image_embeds": [randn(2, 1, 16)]}}
    return model.eval(), (randn(2, 4, 8, 8), 7, randn(2, 5, 32)), kwargs


def unet_sdxl() -> Case:
    model = build(
        "UNet2DConditionModel", sample_size=8, **SD_BLOCKS | {
            "block_out_channels": (32, 64, 64), "transformer_layers_per_block": (1, 1, 2),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        }, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 16,
    )  # fmt: skip
    added = {"text_embeds": randn(2, 16), "time_ids": randn(2, 6)}
    return model, (randn(2, 4, 8, 8), torch.tensor([7, 7]), randn(2, 5, 32)), {"added_cond_kwargs": added}


def unet_unconditional() -> Case:
    model = build(
        "UNet2DModel", sample_size=8, block_out_channels=WIDTHS, layers_per_block=1, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model, (randn(1, 3, 8, 8), 7), {}


def unet_motion() -> Case:
    model = build(
        "UNetMotionModel", sample_size=8, block_out_channels=WIDTHS, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), num_attention_heads=4,
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), motion_num_attention_heads=4,
        layers_per_block=1,
    )  # fmt: skip
    return model, (randn(2, 4, 3, 8, 8), torch.tensor(7), randn(6, 5, 32)), {"return_dict": False}


def unet_motion_controlnet() -> Case:
    model, args, kwargs = unet_motion()
    down = [randn(6, 32, 8, 8), randn(6, 32, 8, 8), randn(6, 32, 4, 4), randn(6, 64, 4, 4)]
    residuals = {
        "down_block_additional_residuals": down,
        "mid_block_additional_residual": randn(6, 64, 4, 4),
    }
    return model, args, kwargs | residuals


def unet_svd() -> Case:
    model = build(
        "UNetSpatioTemporalConditionModel", sample_size=8, block_out_channels=WIDTHS, num_frames=2,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=(4, 8),
        cross_attention_dim=32, addition_time_embed_dim=8, projection_class_embeddings_input_dim=24,
        layers_per_block=1,
    )  # fmt: skip
    return model, (randn(2, 2, 8, 8, 8), torch.tensor(7), randn(2, 1, 32), randn(2, 3)), {}


def sd3() -> Case:
    model = build(
        "SD3Transformer2DModel", sample_size=8, num_layers=3, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=16, pos_embed_max_size=8,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    kwargs = {
        "hidden_states": randn(2, 16, 8, 8), "encoder_hidden_states": randn(2, 5, 24), "return_dict": False,
        "pooled_projections": randn(2, 16), "timestep": torch.tensor([7.0, 7.0]),
    }  # fmt: skip
    return model, (), kwargs


def flux() -> Case:
    model = build(
        "FluxTransformer2DModel", in_channels=4, num_layers=2, num_single_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )  # fmt: skip
    kwargs = {
        "hidden_states": randn(1, 16, 4), "encoder_hidden_states": randn(1, 5, 24), "img_ids": randn(16, 3),
        "txt_ids": randn(5, 3), "pooled_projections": randn(1, 16), "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]), "return_dict": False,
    }  # fmt: skip
    return model, (), kwargs


def pixart() -> Case:
    model = build(
        "PixArtTransformer2DModel", sample_size=8, num_layers=3, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, caption_channels=24,
    )  # fmt: skip
    kwargs = {
        "encoder_hidden_states": randn(2, 5, 24), "timestep": torch.tensor([7, 7]),
        "encoder_attention_mask": torch.ones(2, 5),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }  # fmt: skip
    return model, (randn(2, 4, 8, 8),), kwargs


def sana() -> Case:
    model = build(
        "SanaTransformer2DModel", sample_size=8, in_channels=4, out_channels=4, num_layers=3,
        num_attention_heads=4, attention_head_dim=8, num_cross_attention_heads=4, cross_attention_head_dim=8,
        cross_attention_dim=32, caption_channels=24,
    )  # fmt: skip
    return model, (randn(2, 4, 8, 8),), {
        "encoder_hidden_states": randn(2, 5, 24), "timestep": torch.tensor([7, 7]),
        "encoder_attention_mask": torch.ones(2, 5), "return_dict": False,
    }  # fmt: skip


def cogvideox() -> Case:
    model = build(
        "CogVideoXTransformer3DModel", num_layers=3, num_attention_heads=4, attention_head_dim=8,
        in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=24, sample_width=8, sample_height=8,
        sample_frames=5, max_text_seq_length=5,
    )  # fmt: skip
    return model, (), {
        "hidden_states": randn(2, 2, 4, 8, 8), "encoder_hidden_states": randn(2, 5, 24),
        "timestep": torch.tensor([7, 7]), "return_dict": False,
    }  # fmt: skip


def wan() -> Case:
    model = build(
        "WanTransformer3DModel", num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=24, freq_dim=16, ffn_dim=48, num_layers=3, rope_max_seq_len=32,
    )  # fmt: skip
    return model, (), {
        "hidden_states": randn(1, 4, 2, 8, 8), "timestep": torch.tensor([7]),
        "encoder_hidden_states": randn(1, 5, 24), "return_dict": False,
    }  # fmt: skip


def hunyuan_dit() -> Case:
    model = build(
        "HunyuanDiT2DModel", num_attention_heads=4, attention_head_dim=8, in_channels=4, patch_size=2,
        sample_size=8, hidden_size=32, num_layers=6, cross_attention_dim=16, cross_attention_dim_t5=24,
        pooled_projection_dim=16, text_len=5, text_len_t5=6,
    )  # fmt: skip
    return model, (randn(2, 4, 8, 8), torch.tensor([7.0, 7.0])), {
        "encoder_hidden_states": randn(2, 5, 16), "text_embedding_mask": torch.ones(2, 5),
        "encoder_hidden_states_t5": randn(2, 6, 24), "text_embedding_mask_t5": torch.ones(2, 6),
        "image_meta_size": torch.ones(2, 6), "style": torch.zeros(2, dtype=torch.long),
        "image_rotary_emb": (randn(16, 8), randn(16, 8)),
    }  # fmt: skip


def dit() -> Case:
    model = build(
        "DiTTransformer2DModel", sample_size=8, num_layers=3, num_attention_heads=4, attention_head_dim=8,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    kwargs = {"timestep": torch.tensor([7, 7]), "class_labels": torch.tensor([3, 4])}
    return model, (randn(2, 4, 8, 8),), kwargs


DENOISERS: dict[str, Callable[[], Case]] = {
    "SD": unet_sd,
    "SD-ControlNet": unet_sd_controlnet,
    "SD-IP-Adapter": unet_ip_adapter,
    "SDXL": unet_sdxl,
    "UNet2D": unet_unconditional,
    "AnimateDiff": unet_motion,
    "AnimateDiff-ControlNet": unet_motion_controlnet,
    "SVD": unet_svd,
    "SD3": sd3,
    "FLUX": flux,
    "PixArt": pixart,
    "Sana": sana,
    "CogVideoX": cogvideox,
    "Wan": wan,
    "HunyuanDiT": hunyuan_dit,
    "DiT": dit,
}
