"""Which device a process group exchanges a tensor on."""

from __future__ import annotations

import pytest

from parasample.runtime.transports import carrier_type


@pytest.mark.parametrize(
    ("backend", "device_type", "carrier"),
    [
        ("nccl", "cpu", "cuda"),
        ("nccl", "cuda", "cuda"),
        ("cuda:nccl", "cpu", "cuda"),
        ("gloo", "cpu", "cpu"),
        ("gloo", "cuda", "cpu"),
        ("cpu:gloo,cuda:gloo", "cuda", "cpu"),
        ("cpu:gloo,cuda:nccl", "cpu", "cpu"),
        ("cpu:gloo,cuda:nccl", "cuda", "cuda"),
        ("cpu:mpi", "cuda", "cpu"),
        ("somebodys", "cuda", "cuda"),
    ],
)
def test_a_tensor_travels_on_a_device_its_group_serves(backend: str, device_type: str, carrier: str) -> None:
    assert carrier_type(backend, device_type) == carrier
