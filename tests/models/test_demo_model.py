"""The shipped demo model loads without a network and draws what it is asked for."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from parasample.models import CLASS_PROMPTS, demo_model_path, load_classifier

MAX_BYTES = 10e6  # what a wheel may carry
SAMPLES_PER_CLASS = 4
MIN_AGREEMENT = 0.8  # the classifier itself is right on about 92 % of real test pictures


@pytest.fixture(scope="module")
def pipeline() -> Iterator[StableDiffusionPipeline]:
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object) -> None:
            raise OSError("the demo model must load without a network")

        patch.setattr(socket.socket, "connect", refuse)
        pipe = StableDiffusionPipeline.from_pretrained(demo_model_path(), torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        yield pipe


def folder_bytes(folder: Path) -> int:
    return sum(os.path.getsize(path) for path in folder.rglob("*") if path.is_file())


def test_fits_in_a_wheel() -> None:
    assert folder_bytes(demo_model_path()) <= MAX_BYTES
    assert folder_bytes(demo_model_path().parent / "fashion_classifier") <= 1e6


def test_loads_in_one_dtype(pipeline: StableDiffusionPipeline) -> None:
    plain = StableDiffusionPipeline.from_pretrained(demo_model_path())  # what the README's one line does
    for pipe in (pipeline, plain):
        parts = (pipe.vae, pipe.unet, pipe.text_encoder)
        assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.float32}


def test_every_prompt_has_known_words(pipeline: StableDiffusionPipeline) -> None:
    for prompt in CLASS_PROMPTS:
        words = prompt.replace("-", " - ").split()
        assert pipeline.tokenizer.tokenize(prompt) == [word + "</w>" for word in words]


def test_guided_samples_match_their_prompts(pipeline: StableDiffusionPipeline) -> None:
    pipe = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(len(CLASS_PROMPTS)).repeat(SAMPLES_PER_CLASS)
    images = pipe(
        list(CLASS_PROMPTS) * SAMPLES_PER_CLASS,
        num_inference_steps=12,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert images.shape == (len(labels), 3, 32, 32)
    logits, features = load_classifier()(images * 2 - 1)
    assert features.shape == (len(labels), 128)
    agreement = (logits.argmax(1) == labels).double().mean().item()
    assert agreement >= MIN_AGREEMENT, f"classifier agrees on {agreement:.0%} of {len(labels)} samples"
