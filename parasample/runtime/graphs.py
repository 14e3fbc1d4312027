"""A sequence of operations on a device, recorded once and replayed as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from parasample.errors import ConfigError


@contextmanager
def replayed(work: Callable[[], None], device: torch.device, capture: bool) -> Iterator[Callable[[], None]]:
    """Gives a callable that does `work` on a stream of its own; its second call captures it, if asked to.

    The first call runs `work` as it is, which loads kernels and makes libraries allocate what a capture must
    not. The second records it, without running it, and then replays it, as all later ones do. On leaving the
    current stream waits for the work. On a CPU every call runs `work`.

    Raises:
        ConfigError: from the second call, when `work` cannot be captured.
    """
    if device.type != "cuda":
        yield work
        return
    caller, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    graph: torch.cuda.CUDAGraph | None = None
    calls = 0

    def run() -> None:
        nonlocal graph, calls
        calls += 1
        if calls == 1 or not capture:
            work()
            return
        if graph is None:
            graph = _captured(work, own)
        graph.replay()

    own.wait_stream(caller)
    with torch.cuda.device(device):
        try:
            with torch.cuda.stream(own):
                yield run
        finally:
            caller.wait_stream(own)


def _captured(work: Callable[[], None], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    try:
        # other threads may go on allocating
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            work()
    except RuntimeError as error:
        raise ConfigError(
            f'control="graph" cannot capture this round in a CUDA graph: {error}; a captured model must not '
            'wait for the device or copy from the host; pass control="device"'
        ) from error
    return graph
