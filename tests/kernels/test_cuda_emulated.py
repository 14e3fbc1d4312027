"""The CUDA kernel's logic without a GPU: the same source compiled for the host, blocks run by fibers.

It shows that the kernel computes the right thing; speed and the memory model need a device (the gpu tests).
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from emulated import DTYPES, ROOT, ROWS, TABLES, PicardUpdate, address, build, rows

SOURCE = ROOT / "csrc" / "picard_update" / "picard_update.cu"
ENTRY = """
using namespace parasample;
extern "C" void plan(const PicardUpdate* call, int64_t wide_from, CudaPlan* plan) {
  *plan = wide_from > 0 ? plan_picard_update_cuda(*call, wide_from) : plan_picard_update_cuda(*call);
}
extern "C" const char* update(const PicardUpdate* call, const CudaPlan* plan, void* workspace) {
  return launch_picard_update_cuda(*call, *plan, workspace, nullptr);
}
"""
# How a call is cut: an element per thread, vectors, vectors in large blocks, or as the library chooses.
NARROW, WIDE, LARGE, SHIPPED = "narrow", "wide", "large", "shipped"


class Plan(ctypes.Structure):
    """struct CudaPlan of picard_update.h."""

    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("width", "threads")],
        ("blocks", ctypes.c_uint32),
        *[(name, ctypes.c_int32) for name in ("depth", "squares_at", "rows_at", "row_bytes")],
        *[(name, ctypes.c_int32) for name in ("outputs_at", "noise_at", "directions_at", "shared_bytes")],
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    loaded = build(SOURCE, ENTRY, 2, tmp_path_factory.mktemp("emulated"))
    loaded.update.restype = ctypes.c_char_p
    return loaded


def emulate(library, call, cut=NARROW, workspace=None):
    """(states, residual, plan); the workspace is filled with NaN unless one is brought."""
    T, B, D = call.outputs.shape
    residual = torch.full((T + 1, B), torch.nan, dtype=call.residual_scale.dtype)
    description = PicardUpdate(
        *(rows(getattr(call, name)) for name in ROWS),
        0 if call.directions is None else call.directions.stride(2),
        *(address(getattr(call, name)) for name in (*TABLES, "begin", "hold", "end")),
        residual.data_ptr(),
        *(T, B, D, call.state_coef.shape[1]),
        0 if call.weights is None else call.weights.shape[2],
    )
    plan = Plan()
    wide_from = {NARROW: B * D + 1, WIDE: B * D, LARGE: B * D // 8, SHIPPED: 0}[cut]
    library.plan(ctypes.byref(description), ctypes.c_int64(wide_from), ctypes.byref(plan))
    if workspace is None:
        workspace = torch.full((B, T + 1, plan.blocks), torch.nan, dtype=residual.dtype)
    error = library.update(
        ctypes.byref(description), ctypes.byref(plan), ctypes.c_void_p(workspace.data_ptr())
    )
    assert error is None, error
    return call.states, residual, plan


@pytest.mark.parametrize("alias", [False, True])
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_matches_reference(library, random_call, assert_same, reference, dtype, K, alias):
    for seed, (W, B, D) in enumerate([(1, 1, 1), (7, 4, 132), (37, 2, 33)]):
        for outputs_dtype, noise, rank in ((None, True, 0), (torch.bfloat16, False, 2)):
            call = random_call(W, B, D, K, dtype, outputs_dtype, noise, alias, rank, seed=seed)
            expected = reference(call)
            for cut in (NARROW, WIDE):
                states, residual, plan = emulate(library, call.clone(), cut)
                assert plan.width == (4 if D == 132 and cut == WIDE and dtype != torch.float64 else 1)
                assert_same((states, residual), expected)


@pytest.mark.parametrize("K, rank", [(1, 0), (2, 3)])
@pytest.mark.parametrize("cut, D", [(NARROW, 300), (WIDE, 1100), (LARGE, 2100)])
@pytest.mark.parametrize("outputs_dtype", DTYPES, ids=str)
def test_many_blocks(library, random_call, assert_same, reference, cut, D, K, rank, outputs_dtype):
    call = random_call(20, 2, D, K, torch.float32, outputs_dtype, alias=True, rank=rank)
    states, residual, plan = emulate(library, call.clone(), cut)
    assert plan.blocks >= 3
    if rank == 0 and outputs_dtype == torch.bfloat16:  # wider rows go to smaller blocks
        assert plan.threads == (256 if cut == LARGE else 128)
    assert_same((states, residual), reference(call))


@pytest.mark.parametrize("W, B, D", [(1000, 2, 5), (3, 32, 40), (5, 70, 140)])
def test_long_walks_and_large_batches(library, random_call, assert_same, reference, W, B, D):
    """Many tiles of rows; a counter per sample, and (B = 70) counters that samples share."""
    call = random_call(W, B, D, 2, rank=1)
    assert_same(emulate(library, call.clone())[:2], reference(call))


def test_eight_wide_directions_fit(library, random_call, assert_same, reference):
    """The widest rows and deepest history there can be still find two rows' room in shared memory."""
    for dtype in (torch.float32, torch.float64):
        call = random_call(6, 2, 72, 5, dtype, torch.float64, rank=8)
        states, residual, plan = emulate(library, call.clone(), WIDE)
        assert plan.depth >= 2 and plan.shared_bytes <= 40 * 1024
        assert_same((states, residual), reference(call))


def test_plan_keeps_enough_in_flight(library, random_call):
    """24 KiB a multiprocessor hide the latency of an H200's memory; rows are cut where W is no object."""
    for D, threads, blocks in ((1 << 16, 128, 128), (1 << 20, 256, 1024)):
        call = random_call(1, 1, D, 1, torch.float32, torch.bfloat16, noise=False)
        plan = emulate(library, call, SHIPPED)[2]
        assert (plan.width, plan.threads, plan.blocks) == (4, threads, blocks)
        blocks_per_multiprocessor = max(1, min(blocks // 132, 5))
        assert plan.depth * plan.row_bytes * blocks_per_multiprocessor >= 24 * 1024
    small = emulate(library, random_call(1, 1, 4096), SHIPPED)[2]
    assert (small.width, small.blocks) == (1, 32)


@pytest.mark.parametrize("D", [132, 61])
@pytest.mark.parametrize("alias", [False, True])
def test_strided_and_shifted_views(library, random_call, assert_same, reference, D, alias):
    """Gaps after rows, and (odd D) 16-bit rows that start in the middle of a word."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        call = random_call(9, 3, D, 2, dtype, torch.bfloat16, True, alias, 2)
        expected = reference(call)

        def strided(tensor):
            *outer, last = tensor.shape
            gap = 4 - last % 4 if last % 2 == 0 else 2
            return torch.full((*outer, last + gap), torch.nan, dtype=tensor.dtype)[..., :last].copy_(tensor)

        mine = call.clone()
        for name in ROWS:
            setattr(mine, name, strided(getattr(call, name)))
        mine.anchors = mine.states if alias else mine.anchors
        states, residual, plan = emulate(library, mine, WIDE)
        assert plan.width == (4 if D == 132 else 1)
        assert_same((states, residual), expected)


@pytest.mark.parametrize("cut", [NARROW, WIDE])
def test_reads_only_what_is_defined(library, random_call, assert_same, reference, cut):
    """NaN in outputs, directions, anchors, noise and states that must not be read changes nothing."""
    for K in (1, 2, 4):
        call = random_call(W=19, B=4, D=24, K=K, alias=False, rank=2)
        call.begin, call.end = torch.tensor([0, 3, 4, 12]), torch.tensor([19, 18, 5, 19])
        call.hold = torch.tensor([-1, 2, 6, 30])
        expected = reference(call)
        poisoned = call.clone()
        for b in range(4):
            begin, hold, end = int(call.begin[b]), int(call.hold[b]), int(call.end[b])
            for i in range(19):
                if not (begin - K < i < end and i <= hold) and i != hold:
                    poisoned.outputs[i, b] = poisoned.directions[i, b] = torch.nan
                if not begin <= i < end or call.noise_coef[i] == 0:
                    poisoned.noise[i, b] = torch.nan
            poisoned.states[begin + 1 : end + 1, b] = torch.nan
            poisoned.anchors[max(hold + 1, 0) :, b] = torch.nan
        states, residual, _ = emulate(library, poisoned, cut)
        evaluated = torch.arange(20)[:, None] <= call.hold  # other residuals compare with NaN
        ran = (torch.arange(20)[:, None] > call.begin) & (torch.arange(20)[:, None] <= call.end)
        assert not residual[ran & ~evaluated].isfinite().any()
        assert_same(
            (torch.where(ran[..., None], states, 0), torch.where(evaluated, residual, 0)),
            (torch.where(ran[..., None], expected[0], 0), torch.where(evaluated, expected[1], 0)),
        )


def test_bad_values_never_give_a_finite_residual(library, random_call):
    call = random_call(W=6, B=2, D=150)
    call.begin[:], call.hold[:], call.end[:] = 0, 6, 6
    call.state_coef[:], call.output_coef[:] = 0.9, 0.5
    call.outputs[2, 1, 140] = torch.nan
    _, residual, _ = emulate(library, call)
    assert residual[1:, 0].isfinite().all() and residual[1:3, 1].isfinite().all()
    assert not residual[3:, 1].isfinite().any()


def test_workspace_and_counters_serve_again(library, random_call):
    """Nothing is cleared between launches: the second finds what the first left, and gives the same bits."""
    call = random_call(W=9, B=3, D=400, K=2, rank=1)
    workspace = torch.full((3, 10, 4), torch.nan)
    results = [emulate(library, call.clone(), workspace=workspace)[:2] for _ in range(3)]
    for states, residual in results[1:]:
        assert torch.equal(states, results[0][0]) and torch.equal(residual, results[0][1])


def test_ranges_are_clipped_to_the_trajectory(library, random_call):
    """Values on a device cannot be checked: bad ones must not read or write outside the tensors."""
    call = random_call(W=5, B=3, D=40)
    call.begin, call.hold, call.end = (
        torch.tensor([-3, 4, 9]),
        torch.tensor([-9, 99, 0]),
        torch.tensor([4, 50, 12]),
    )
    before = call.clone()
    states, residual, _ = emulate(library, call)
    assert torch.equal(states[:, 2], before.states[:, 2]) and residual[:, 2].isposinf().all()
    assert residual[1:5, 0].isfinite().all() and residual[5, 1].isfinite()
