"""The demo model shipped with parasample: a tiny Stable Diffusion and a judge for its pictures.

`examples/train_demo_model.py` trained both on Fashion-MNIST; README.md beside this file is the model card.
"""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

CLASS_PROMPTS: tuple[str, ...] = (
    "a t-shirt",
    "a pair of trousers",
    "a pullover",
    "a dress",
    "a coat",
    "a sandal",
    "a shirt",
    "a sneaker",
    "a bag",
    "an ankle boot",
)
"""One prompt for each Fashion-MNIST class, in class order."""

_MODELS = Path(__file__).parent


class FashionClassifier(nn.Module):
    """Convolutional classifier of Fashion-MNIST pictures padded from 28x28 to 32x32.

    `forward(images)` takes `[B, 1 or 3, 32, 32]` float in [-1, 1] (three channels are averaged) and returns
    `(logits [B, 10], features [B, num_features])`; the features feed a Frechet distance.
    """

    def __init__(self, channels: tuple[int, ...] = (16, 32, 64), num_features: int = 128) -> None:
        super().__init__()
        self.config = {"channels": list(channels), "num_features": num_features}
        blocks: list[nn.Module] = []
        previous = 1
        for width in channels:
            for source in (previous, width):
                convolution = nn.Conv2d(source, width, 3, padding=1, bias=False)
                blocks += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            blocks.append(nn.MaxPool2d(2))
            previous = width
        self.body = nn.Sequential(*blocks)
        self.neck = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(previous, num_features), nn.ReLU())
        self.head = nn.Linear(num_features, len(CLASS_PROMPTS))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(images.mean(dim=1, keepdim=True))  # [B, C, 4, 4]
        features = self.neck(hidden.mean(dim=(2, 3)))
        return self.head(features), features


def demo_model_path() -> Path:
    """Folder of the demo model, for `diffusers.StableDiffusionPipeline.from_pretrained`."""
    return _MODELS / "fashion_sd"


def denoiser_config(name: str) -> Path:
    """Configuration of a well-known denoiser at full size, without weights: one of `denoiser_names()`."""
    return _MODELS / "denoisers" / f"{name}.json"


def denoiser_names() -> tuple[str, ...]:
    """Short names of the configurations that come with parasample."""
    return tuple(sorted(path.stem for path in (_MODELS / "denoisers").glob("*.json")))


def load_classifier() -> nn.Module:
    """The shipped `FashionClassifier`, in float32 on the CPU and in evaluation mode."""
    folder = _MODELS / "fashion_classifier"
    config = json.loads((folder / "config.json").read_text())
    model = FashionClassifier(tuple(config["channels"]), config["num_features"])
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict(weights)  # copies fp16 values into the model's float32 tensors
    return model.eval().requires_grad_(False)


__all__ = ["CLASS_PROMPTS", "FashionClassifier", "demo_model_path", "denoiser_config",
           "denoiser_names", "load_classifier"]  # fmt: skip
