"""parasample: diffusion sampling, parallel in time.

    import parasample as ps

    handle = ps.parallelize(pipe, ps.Picard())
    image = pipe("a sneaker", num_inference_steps=100).images[0]
"""

from importlib.metadata import PackageNotFoundError, version

from parasample.bridge.pipeline import Handle, parallelize
from parasample.bridge.sample import Solution, sample
from parasample.config import Picard
from parasample.errors import (
    ConfigError,
    DivergedError,
    ParasampleError,
    TransportError,
    UnsupportedPipelineError,
)
from parasample.runtime.stats import Stats

try:
    __version__ = version("parasample")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = [
    "ConfigError", "DivergedError", "Handle", "ParasampleError", "Picard", "Solution", "Stats", "TransportError",
    "UnsupportedPipelineError", "parallelize", "sample",
]  # fmt: skip
