"""Times of calls: out of cache one by one, or as a stream; beside them what the device can do at most.

On CUDA a call is timed by events, after a write of more than the L2 cache holds. On a CPU it is timed by the
wall-clock, on argument sets that together exceed the last-level cache, taken in turn. Nothing is subtracted.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from parasample.cli.bench.kernels.registry import Call, Contender

MIN_CALLS = 20
# Passes over all contenders follow a copy for so long: a copy drives code out of the caches, too, and what is
# short would hardly be seen without that.
PASSES_SECONDS = 0.02
STREAM = 100  # calls of a hot measurement between two looks at the clock
COPY_BYTES = {"cpu": 2**26, "cuda": 2**29}  # read, and as many written: far more than any cache
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}
MAX_SETS = 256  # of small arguments: each contender's own buffers come on top
UNKNOWN_CACHE_BYTES = 2**25


class Clock:
    """Times contenders on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self.cache_bytes = self._cache_bytes()
        elements = COPY_BYTES[device.type] // 4
        self._source, self._target = (torch.ones(elements, device=device) for _ in range(2))
        self._flushed = torch.empty(4 * self.cache_bytes if self.cuda else 0, dtype=torch.int8, device=device)

    @property
    def method(self) -> str:
        """How cold rows are timed, in words."""
        mebibytes = self.cache_bytes / 2**20
        if self.cuda:
            return f"CUDA events, {4 * mebibytes:.0f} MiB written before each call (L2 {mebibytes:.0f} MiB)"
        return f"wall-clock, over argument sets exceeding the last-level cache of {mebibytes:.0f} MiB"

    def cold(
        self, contenders: Mapping[str, Contender], arguments: Any, set_bytes: int
    ) -> dict[str, list[float]]:
        """Microseconds of calls by name, "copy" for the copies between them; all alternate."""
        # One set suffices on CUDA, where the cache is overwritten; or where a call overruns it by itself.
        sets = 1 if self.cuda else min(2 * self.cache_bytes // set_bytes + 1, MAX_SETS)
        copies = [arguments, *(copy.deepcopy(arguments) for _ in range(sets - 1))]
        calls = {name: [c.build(of) for of in copies] for name, c in contenders.items()}
        times: dict[str, list[float]] = {name: [] for name in [*calls, "copy"]}
        for choices in calls.values():
            self._time(choices[0])
        position = 0
        while not _enough(times):
            times["copy"].append(self._time(lambda: self._target.copy_(self._source)))
            until = time.perf_counter() + PASSES_SECONDS
            while calls and time.perf_counter() < until:
                for name, choices in calls.items():
                    position += 1
                    times[name].append(self._time(choices[position % len(choices)]))
        return times

    def hot(self, contenders: Mapping[str, Contender], arguments: Any) -> dict[str, list[float]]:
        """Microseconds per call of streams of calls by name; the streams alternate."""
        calls = {name: contender.build(copy.deepcopy(arguments)) for name, contender in contenders.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(MIN_CALLS + 1):
            for name, call in calls.items():
                began_at = self._now()
                for _ in range(STREAM):
                    call()
                seconds = self._now() - began_at
                if repeat:  # the first stream warms up
                    times[name].append(1e6 * seconds / STREAM)
        return times

    def ceilings(self) -> dict[str, float]:
        """Copy bandwidth, and the peak of fused multiply-adds: a float32 matrix product is hardly else."""
        n = PRODUCT_SIZE[self.device.type]
        a, b = (torch.ones(n, n, device=self.device) for _ in range(2))
        copies = self.cold({}, None, self.cache_bytes)["copy"]
        products = [self._time(lambda: a @ b) for _ in range(MIN_CALLS)]
        return {
            "copy_gb_per_s": gb_per_s(2 * COPY_BYTES[self.device.type], fast(copies)),
            "gflop_per_s": 2 * n**3 / min(products) / 1e3,
        }

    def copy_gb_per_s(self, microseconds: list[float]) -> float:
        """Bandwidth of the copies between the calls of a cold measurement."""
        return gb_per_s(2 * COPY_BYTES[self.device.type], fast(microseconds))

    def _time(self, call: Call) -> float:
        if not self.cuda:
            began_at = time.perf_counter()
            call()
            return 1e6 * (time.perf_counter() - began_at)
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flushed.zero_()
        began.record()
        call()
        ended.record()
        ended.synchronize()
        return 1e3 * began.elapsed_time(ended)

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _cache_bytes(self) -> int:
        if self.cuda:
            return torch.cuda.get_device_properties(self.device).L2_cache_size
        sizes = [path.read_text() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
        units = {"K": 2**10, "M": 2**20}
        found = [int(size.strip()[:-1]) * units[size.strip()[-1]] for size in sizes if size.strip()]
        return max(found, default=UNKNOWN_CACHE_BYTES)


def _enough(times: Mapping[str, list[float]]) -> bool:
    return min(len(values) for values in times.values()) >= MIN_CALLS


def fast(values: list[float]) -> float:
    """The 20th percentile: what other work on the machine disturbs least; for times and copies alike."""
    return float(torch.quantile(torch.tensor(values, dtype=torch.float64), 0.2))


def gb_per_s(num_bytes: int, microseconds: float) -> float:
    """10^9 bytes per second."""
    return num_bytes / microseconds / 1e3
