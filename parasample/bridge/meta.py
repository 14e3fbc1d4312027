"""Denoisers from their configuration alone: full size, on the meta device, without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from parasample.bridge.trace import trace
from parasample.bridge.trace.inputs import example_inputs
from parasample.errors import ConfigError
from parasample.plan.blocks import BlockGraph

# Where pipelines keep their denoiser.
_FOLDERS = ("unet", "transformer")


def read_config(path: Path) -> dict[str, Any]:
    """A denoiser's config.json: the file itself, its folder, or the folder of a pipeline.

    Raises:
        ConfigError: where there is none, or it names no class of diffusers.
    """
    places = [path, path / "config.json", *(path / folder / "config.json" for folder in _FOLDERS)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ConfigError(
            f"found no denoiser's config.json in {path}; pass that file, its folder, or a pipeline's folder"
        )
    try:
        config = json.loads(found.read_text())
        name = config["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{found} is no configuration with a _class_name: {error}") from None
    if not issubclass(getattr(diffusers, name, object), nn.Module):
        raise ConfigError(f"{found} names {name!r}, which is no model of diffusers {diffusers.__version__}")
    return config


def meta_denoiser(config: Mapping[str, Any], dtype: torch.dtype = torch.float16) -> nn.Module:
    """The denoiser that a configuration describes, with parameters that have a shape and no data."""
    with torch.device("meta"):
        model = getattr(diffusers, config["_class_name"]).from_config(dict(config))
    return nn.Module.to(model, dtype).eval()  # diffusers' own `to` warns of weights, of which there are none


def graph_from_config(config: Mapping[str, Any], dtype: torch.dtype = torch.float16) -> BlockGraph:
    """The data flow of a denoiser at the size it was made for, costs in operations.

    Raises:
        UnsupportedPipelineError: for a class that has no row of example inputs.
    """
    denoiser: Any = meta_denoiser(config, dtype)
    inputs = example_inputs(config["_class_name"], denoiser.config, dtype)
    return trace(denoiser, (), inputs, costs="flops")


__all__ = ["graph_from_config", "meta_denoiser", "read_config"]
