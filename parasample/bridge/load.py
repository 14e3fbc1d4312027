"""Load a pipeline from a folder and give it a sampler by its short name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging

from parasample.errors import ConfigError

# Short name -> (title, diffusers class, settings that make it the sampler of that name).
SAMPLERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddim": ("DDIM", "DDIMScheduler", {}),
    "ddpm": ("DDPM", "DDPMScheduler", {}),
    "dpm++": (
        "DPM-Solver++ 2M",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2},
    ),
    "euler": ("Euler", "EulerDiscreteScheduler", {}),
    "euler-a": ("Euler ancestral", "EulerAncestralDiscreteScheduler", {}),
    "heun": ("Heun", "HeunDiscreteScheduler", {}),
    "flow": ("Flow matching", "FlowMatchEulerDiscreteScheduler", {}),
}


def load_pipeline(folder: str | Path, device: str | None = None, dtype: torch.dtype | None = None) -> Any:
    """The diffusers pipeline in `folder`, quiet, on `device` (a CUDA device if there is one, else the CPU).

    Raises:
        ConfigError: when the folder holds no pipeline.
    """
    path = Path(folder)
    if not (path / "model_index.json").is_file():
        raise ConfigError(
            f"found no diffusers pipeline in {path} (no model_index.json); pass the folder that "
            f"save_pretrained wrote"
        )
    diffusers_logging.disable_progress_bar()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    _quiet_transformers()
    pipe = diffusers.DiffusionPipeline.from_pretrained(path, low_cpu_mem_usage=False)
    # Half-precision weights are run in float32 unless asked otherwise: a CPU is slow in anything else.
    pipe = pipe.to(dtype or torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or default_device())


def _quiet_transformers() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def default_device() -> str:
    """ "cuda" where torch finds a device, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def set_sampler(pipe: Any, name: str, num_steps: int) -> str:
    """Give `pipe` the sampler `name` with its own noise schedule; returns the sampler's title.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"sampler {name!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    title, class_name, settings = SAMPLERS[name]
    config = dict(pipe.scheduler.config)
    if num_steps >= config.get("num_train_timesteps", 1000):
        config["steps_offset"] = 0  # an offset would leave the last of all training steps past the end
    pipe.scheduler = getattr(diffusers, class_name).from_config(config, **settings)
    return title


def random_stable_diffusion(unet: dict[str, Any], size: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    """A Stable Diffusion pipeline with random weights, and the arguments of a call that gives latents.

    Args:
        unet: settings of the U-Net, as `UNet2DConditionModel` takes them.
        size: height and width of the latents.
        seed: of weights and prompt embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = diffusers.UNet2DConditionModel(**unet).eval()
        vae = diffusers.AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4).eval()
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=model,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    width = model.config.cross_attention_dim
    call = {
        "prompt_embeds": torch.randn(1, 77, width, generator=generator), "guidance_scale": 1.0,
        "height": size, "width": size, "output_type": "latent",
    }  # fmt: skip
    return pipe, call


__all__ = ["SAMPLERS", "default_device", "load_pipeline", "random_stable_diffusion", "set_sampler"]
