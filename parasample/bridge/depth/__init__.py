"""Pipelines parallelized in depth: the denoiser cut into components on several ranks.

Files: handle.py is what `parallelize` returns, cut.py decides who computes which block, denoiser.py catches
the pipeline's calls of its denoisers, run.py takes one call of the pipeline through its steps.
"""

from parasample.bridge.depth.handle import AsyncHandle

__all__ = ["AsyncHandle"]
