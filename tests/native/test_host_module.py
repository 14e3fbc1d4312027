"""The native module of the transports: what it asks of the machine, and what it refuses to map."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from parasample.runtime.transports import _host
from parasample.runtime.transports._host import ChannelSize, Segment, State

ROOT = Path(__file__).resolve().parents[2]
SIZES = [(24, 1, 3, 2), (100, 2, 4, 1)]  # bytes, keep, slots, readers
SYSTEM = (
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libm.so.6",
    "libc.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "ld-linux",
)


def sizes(changed: int = 0, **changes: int) -> list[ChannelSize]:
    names = ("bytes", "keep", "slots", "readers")
    all_sizes = [dict(zip(names, size, strict=True)) for size in SIZES]
    all_sizes[changed] |= changes
    return [ChannelSize(**size) for size in all_sizes]


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.create(1, sizes())
    yield made
    made.unlink()


def inspect(tool: str, *arguments: str) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed: the module was not audited")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def test_module_needs_python_and_the_system_only() -> None:
    dynamic = inspect("readelf", "-d", _host.__file__)
    needed = [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert needed and all(name.startswith(SYSTEM) for name in needed), needed
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    symbols = [line.split() for line in inspect("nm", "-D", "-u", _host.__file__).splitlines()]
    strangers = [
        s[-1] for s in symbols if s[0] == "U" and "@" not in s[-1] and not s[-1].startswith(("Py", "_Py"))
    ]
    assert not strangers
    assert str(ROOT).encode() not in Path(_host.__file__).read_bytes()


def test_rings_compile_without_a_warning() -> None:
    compiler = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
    if compiler is None:
        pytest.skip("no C++ compiler: the rings were not compiled anew")
    command = [
        compiler,
        "-std=c++17",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-I",
        "csrc",
        "-S",
        "-o",
        os.devnull,
    ]
    done = subprocess.run(
        [*command, "csrc/transport/segment.cpp"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_segment_is_private_and_its_name_goes_first(segment: Segment) -> None:
    path = Path("/dev/shm") / segment.name.lstrip("/")
    assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_size == segment.bytes
    assert segment.name != Segment.create(1, sizes()).name
    reader = Segment.map(segment.name, 1, sizes())
    segment.unlink()
    assert not path.exists()
    slot = reader.slot_offset(0, 0)
    torch.frombuffer(segment, dtype=torch.uint8)[slot] = 7
    assert memoryview(reader)[slot] == 7


def test_slots_are_aligned_and_apart(segment: Segment) -> None:
    spans = [
        (segment.slot_offset(channel, slot), size[0])
        for channel, size in enumerate(SIZES)
        for slot in range(size[2])
    ]
    assert all(offset % 64 == 0 for offset, _ in spans)
    ends = [offset + length for offset, length in spans]
    assert all(end <= offset for end, (offset, _) in zip(ends, spans[1:], strict=False))
    assert ends[-1] <= segment.bytes
    with pytest.raises(IndexError):
        segment.slot_offset(0, SIZES[0][2])
    with pytest.raises(IndexError):
        segment.slot_offset(2, 0)


@pytest.mark.parametrize(
    ("rank", "other"),
    [
        (0, sizes()),
        (1, sizes(bytes=25)),
        (1, sizes(bytes=4096)),
        (1, sizes(changed=1, keep=1)),
        (1, sizes(slots=4)),
        (1, sizes(changed=1, readers=2)),
        (1, sizes()[:1]),
        (1, sizes()[::-1]),
        (1, []),
    ],
)
def test_a_segment_of_other_channels_is_refused(
    rank: int, other: list[ChannelSize], segment: Segment
) -> None:
    with pytest.raises(RuntimeError, match="header|expected"):
        Segment.map(segment.name, rank, other)


def test_a_name_that_nobody_made_is_refused() -> None:
    with pytest.raises(OSError, match="No such file"):
        Segment.map("/parasample-0-0", 0, [])


def make_and_sleep(pipe: Connection) -> None:
    segment = Segment.create(0, [])
    pipe.send(segment.name)
    pipe.recv()


def test_a_segment_knows_whether_its_maker_lives(segment: Segment) -> None:
    assert segment.alive() and segment.state == State.OPEN
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    maker = context.Process(target=make_and_sleep, args=(there,))
    maker.start()
    found = Segment.map(here.recv(), 0, [])
    assert found.alive()
    maker.kill()
    os.waitid(os.P_PID, maker.pid, os.WEXITED | os.WNOWAIT)  # it has ended, but is not reaped
    assert not found.alive() and found.state == State.OPEN
    maker.join()
    assert not found.alive()
    Path("/dev/shm", found.name.lstrip("/")).unlink()


def test_the_ring_says_when_to_wait(segment: Segment) -> None:
    """Channel 1: keep 2, 4 slots, 1 reader."""
    reader = Segment.map(segment.name, 1, sizes())
    assert reader.receive(1, 0, 0.0) == -1
    for message in range(4):
        assert segment.reserve(1, 0.0) == message
        segment.publish(1)
    assert segment.reserve(1, 0.0) == -1  # the reader has given nothing back
    assert [reader.receive(1, 0, 0.0) for _ in range(2)] == [0, 1]
    assert segment.reserve(1, 0.0) == -1  # and still keeps two
    assert reader.receive(1, 0, 0.0) == 2
    assert segment.reserve(1, 0.0) == 0
    with pytest.raises(IndexError):
        reader.receive(1, 1, 0.0)
