"""The CUDA kernels of drift_aggregate and gather_inputs run on the host, as test_cuda_emulated.py does."""

from __future__ import annotations

import ctypes

import pytest
import torch
from emulated import DTYPES, ROOT, Rows, address, build, rows
from rounds import drift_call, gather_call

from parasample.kernels import drift_aggregate, gather_inputs

DRIFT_ENTRY = """
extern "C" int64_t workspace(const parasample::DriftAggregate* call) { return cuda_drift_workspace(*call); }
extern "C" const char* drift(const parasample::DriftAggregate* call, void* workspace) {
  return parasample::launch_drift_aggregate_cuda(*call, workspace, nullptr);
}
"""
GATHER_ENTRY = """
extern "C" const char* gather_inputs(const parasample::GatherInputs* call) {
  return parasample::launch_gather_inputs_cuda(*call, nullptr);
}
"""
TABLES = ("guidance", "rescale", "conversion")


class DriftAggregate(ctypes.Structure):
    """struct DriftAggregate of drift_aggregate.h, field by field."""

    _fields_ = [
        *[(name, Rows) for name in ("conditional", "unconditional", "states")],
        *[(name, ctypes.c_void_p) for name in (*TABLES, "result")],
        *[(name, ctypes.c_int64) for name in ("num_rows", "num_elements")],
        ("is_double", ctypes.c_bool),
    ]


class GatherInputs(ctypes.Structure):
    """struct GatherInputs of gather_inputs.h, field by field."""

    _fields_ = [
        *[(name, Rows) for name in ("states", "result")],
        *[(name, ctypes.c_void_p) for name in ("steps", "samples", "scale")],
        *[(f"num_{name}", ctypes.c_int64) for name in ("steps", "samples", "elements", "items")],
        ("copies", ctypes.c_int64),
    ]


@pytest.fixture(scope="module")
def drift(tmp_path_factory):
    source = ROOT / "csrc" / "drift_aggregate" / "drift_aggregate.cu"
    library = build(source, DRIFT_ENTRY, 4, tmp_path_factory.mktemp("drift"))
    library.workspace.restype, library.drift.restype = ctypes.c_int64, ctypes.c_char_p

    def run(call):
        n, D = call["conditional"].shape
        is_double = torch.float64 in [tensor.dtype for tensor in call.values() if tensor is not None]
        real = torch.float64 if is_double else torch.float32
        result = torch.full((n, D), torch.nan, dtype=real)
        description = DriftAggregate(
            *(rows(call[name]) for name in ("conditional", "unconditional", "states")),
            *(address(call[name]) for name in TABLES),
            address(result),
            *(n, D, is_double),
        )
        size = library.workspace(ctypes.byref(description))
        workspace = torch.full((size,), torch.nan, dtype=real)
        assert library.drift(ctypes.byref(description), ctypes.c_void_p(workspace.data_ptr())) is None
        return result

    return run


@pytest.fixture(scope="module")
def gather(tmp_path_factory):
    source = ROOT / "csrc" / "gather_inputs" / "gather_inputs.cu"
    library = build(source, GATHER_ENTRY, 2, tmp_path_factory.mktemp("gather"))
    library.gather_inputs.restype = ctypes.c_char_p

    def run(states, steps, samples, scale, copies, dtype):
        T, B, D = states.shape[0] - 1, *states.shape[1:]
        result = torch.full((copies * len(steps), D), torch.nan, dtype=dtype)
        description = GatherInputs(
            *(rows(states), rows(result), address(steps), address(samples), address(scale)),
            *(T, B, D, len(steps), copies),
        )
        assert library.gather_inputs(ctypes.byref(description)) is None
        return result

    return run


@pytest.mark.parametrize("states", [None, *DTYPES], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_drift_matches_reference(drift, dtype, states):
    for n, D in ((1, 2), (3, 63), (2, 2048), (2, 2049), (2, 9000)):
        for parts in ("", "guided", "guided rescaled", "clipped", "guided rescaled clipped"):
            call = drift_call(n, D, dtype, states, parts)
            expected = drift_aggregate(**call, face="reference")
            tolerance = 1e-11 if expected.dtype == torch.float64 else 5e-5
            torch.testing.assert_close(drift(call), expected, rtol=tolerance, atol=tolerance)


def test_drift_rows_of_more_chunks_than_parts(drift):
    call = drift_call(2, 70 * 2048 + 5)
    call["conditional"], call["unconditional"] = call["conditional"] + 50, call["unconditional"] + 50
    call["rescale"][:] = 0.8
    expected = drift_aggregate(**call, face="reference")
    torch.testing.assert_close(drift(call), expected, rtol=5e-5, atol=2e-3)


@pytest.mark.parametrize("D", [40, 5000])
def test_drift_bad_values_propagate(drift, D):
    call = drift_call(3, D, parts="guided rescaled clipped")
    call["rescale"] = torch.tensor([0.5, 0.0, 0.5])
    call["conditional"][:2, 7] = torch.nan
    finite = drift(call).isfinite()
    assert not finite[0].any() and finite[1].sum() == D - 1 and finite[2].all()
    one = drift_call(1, 1, parts="guided rescaled")
    assert drift(one).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("to", DTYPES, ids=str)
def test_gather_matches_reference(gather, dtype, to):
    for scaled, copies in ((True, 2), (False, 1)):
        for D in (1, 63, 4100):
            call = gather_call(D=D, dtype=dtype, scaled=scaled)
            expected = gather_inputs(*call, copies, to, face="reference")
            torch.testing.assert_close(gather(*call, copies, to), expected, rtol=0, atol=0)


def test_gather_clips_indices(gather):
    """Values on a device cannot be checked: bad ones must not read outside the trajectory."""
    states, steps, samples, scale = gather_call(T=4, B=2, D=9, n=4)
    steps[:], samples[:] = torch.tensor([-5, 9, 4, 0]), torch.tensor([0, 1, 7, -1])
    expected = gather_inputs(states, steps.clamp(0, 3), samples.clamp(0, 1), scale, face="reference")
    assert torch.equal(gather(states, steps, samples, scale, 1, torch.float32), expected)
