"""Tests of many runs read the data flow of a denoiser once: that takes longer than a tiny model's run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import nn

from parasample.bridge.depth import cut


@contextmanager
def traced_once(key: Callable[[nn.Module], Hashable]) -> Iterator[None]:
    """Within, denoisers of the same key are taken to have the same data flow."""
    graphs: dict[Hashable, Any] = {}
    trace = cut.trace

    def once(denoiser: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if key(denoiser) not in graphs:
            graphs[key(denoiser)] = trace(denoiser, *args, **kwargs)
        return graphs[key(denoiser)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut, "trace", once)
        yield
