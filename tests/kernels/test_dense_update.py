"""dense_update: its triangular system equals picard_update's recurrence, and every face equals both."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch
from emulated import ROOT, ROWS, TABLES, PicardUpdate, address, build, rows
from rounds import NAMES, device_of

from parasample.kernels import dense_update, picard_update

FACES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DENSE = (  # W, B, D, K: one step, a deep band, dense rows, more than one chunk, a long trajectory
    (1, 1, 1, 1),
    (7, 3, 63, 3),
    (20, 4, 33, 13),
    (40, 2, 65, 40),
    (24, 2, 1300, 9),
    (60, 2, 17, 80),
)


def label(value):
    """Of a shape, for the test's name; dtypes have theirs."""
    return "W{}-B{}-D{}-K{}".format(*value) if isinstance(value, tuple) else NAMES.get(value)


def run(call, face):
    mine = call.clone(device_of(face))
    return mine.states, dense_update(*mine.args()[:13], face=face)


@pytest.mark.parametrize("alias", [False, True])
@pytest.mark.parametrize("shape", DENSE, ids=label)
def test_reference_solves_the_recurrence(random_call, assert_same, reference, shape, alias):
    for seed in range(3):
        call = random_call(*shape, torch.float64, alias=alias, seed=seed)
        assert_same(run(call, "reference"), reference(call))


@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("shape", DENSE, ids=label)
@pytest.mark.parametrize("face", FACES)
def test_matches_reference(random_call, assert_same, face, shape, dtype):
    for seed, (outputs, noise, alias) in enumerate([(None, True, True), (torch.bfloat16, False, False)]):
        call = random_call(*shape, dtype, outputs, noise, alias, seed=seed)
        assert_same(run(call, face), run(call, "reference"))


@pytest.mark.parametrize("face", FACES)
def test_a_thousand_dense_steps(random_call, assert_same, face, reference):
    call = random_call(1000, 1, 40, 1000, alias=True)
    assert_same(run(call, face), run(call, "reference"))


@pytest.mark.parametrize("shape", [(1, 1, 1 << 22, 1), (9, 32, 300, 9), (33, 2, 5001, 33)], ids=label)
@pytest.mark.parametrize("face", FACES)
def test_matches_reference_large(random_call, assert_same, face, shape):
    call = random_call(*shape, torch.float32, torch.bfloat16, True, True)
    assert_same(run(call, face), run(call, "reference"))


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("alias", [False, True])
@pytest.mark.parametrize("D", [29, 1032])
def test_strided_rows_and_samples(random_call, assert_same, face, alias, D):
    call = random_call(W=8, B=3, D=D, K=8, alias=alias)
    expected = run(call, "reference")

    def strided(tensor):  # samples outermost, with a gap after each row
        rows, samples, elements = tensor.shape
        wide = torch.full((samples, rows, elements + 4), torch.nan, device=device_of(face))
        return wide[:, :, :elements].transpose(0, 1).copy_(tensor)

    mine = call.clone(device_of(face))
    mine.states, mine.outputs, mine.noise = strided(call.states), strided(call.outputs), strided(call.noise)
    mine.anchors = mine.states if alias else strided(call.anchors)
    assert not mine.states.is_contiguous() and not mine.outputs.is_contiguous()
    assert_same((mine.states, dense_update(*mine.args()[:13], face=face)), expected)
    mine = call.clone(device_of(face))
    mine.outputs = mine.outputs.transpose(0, 2).contiguous().transpose(0, 2)  # strided in D: copied
    assert_same((mine.states, dense_update(*mine.args()[:13], face=face)), expected)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("B, D", [(0, 5), (2, 0)])
def test_nothing_to_do(random_call, face, B, D):
    call = random_call(W=3, B=2, D=5, K=3)
    call.states, call.anchors = torch.empty(4, B, D), torch.empty(4, B, D)
    call.outputs, call.noise = torch.empty(3, B, D), torch.empty(3, B, D)
    call.begin, call.hold, call.end = call.begin[:B], call.hold[:B], call.end[:B]
    _, residual = run(call, face)
    assert residual.shape == (4, B) and not residual.isnan().any()


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("op, K", [(picard_update, 2), (dense_update, 7)], ids=["picard", "dense"])
def test_everything_in_range_is_written(random_call, assert_same, op, K, face):
    """States to be overwritten hold NaN, and so does new memory: none may be left."""
    call = random_call(W=9, B=3, D=1111, K=K, alias=False)
    call.begin[:], call.hold[:], call.end[:] = 2, 8, 9
    mine, expected = call.clone(device_of(face)), call.clone()
    residual = op(*expected.args()[:13], face="reference")
    mine.states[3:] = torch.nan
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        found = op(*mine.args()[:13], face=face)
    finally:
        torch.use_deterministic_algorithms(before)
    assert mine.states.isfinite().all() and not found.isnan().any()
    assert_same((mine.states, found), (expected.states, residual))


@pytest.mark.parametrize("face", FACES)
def test_reads_only_what_is_defined(random_call, assert_same, face, reference):
    """NaN wherever nothing may be read: the result must not change."""
    call = random_call(W=12, B=4, D=21, K=7)
    call.begin, call.hold, call.end = (
        torch.tensor([0, 3, 4, 2]),
        torch.tensor([-1, 2, 6, 30]),
        torch.tensor([12, 8, 11, 7]),
    )
    call.output_coef[:, 5:] = call.state_coef[:, 5:] = call.anchor_coef[:, 5:] = 0
    expected = reference(call)
    poisoned = call.clone()
    for b in range(4):
        begin, hold, end = int(call.begin[b]), int(call.hold[b]), int(call.end[b])
        for i in range(12):
            if not (begin - 5 < i < end and i <= hold) and i != hold:
                poisoned.outputs[i, b] = torch.nan
            if not begin <= i < end or call.noise_coef[i] == 0:
                poisoned.noise[i, b] = torch.nan
            if not begin - 5 < i <= begin:
                poisoned.states[i, b] = torch.nan
        poisoned.states[end + 1 :, b] = call.states[end + 1 :, b]
        poisoned.anchors[max(hold + 1, 0) :, b] = torch.nan  # only the residual sees these
    states, residual = run(poisoned, face)
    index = torch.arange(13)[:, None]
    inside = (index > call.begin) & (index <= call.end)
    compared = inside & (index <= call.hold)
    assert_same(
        (states.cpu()[inside], torch.where(compared, residual.cpu(), 0)),
        (expected[0][inside], torch.where(compared, expected[1], 0)),
    )
    assert not residual.cpu()[inside & ~compared].isfinite().any()


@pytest.mark.parametrize("face", ["reference", *FACES])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_never_give_a_finite_residual(random_call, face, bad):
    call = random_call(W=9, B=2, D=37, K=6)
    call.begin[:], call.hold[:], call.end[:] = 0, 9, 9
    call.output_coef[:], call.state_coef[:] = 0.1, 0.1
    call.outputs[4, 1, 20] = bad
    _, residual = run(call, face)
    assert residual[1:, 0].isfinite().all() and not residual[5:, 1].isfinite().any()
    if face != "reference":  # its matrix product multiplies by zeros, too
        assert residual[1:5, 1].isfinite().all()


def test_cpu_is_bit_equal_for_any_thread_count(random_call):
    call = random_call(W=20, B=3, D=3000, K=12)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(call, "cpu"))
    finally:
        torch.set_num_threads(before)
    for states, residual in results[1:]:
        assert torch.equal(states, results[0][0]) and torch.equal(residual, results[0][1])


@pytest.mark.parametrize("rank", [0, 3])
def test_deep_histories_of_picard_update_come_here(random_call, assert_same, reference, rank, monkeypatch):
    """Corrections included; nothing falls back to the reference, which reads ranges on the host."""
    call = random_call(W=20, B=3, D=50, K=13, rank=rank)
    expected, mine = reference(call), call.clone()
    for op in ("dense_update", "picard_update"):
        monkeypatch.delattr(sys.modules[f"parasample.kernels.{op}"], f"{op}_reference")
    assert_same((mine.states, picard_update(*mine.args())), expected)


@pytest.mark.parametrize("face", FACES)
def test_opcheck_and_compile(random_call, face):
    call = random_call(W=9, B=2, D=12, K=8).clone(device_of(face))
    dense_update(*call.clone(device_of(face)).args()[:13])  # loads the library
    torch.library.opcheck(torch.ops.parasample.dense_update.default, call.clone().args()[:13])
    eager, mine = call.clone(), call.clone()
    expected = dense_update(*eager.args()[:13])
    found = torch.compile(dense_update, fullgraph=True, backend="aot_eager")(*mine.args()[:13])
    assert torch.equal(found, expected) and torch.equal(mine.states, eager.states)


@pytest.mark.parametrize("face", ["reference", *FACES])
def test_errors_name_the_op(random_call, face):
    call = random_call(W=5, B=2, D=9, K=7).clone(device_of(face))
    call.outputs = call.outputs[:, :, 1:]
    with pytest.raises(ValueError, match="dense_update: outputs must have shape"):
        dense_update(*call.args()[:13], face=face)


@pytest.mark.gpu
def test_gpu_is_bit_equal_from_run_to_run(random_call):
    call = random_call(W=30, B=3, D=9000, K=20)
    first = run(call, "cuda")
    for _ in range(3):
        again = run(call, "cuda")
        assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])


# ---------------------------------------------------------------------- the CUDA kernels on the host

ENTRY = """
using namespace parasample;
extern "C" int64_t workspace(const PicardUpdate* call) { return dense_workspace_cuda(*call); }
extern "C" const char* update(const PicardUpdate* call, void* workspace) {
  return launch_dense_update_cuda(*call, workspace, nullptr);
}
"""


@pytest.fixture(scope="module")
def emulate(tmp_path_factory):
    source = ROOT / "csrc" / "dense_update" / "dense_update.cu"
    library = build(source, ENTRY, 2, tmp_path_factory.mktemp("dense"))
    library.update.restype, library.workspace.restype = ctypes.c_char_p, ctypes.c_int64

    def run(call):
        T, B, D = call.outputs.shape
        residual = torch.full((T + 1, B), torch.nan, dtype=call.residual_scale.dtype)
        description = PicardUpdate(
            *(rows(getattr(call, name)) for name in ROWS),
            0,
            *(address(getattr(call, name)) for name in (*TABLES, "begin", "hold", "end")),
            residual.data_ptr(),
            *(T, B, D, call.state_coef.shape[1]),
            0,
        )
        size = library.workspace(ctypes.byref(description))
        workspace = torch.full((size,), torch.nan, dtype=residual.dtype)
        error = library.update(ctypes.byref(description), ctypes.c_void_p(workspace.data_ptr()))
        assert error is None, error
        return call.states, residual

    return run


@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("shape", [*DENSE[:4], (9, 2, 300, 6)], ids=label)
def test_emulated_kernel_matches_reference(emulate, random_call, assert_same, shape, dtype):
    for seed, (outputs, noise, alias) in enumerate([(None, True, True), (torch.float16, False, False)]):
        call = random_call(*shape, dtype, outputs, noise, alias, seed=seed)
        assert_same(emulate(call.clone()), run(call, "reference"))


def test_emulated_ranges_are_clipped(emulate, random_call):
    call = random_call(W=5, B=3, D=40, K=7)
    call.begin, call.hold, call.end = (
        torch.tensor([-3, 4, 9]),
        torch.tensor([-9, 99, 0]),
        torch.tensor([4, 50, 12]),
    )
    before = call.clone()
    states, residual = emulate(call)
    assert torch.equal(states[:, 2], before.states[:, 2]) and residual[:, 2].isposinf().all()
    assert residual[1:5, 0].isfinite().all() and residual[5, 1].isfinite()
