"""Arguments of the size that a denoiser was made for, from its configuration alone: facts as rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from parasample.errors import UnsupportedPipelineError

# Shapes by argument; a word stands for a field of the configuration or for one of `_sizes`.
_IMAGE = ("batch", "in_channels", "height", "width")
_TEXT_300 = ("batch", 300, "caption_channels")
INPUTS: dict[str, dict[str, Any]] = {
    "UNet2DConditionModel": {
        "sample": _IMAGE, "timestep": (), "encoder_hidden_states": ("batch", 77, "cross_attention_dim"),
        "added_cond_kwargs": {"text_embeds": ("batch", "pooled"), "time_ids": ("batch", 6)},
    },
    "UNet2DModel": {"sample": _IMAGE, "timestep": ()},
    "UNetMotionModel": {
        "sample": ("batch", "in_channels", 16, "height", "width"), "timestep": (),
        "encoder_hidden_states": ("batch x 16", 77, "cross_attention_dim"),
    },
    "UNetSpatioTemporalConditionModel": {
        "sample": ("batch", "num_frames", "in_channels", 72, 128), "timestep": (),
        "encoder_hidden_states": ("batch", 1, "cross_attention_dim"), "added_time_ids": ("batch", 3),
    },
    "SD3Transformer2DModel": {
        "hidden_states": _IMAGE, "timestep": ("batch",),
        "pooled_projections": ("batch", "pooled_projection_dim"),
        "encoder_hidden_states": ("batch", 333, "joint_attention_dim"),
    },
    "FluxTransformer2DModel": {
        "hidden_states": ("batch", 4096, "in_channels"), "timestep": ("batch",), "guidance": ("batch",),
        "encoder_hidden_states": ("batch", 512, "joint_attention_dim"), "img_ids": (4096, 3),
        "txt_ids": (512, 3), "pooled_projections": ("batch", "pooled_projection_dim"),
    },
    "PixArtTransformer2DModel": {
        "hidden_states": _IMAGE, "timestep": ("batch",), "encoder_hidden_states": _TEXT_300,
        "added_cond_kwargs": {"resolution": ("batch", 2), "aspect_ratio": ("batch", 1)},
    },
    "SanaTransformer2DModel": {
        "hidden_states": _IMAGE, "timestep": ("batch",), "encoder_hidden_states": _TEXT_300,
    },
    "CogVideoXTransformer3DModel": {
        "hidden_states": ("batch", "frames", "in_channels", "sample_height", "sample_width"),
        "timestep": ("batch",), "encoder_hidden_states": ("batch", "max_text_seq_length", "text_embed_dim"),
    },
    "WanTransformer3DModel": {  # 81 frames of 480 x 832
        "hidden_states": ("batch", "in_channels", 21, 60, 104), "timestep": ("batch",),
        "encoder_hidden_states": ("batch", 512, "text_dim"),
    },
    "DiTTransformer2DModel": {"hidden_states": _IMAGE, "timestep": ("batch",), "class_labels": ("batch",)},
}  # fmt: skip
_WHOLE_NUMBERS = ("class_labels",)


def example_inputs(class_name: str, config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments of one call on the meta device, guidance batch included where the model has none.

    Raises:
        UnsupportedPipelineError: for a class without a row.
    """
    if class_name not in INPUTS:
        raise UnsupportedPipelineError(
            f"{class_name} has no row of example inputs, which {', '.join(INPUTS)} have; "
            "trace it with arguments of your own: parasample.bridge.trace.trace(denoiser, args, kwargs)"
        )
    sizes = dict(config) | _sizes(config)

    def fill(name: str, shape: Any) -> Any:
        if isinstance(shape, dict):
            return {inner: fill(inner, value) for inner, value in shape.items()}
        kind = torch.long if name in _WHOLE_NUMBERS else dtype
        return torch.empty([sizes[n] if isinstance(n, str) else n for n in shape], dtype=kind, device="meta")

    return {name: fill(name, shape) for name, shape in INPUTS[class_name].items()}


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    size = config.get("sample_size") or 64  # what Stable Diffusion's pipelines take without one
    height, width = (size, size) if isinstance(size, int) else size
    batch = 1 if config.get("guidance_embeds") else 2  # distilled guidance needs no second half
    frames = (config.get("sample_frames", 1) - 1) // config.get("temporal_compression_ratio", 4) + 1
    pooled = (config.get("projection_class_embeddings_input_dim") or 0) - 6 * (
        config.get("addition_time_embed_dim") or 0
    )
    return {"batch": batch, "batch x 16": batch * 16, "height": height, "width": width, "frames": frames,
            "pooled": max(pooled, 0)}  # fmt: skip
