"""parasample: diffusion sampling, parallel in time.

import parasample as ps

handle = ps.parallelize(pipe, ps.Picard())
image = pipe("a sneaker", num_inference_steps=100).images[0]
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from parasample.config import Async, Picard
from parasample.errors import (
    ConfigError,
    DivergedError,
    ParasampleError,
    TransportError,
    UnsupportedPipelineError,
)

if TYPE_CHECKING:
    from parasample.bridge.pipeline import Handle, parallelize
    from parasample.bridge.sample import Solution, sample
    from parasample.runtime.stats import Stats

try:
    __version__ = version("parasample")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = [
    "Async",
    "ConfigError",
    "DivergedError",
    "Handle",
    "ParasampleError",
    "Picard",
    "Solution",
    "Stats",
    "TransportError",
    "UnsupportedPipelineError",
    "parallelize",
    "sample",
]

# Imported when first used: diffusers takes seconds to import, and configs and kernels need none of it.
_LAZY = {
    "Handle": "parasample.bridge.pipeline",
    "parallelize": "parasample.bridge.pipeline",
    "Solution": "parasample.bridge.sample",
    "sample": "parasample.bridge.sample",
    "Stats": "parasample.runtime.stats",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'parasample' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
