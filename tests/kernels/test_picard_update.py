"""Every face of picard_update equals the reference, and the reference equals the definition."""

from __future__ import annotations

import os

import pytest
import torch

from parasample.kernels import picard_update

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON_SKIP = "triton needs CUDA or the interpreter; test_triton_interpreted.py runs these interpreted"
FACES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.gpu),
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason=TRITON_SKIP),
    ),
]
NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16"}


def device_of(face: str) -> str:
    return "cuda" if face == "cuda" or (face == "triton" and not INTERPRETED) else "cpu"


def run(call, face):  # -> (states, residual), and the call that was mutated
    mine = call.clone(device_of(face))
    return mine.states, picard_update(*mine.args(), face=face)


SHAPES = [  # W, B, D, K, dtype, outputs_dtype, noise, alias and, where outputs are corrected, R
    (1, 1, 1, 1, torch.float32, None, True, False),
    (1, 5, 63, 1, torch.float32, None, False, True),
    (7, 3, 63, 1, torch.float32, None, True, True),
    (7, 3, 300, 1, torch.float64, None, True, True),
    (7, 2, 65, 1, torch.bfloat16, None, True, True),
    (7, 2, 65, 1, torch.float16, None, True, False),
    (6, 2, 33, 2, torch.float32, torch.bfloat16, True, True),
    (6, 2, 33, 2, torch.bfloat16, torch.float32, False, False),
    (6, 2, 33, 3, torch.float32, torch.float16, True, False),
    (6, 2, 33, 3, torch.float16, None, True, True),
    (6, 4, 17, 4, torch.float64, torch.float32, True, True),
    (8, 5, 31, 5, torch.float32, None, True, True),
    (8, 2, 31, 5, torch.bfloat16, None, True, False),
    (1, 2, 9, 1, torch.float32, None, True, False, 1),
    (7, 3, 64, 1, torch.float32, torch.bfloat16, True, True, 3),
    (6, 3, 33, 2, torch.bfloat16, torch.float16, False, True, 2),
    (6, 2, 20, 3, torch.float64, torch.float32, True, False, 8),
    (8, 4, 17, 5, torch.float16, torch.float32, True, True, 5),
]
LARGE = [  # more than one chunk of the CPU kernel, and long trajectories
    (32, 2, 5001, 1, torch.float32, None, True, True),
    (32, 2, 5001, 2, torch.bfloat16, None, True, True),
    (16, 1, 2500, 5, torch.float32, torch.float16, True, True),
    (16, 3, 2500, 3, torch.float16, torch.float32, False, True),
    (1000, 2, 40, 1, torch.float32, None, True, True),
    (1000, 1, 1030, 2, torch.float64, None, True, False),
    (9, 32, 300, 1, torch.float32, torch.bfloat16, True, True, 4),
    (33, 2, 4096, 2, torch.float32, torch.float16, True, True, 8),
    (1000, 1, 64, 3, torch.float32, None, False, True, 2),
    (20, 40, 1026, 1, torch.bfloat16, None, True, True),
    (1, 1, 1 << 22, 1, torch.float32, torch.bfloat16, False, True),
]


def label(shape):
    W, B, D, K, dtype, outputs, noise, alias, *rank = shape
    parts = [
        f"W{W}-B{B}-D{D}-K{K}-{NAMES[dtype]}",
        f"m_{NAMES[outputs]}" if outputs else "",
        "z" if noise else "",
        "alias" if alias else "",
        f"R{rank[0]}" if rank else "",
    ]
    return "-".join(part for part in parts if part)


def from_shape(random_call, shape, **more):
    return random_call(*shape, **more)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("alias", [False, True])
def test_reference_matches_definition(random_call, by_hand, assert_same, K, alias, rank, reference):
    for seed in range(4):
        call = random_call(W=6, B=4, D=3, K=K, dtype=torch.float64, alias=alias, rank=rank, seed=seed)
        states, residual = by_hand(call)
        expected = torch.tensor(states, dtype=torch.float64), torch.tensor(residual, dtype=torch.float64)
        assert_same(reference(call), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=label)
@pytest.mark.parametrize("face", FACES)
def test_matches_reference(random_call, assert_same, face, shape, reference):
    for seed in range(1 if face == "triton" and INTERPRETED else 3):
        call = from_shape(random_call, shape, seed=seed)
        assert_same(run(call, face), reference(call))


@pytest.mark.parametrize("shape", LARGE, ids=label)
@pytest.mark.parametrize("face", [*FACES[:2], pytest.param("triton", marks=pytest.mark.gpu)])
def test_matches_reference_large(random_call, assert_same, face, shape, reference):
    call = from_shape(random_call, shape)
    assert_same(run(call, face), reference(call))


@pytest.mark.parametrize("face", ["reference", *FACES])
@pytest.mark.parametrize("K, rank", [(1, 0), (3, 0), (1, 2), (3, 2)])
def test_reads_only_what_is_defined(random_call, assert_same, face, K, rank, reference):
    """NaN wherever nothing may be read: the result must not change."""
    call = random_call(W=9, B=4, D=21, K=K, rank=rank)
    call.begin, call.hold, call.end = (
        torch.tensor([0, 3, 4, 2]),
        torch.tensor([-1, 2, 6, 9]),
        torch.tensor([9, 8, 9, 7]),
    )
    call.output_coef[:, K - 1] = 0 if K > 1 else call.output_coef[:, 0]
    expected = reference(call)
    poisoned = call.clone()
    for b in range(4):
        begin, hold, end = int(call.begin[b]), int(call.hold[b]), int(call.end[b])
        for i in range(9):
            read = begin - K < i < end and i <= hold
            # the last column is zero where K > 1: one row less of history; a held row always needs `hold`
            if K > 1 and i == begin - K + 1:
                read = False
            if not read and i != hold:
                poisoned.outputs[i, b] = torch.nan
                if rank:
                    poisoned.directions[i, b] = torch.nan
            if not begin <= i < end or call.noise_coef[i] == 0:
                poisoned.noise[i, b] = torch.nan
        poisoned.states[begin + 1 : end + 1, b] = torch.nan  # written, never read
        poisoned.states[end + 1 :, b] = call.states[end + 1 :, b]
        poisoned.anchors[end + 1 :, b] = torch.nan
        poisoned.anchors[max(hold + 1, 0) : end + 1, b] = torch.nan  # only the residual sees these
    states, residual = run(poisoned, face if face != "reference" else "reference")
    rows = torch.arange(10)[:, None]
    compared = rows <= call.hold  # residuals beyond hold compare with garbage
    assert_same(
        (states, torch.where(compared, residual.cpu(), 0)),
        (expected[0], torch.where(compared, expected[1], 0)),
    )


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("outputs_dtype", [torch.float32, torch.bfloat16])
def test_expanded_directions_are_read_in_place(random_call, assert_same, face, outputs_dtype, reference):
    """One set of directions for all steps and samples: strides of zero."""
    call = random_call(W=5, B=3, D=24, rank=2, outputs_dtype=outputs_dtype)
    call.directions = call.directions[0, 0].nan_to_num().expand(5, 3, 2, 24)
    assert_same(run(call, face), reference(call))


@pytest.mark.parametrize("face", FACES)
def test_zero_weights_change_no_bit(random_call, face):
    call = random_call(W=7, B=3, D=50, K=2, rank=4)
    call.weights.zero_()
    call.directions.fill_(torch.nan)
    corrected = run(call, face)
    call.weights = call.directions = None
    for found, expected in zip(corrected, run(call, face), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("face", ["reference", *FACES])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_propagate(random_call, face, bad):
    call = random_call(W=6, B=2, D=37)
    call.begin[:], call.hold[:], call.end[:] = 0, 6, 6
    call.state_coef[:], call.output_coef[:] = 0.9, 0.5
    call.outputs[2, 1, 17] = bad
    states, residual = run(call, face)
    assert states[:, 0].isfinite().all() and residual[1:, 0].isfinite().all()
    assert states[:3, 1].isfinite().all() and residual[1:3, 1].isfinite().all()
    assert not states[3:, 1, 17].isfinite().any() and not residual[3:, 1].isfinite().any()


@pytest.mark.parametrize("face", FACES)
def test_float16_overflow_is_infinite(random_call, face):
    call = random_call(W=2, B=1, D=20, dtype=torch.float16, noise=False)
    call.begin[:], call.hold[:], call.end[:] = 0, 2, 2
    call.states[0], call.state_coef[:] = 60000, 1.5
    call.anchor_coef[:], call.output_coef[:] = 0, 0
    states, residual = run(call, face)
    assert states[1:].isinf().all() and not residual[1:].isfinite().any()


@pytest.mark.parametrize("face", ["reference", *FACES])
def test_empty_range_touches_nothing(random_call, face):
    call = random_call(W=5, B=3, D=9)
    call.begin, call.hold, call.end = (
        torch.tensor([2, 4, 5]),
        torch.tensor([1, 0, 0]),
        torch.tensor([2, 1, 5]),
    )
    states, residual = run(call, face)
    assert torch.equal(states.cpu(), call.states)
    assert residual.isposinf().all()


@pytest.mark.parametrize("face", ["reference", *FACES])
def test_rows_outside_the_range_are_left(random_call, face):
    call = random_call(W=8, B=2, D=9, K=2)
    call.begin, call.hold, call.end = torch.tensor([2, 0]), torch.tensor([4, 5]), torch.tensor([5, 3])
    states, residual = run(call, face)
    for b in range(2):
        outside = [i for i in range(9) if not call.begin[b] < i <= call.end[b]]
        assert torch.equal(states[outside, b].cpu(), call.states[outside, b])
        assert residual[outside, b].isposinf().all()
        inside = [i for i in range(9) if i not in outside]
        assert residual[inside, b].isfinite().all()


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("alias", [False, True])
@pytest.mark.parametrize("D", [29, 32])  # no row, or every row, aligned for vector loads
def test_strided_rows_and_samples(random_call, assert_same, face, alias, D, reference):
    call = random_call(W=6, B=3, D=D, K=2, alias=alias, rank=3)
    expected = reference(call)
    device = device_of(face)

    def strided(tensor):  # samples outermost, with a gap after each row
        rows, samples, elements = tensor.shape
        view = torch.full((samples, rows, elements + 4), torch.nan, device=device)[:, :, :elements]
        return view.transpose(0, 1).copy_(tensor)

    mine = call.clone(device)
    mine.states, mine.outputs, mine.noise = strided(call.states), strided(call.outputs), strided(call.noise)
    mine.anchors = mine.states if alias else strided(call.anchors)
    # directions outermost, with a gap after each
    directions = torch.full((3, 6, 3, D + 4), torch.nan, device=device)[..., :D].permute(1, 2, 0, 3)
    mine.directions = directions.copy_(call.directions)
    assert not mine.states.is_contiguous() and not mine.directions.is_contiguous()
    residual = picard_update(*mine.args(), face=face)
    assert_same((mine.states, residual), expected)


@pytest.mark.parametrize("face", FACES)
def test_inputs_strided_in_d_are_copied(random_call, assert_same, face, reference):
    call = random_call(W=4, B=2, D=11, rank=2)
    expected = reference(call)
    mine = call.clone(device_of(face))
    mine.directions = mine.directions.transpose(2, 3).contiguous().transpose(2, 3)
    mine.outputs = mine.outputs.transpose(0, 2).contiguous().transpose(0, 2)
    mine.anchors = mine.anchors.transpose(1, 2).contiguous().transpose(1, 2)
    residual = picard_update(*mine.args(), face=face)
    assert_same((mine.states, residual), expected)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("B, D", [(0, 5), (2, 0)])
def test_nothing_to_do(random_call, face, B, D):
    call = random_call(W=3, B=2, D=5)
    call.states, call.anchors = torch.empty(4, B, D), torch.empty(4, B, D)
    call.outputs, call.noise = torch.empty(3, B, D), torch.empty(3, B, D)
    call.begin, call.hold, call.end = call.begin[:B], call.hold[:B], call.end[:B]
    _, residual = run(call, face)
    assert residual.shape == (4, B)


@pytest.mark.parametrize("D", [700, 9000])
@pytest.mark.parametrize("K, rank", [(1, 0), (4, 0), (2, 3)])
def test_cpu_is_bit_equal_for_any_thread_count(random_call, D, K, rank):
    call = random_call(W=20, B=3, D=D, K=K, rank=rank)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(run(call, "cpu"))
    finally:
        torch.set_num_threads(before)
    for states, residual in results[1:]:
        assert torch.equal(states, results[0][0]) and torch.equal(residual, results[0][1])


@pytest.mark.gpu
@pytest.mark.parametrize("face", ["cuda", "triton"])
@pytest.mark.parametrize("D", [9000, 40000])
def test_gpu_is_bit_equal_from_run_to_run(random_call, face, D):
    call = random_call(W=20, B=3, D=D, K=2, rank=2)
    first = run(call, face)
    for _ in range(5):
        again = run(call, face)
        assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])


@pytest.mark.gpu
@pytest.mark.parametrize("D", [3000, 65536])
def test_cuda_graph_replays(random_call, assert_same, reference, D):
    call = random_call(W=12, B=2, D=D, K=2, rank=2, alias=True)
    mine = call.clone("cuda")
    picard_update(*mine.args(), face="cuda")  # loads the kernel before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first = picard_update(*mine.args(), face="cuda")
        second = picard_update(*mine.args(), face="cuda")
    once, twice = call.clone(), call.clone()
    expected = picard_update(*once.args(), face="reference")
    twice.states.copy_(once.states)
    expected_again = picard_update(*twice.args(), face="reference")
    for _ in range(3):
        mine.states.copy_(call.states)
        graph.replay()
        assert_same((mine.states, first), (twice.states, expected))
        assert_same((mine.states, second), (twice.states, expected_again))


@pytest.mark.gpu
def test_cuda_streams_run_side_by_side(random_call):
    """Launches on several streams at once, and a captured graph beside them, do not disturb each other."""
    calls = [random_call(W=30, B=3, D=20000, K=1, seed=seed).clone("cuda") for seed in range(5)]
    expected = [run(call, "cuda") for call in calls]
    graph, captured = torch.cuda.CUDAGraph(), calls[0]
    with torch.cuda.graph(graph):
        replayed = picard_update(*captured.args(), face="cuda")
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in calls]
    residuals: dict[int, torch.Tensor] = {}
    for _ in range(200):
        for index, (stream, call) in enumerate(zip(streams, calls, strict=True)):
            with torch.cuda.stream(stream):
                if index == 0:
                    graph.replay()
                else:
                    residuals[index] = picard_update(*call.args(), face="cuda")
    torch.cuda.synchronize()
    residuals[0] = replayed
    for index, (states, residual) in enumerate(expected):  # anchors are apart: each launch gives the same
        assert torch.equal(calls[index].states, states) and torch.equal(residuals[index], residual)


@pytest.mark.parametrize("face", FACES[:2])
@pytest.mark.parametrize("noise, rank", [(False, 0), (True, 0), (True, 2)])
def test_opcheck(random_call, face, noise, rank):
    picard_update(*random_call(noise=noise).clone(device_of(face)).args())  # loads the library
    call = random_call(W=5, B=2, D=12, K=2, noise=noise, rank=rank).clone(device_of(face))
    torch.library.opcheck(torch.ops.parasample.picard_update.default, call.args())


@pytest.mark.parametrize("face", FACES[:2])
@pytest.mark.parametrize("rank", [0, 2])
def test_compiles_without_a_graph_break(random_call, face, rank):
    def step(states, *rest):
        residual = picard_update(states, *rest)
        return states * 2, residual + 1

    call = random_call(W=5, B=2, D=12, K=2, rank=rank)
    eager, mine = call.clone(device_of(face)), call.clone(device_of(face))
    expected = step(*eager.args())
    # aot_eager functionalises the mutation of states as inductor does, without its C++ compiler
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(*mine.args())
    assert torch.equal(mine.states, eager.states)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_auto_takes_the_native_op(random_call):
    call = random_call()
    mine = call.clone()
    residual = picard_update(*mine.args())
    states, expected = run(call, "cpu")
    assert torch.equal(mine.states, states) and torch.equal(residual, expected)
