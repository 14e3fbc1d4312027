"""A pipeline folder small enough to run every command on, with a tokenizer and text encoder of its own."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from tiny_pipelines import _ddim, _unet, _vae
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline with random weights, 4x8x8 latents, as save_pretrained writes it."""
    torch.manual_seed(0)
    letters = [chr(code) for code in range(97, 123)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=8)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=_vae(), text_encoder=CLIPTextModel(config), tokenizer=tokenizer, unet=_unet(), scheduler=_ddim(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe.save_pretrained(folder)
    return folder
