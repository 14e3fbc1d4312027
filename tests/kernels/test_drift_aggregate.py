"""Every face of drift_aggregate equals the reference, and the reference equals the definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from rounds import DRIFT_ARGUMENTS, FACES, INTERPRETED, NAMES, device_of, drift_call, on

from parasample.kernels import drift_aggregate
from parasample.kernels.drift_aggregate import KINDS, conversion_row, in_coefficients, out_coefficients

TOLERANCE = {
    torch.float32: 5e-5,
    torch.float64: 1e-11,
}  # sums in another order, times coefficients of size 10
FULL = "guided rescaled clipped"


def run(call, face):
    return drift_aggregate(**on(device_of(face), call), face=face).cpu()


def assert_same(found, expected):
    assert found.dtype == expected.dtype and found.is_contiguous()
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def by_hand(call):
    """One float64 at a time, from the definition."""
    lists = {name: None if tensor is None else tensor.tolist() for name, tensor in call.items()}

    def deviation(row):
        mean = sum(row) / len(row)
        return math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))

    result = []
    for j, row in enumerate(lists["conditional"]):
        m = list(row)
        if lists["unconditional"]:
            m = [
                u + lists["guidance"][j] * (c - u)
                for c, u in zip(row, lists["unconditional"][j], strict=True)
            ]
        if lists["rescale"]:
            phi = lists["rescale"][j]
            ratio = deviation(row) / deviation(m)
            m = [phi * value * ratio + (1 - phi) * value for value in m]
        if lists["states"]:
            p, q, a, b, c, low, high = lists["conversion"][j]
            data = [p * x + q * value for x, value in zip(lists["states"][j], m, strict=True)]
            cut = [min(max(value, low), high) for value in data]
            both = zip(lists["states"][j], data, cut, strict=True)
            m = [a * x + b * clipped + c * (value - clipped) for x, value, clipped in both]
        result.append(m)
    return torch.tensor(result, dtype=torch.float64)


SHAPES = [  # n, D, dtype, states_dtype, parts
    (1, 1, torch.float32, torch.float32, "guided clipped"),
    (1, 63, torch.float32, torch.float32, FULL),
    (5, 65, torch.float32, None, ""),
    (5, 65, torch.bfloat16, None, "guided"),
    (5, 65, torch.float16, None, "guided rescaled"),
    (4, 130, torch.float32, torch.float32, ""),
    (4, 130, torch.float32, torch.bfloat16, "clipped"),
    (4, 130, torch.bfloat16, torch.float32, FULL),
    (4, 130, torch.float16, torch.float32, FULL),
    (4, 130, torch.float16, torch.float16, "guided"),
    (4, 130, torch.bfloat16, torch.bfloat16, "guided rescaled"),
    (3, 1500, torch.float64, torch.float64, FULL),
    (3, 1500, torch.float32, torch.float64, FULL),
    (3, 1500, torch.float64, torch.float16, "guided clipped"),
    (3, 2051, torch.float32, torch.float32, FULL),
]
LARGE = [
    (1000, 40, torch.float32, torch.float32, FULL),
    (37, 9001, torch.bfloat16, torch.float32, FULL),
    (2, 1 << 18, torch.float16, torch.float32, FULL),
    (1, 1 << 22, torch.float32, torch.float32, FULL),
    (1, (1 << 20) + 7, torch.float32, None, "guided"),
]


def label(shape):
    n, D, dtype, states_dtype, parts = shape
    states = f"x_{NAMES[states_dtype]}" if states_dtype else ""
    return "-".join(part for part in (f"n{n}-D{D}-{NAMES[dtype]}", states, *parts.split()) if part)


@pytest.mark.parametrize("states", [None, torch.float64])
@pytest.mark.parametrize("parts", ["", "guided", "guided rescaled", "clipped", FULL])
def test_reference_matches_definition(parts, states):
    for seed in range(3):
        call = drift_call(4, 5, torch.float64, states, parts, seed)
        assert_same(drift_aggregate(**call, face="reference"), by_hand(call))


@pytest.mark.parametrize("shape", SHAPES, ids=label)
@pytest.mark.parametrize("face", FACES)
def test_matches_reference(face, shape):
    for seed in range(1 if face == "triton" and INTERPRETED else 3):
        call = drift_call(*shape, seed=seed)
        assert_same(run(call, face), drift_aggregate(**call, face="reference"))


@pytest.mark.parametrize("shape", LARGE, ids=label)
@pytest.mark.parametrize("face", [*FACES[:2], pytest.param("triton", marks=pytest.mark.gpu)])
def test_matches_reference_large(face, shape):
    call = drift_call(*shape)
    assert_same(run(call, face), drift_aggregate(**call, face="reference"))


@pytest.mark.parametrize("face", ["reference", *FACES])
@pytest.mark.parametrize("guidance, phi", [(7.5, 0.7), (1.0, 1.0), (3.0, 0.0)])
def test_rescale_is_that_of_diffusers(face, guidance, phi):
    diffusers = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    call = drift_call(3, 1100, states_dtype=None, parts="guided rescaled")
    call["guidance"], call["rescale"] = torch.full((3,), guidance), torch.full((3,), phi)
    text, other = (call[name].view(3, 11, 10, 10) for name in ("conditional", "unconditional"))
    guided = other + guidance * (text - other)
    expected = diffusers.rescale_noise_cfg(guided, text, guidance_rescale=phi)
    assert_same(run(call, face), expected.view(3, 1100))


@pytest.mark.parametrize("face", ["reference", *FACES])
def test_deviations_survive_a_large_offset(face):
    """Sums of squares that are not taken around a mean would keep no digit here."""
    call = drift_call(2, 2500, states_dtype=None, parts="guided rescaled")
    call["rescale"][:] = 1
    call["conditional"] = (call["conditional"] + 4096).round(decimals=3)
    call["unconditional"] = call["unconditional"] + 4096
    expected = drift_aggregate(
        **{k: v if v is None else v.double() for k, v in call.items()}, face="reference"
    )
    torch.testing.assert_close(run(call, face).double(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("face", ["reference", *FACES])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["conditional", "unconditional", "states"])
def test_bad_values_propagate(face, where, bad):
    for parts, whole_row in (("guided", False), ("guided rescaled", True)):
        call = drift_call(3, 37, parts=parts)
        if parts != "guided":
            call["rescale"][:] = 0.5
        call[where] = call[where].clone()
        call[where][1, 17] = bad
        finite = run(call, face).isfinite()
        assert finite[0].all() and finite[2].all() and not finite[1, 17]
        spoiled = whole_row and where != "states"  # the deviations of the row are bad then
        assert not finite[1].any() if spoiled else finite[1].sum() == 36


@pytest.mark.parametrize("face", ["reference", *FACES])
def test_clip_keeps_nan_and_tames_infinity(face):
    call = drift_call(2, 40, parts="guided clipped")
    call["conversion"][:, 2:] = torch.tensor([0.0, 1.0, 0.0, -1.0, 1.0])
    call["conditional"] = call["conditional"].clone()
    call["conditional"][0, 3], call["conditional"][0, 30] = math.nan, math.inf
    result = run(call, face)
    assert result[0, 3].isnan() and result[0, 30].abs() == 1
    assert (result.nan_to_num() <= 1).all() and (result.nan_to_num() >= -1).all()


@pytest.mark.parametrize("face", ["reference", *FACES])
def test_what_clipping_cuts_off_counts_only_with_a_weight(face):
    """An infinite prediction clips to its bound where no weight asks for the rest of it."""
    call = drift_call(2, 8, parts="clipped")
    call["conversion"][:] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, -2.0, 1.0])
    call["conversion"][1, 4] = -0.5
    call["conditional"] = torch.tensor([-math.inf, -3, -2, -1, 0, 1, 2, math.inf]).repeat(2, 1)
    expected = torch.tensor([[-2, -2, -2, -1, 0, 1, 1, 1], [math.inf, -1.5, -2, -1, 0, 1, 0.5, -math.inf]])
    assert torch.equal(run(call, face), expected)


@pytest.mark.parametrize("face", ["reference", *FACES])
def test_row_of_one_element_has_no_deviation(face):
    call = drift_call(2, 1, parts="guided rescaled")
    call["rescale"] = torch.tensor([0.0, 0.5])
    result = run(call, face)
    assert result[0].isfinite().all() and result[1].isnan().all()


@pytest.mark.parametrize("face", FACES)
def test_strided_rows(face):
    call = drift_call(4, 77)
    expected = drift_aggregate(**call, face="reference")
    wide = torch.full((2, 2, 4, 90), math.nan)
    for place, name in (((0, 0), "conditional"), ((0, 1), "unconditional"), ((1, 0), "states")):
        view = wide[place][:, 5:82]
        call[name] = view.copy_(call[name])
    assert_same(run(call, face), expected)
    # guidance's halves interleaved, and states stored elements first
    call["conditional"] = call["conditional"].contiguous().t().contiguous().t()
    call["states"] = call["states"][:1].expand(4, 77)
    assert_same(run(call, face), drift_aggregate(**call, face="reference"))


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("n, D", [(0, 5), (2, 0)])
def test_nothing_to_do(face, n, D):
    assert run(drift_call(n, D), face).shape == (n, D)


@pytest.mark.parametrize("face", FACES)
def test_every_element_is_written(face):
    """Deterministic torch fills new memory with NaN: none of it may be left."""
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        assert run(drift_call(6, 1111), face).isfinite().all()
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("n, D", [(1, 200_000), (3, 70_001), (64, 5000)])
def test_cpu_is_bit_equal_for_any_thread_count(n, D):
    call = drift_call(n, D)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(run(call, "cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("face", ["cuda", "triton"])
def test_gpu_is_bit_equal_from_run_to_run(face):
    call = drift_call(5, 9000)
    first = run(call, face)
    assert all(torch.equal(run(call, face), first) for _ in range(5))


@pytest.mark.parametrize("face", FACES[:2])
@pytest.mark.parametrize("parts, states", [("", None), (FULL, torch.bfloat16), ("guided", torch.float64)])
def test_opcheck(face, parts, states):
    call = on(device_of(face), drift_call(3, 12, torch.float32, states, parts))
    drift_aggregate(**call, face=face)  # loads the library
    torch.library.opcheck(
        torch.ops.parasample.drift_aggregate.default, tuple(call[k] for k in DRIFT_ARGUMENTS)
    )


@pytest.mark.parametrize("face", ["auto", *FACES[:2]])
def test_compiles_into_one_graph(face):
    call = on(device_of(face), drift_call(3, 40))

    def use(**arguments):
        return drift_aggregate(**arguments, face=face) * 2

    compiled = torch.compile(use, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**call), use(**call))


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_convert_every_kind_of_output(kind):
    x0, noise = torch.randn(2, 1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for alpha, sigma in ((0.8, 0.6), (0.3, 0.7), (1.0, 5.0)):
        outputs = {
            "epsilon": noise,
            "v_prediction": alpha * noise - sigma * x0,
            "sample": x0,
            "flow": noise - x0,
        }
        for target in KINDS:
            tables = in_coefficients(kind, alpha, sigma), out_coefficients(target, alpha, sigma)
            conversion = torch.tensor([conversion_row(*tables)], dtype=torch.float64)
            x = alpha * x0 + sigma * noise
            result = drift_aggregate(outputs[kind], states=x, conversion=conversion)
            torch.testing.assert_close(result, outputs[target])
    with pytest.raises(ValueError, match="kind must be one of"):
        in_coefficients("drift", 1, 1)


MISTAKES = {
    "conditional_3d": ("conditional", lambda t: t[None], r"conditional must have shape \[n, D\]"),
    "conditional_int": ("conditional", lambda t: t.long(), "convert it with .to"),
    "unconditional_missing": ("unconditional", lambda t: None, "pass both or neither"),
    "unconditional_shape": ("unconditional", lambda t: t[:-1], "unconditional must have shape"),
    "unconditional_dtype": ("unconditional", lambda t: t.half(), "unconditional must have"),
    "guidance_shape": ("guidance", lambda t: t[:, None], "guidance must have shape"),
    "guidance_dtype": ("guidance", lambda t: t.double(), "guidance must"),
    "rescale_shape": ("rescale", lambda t: t[1:], "rescale must have shape"),
    "states_missing": ("states", lambda t: None, "states"),
    "states_shape": ("states", lambda t: t[:, 1:], "states must have shape"),
    "states_int": ("states", lambda t: t.int(), "states must"),
    "conversion_missing": ("conversion", lambda t: None, "pass both or neither"),
    "conversion_shape": ("conversion", lambda t: t[:, :6], "conversion must have shape"),
    "conversion_dtype": ("conversion", lambda t: t.bfloat16(), "conversion must"),
    "conversion_strides": ("conversion", lambda t: t.t().contiguous().t(), "contiguous"),
}


@pytest.mark.parametrize("face", ["reference", "cpu"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_argument(face, mistake):
    name, spoil, message = MISTAKES[mistake]
    call = drift_call(3, 8)
    call[name] = spoil(call[name])
    with pytest.raises(ValueError, match=message) as error:
        drift_aggregate(**call, face=face)
    assert "found" in str(error.value) and ";" in str(error.value)


@pytest.mark.parametrize("face", ["reference", "cpu"])
def test_rescale_needs_guidance(face):
    call = drift_call(3, 8, parts="")
    call["rescale"] = torch.ones(3)
    with pytest.raises(ValueError, match="rescale must have"):
        drift_aggregate(**call, face=face)


def test_unknown_face():
    with pytest.raises(ValueError, match="face must be one of auto"):
        drift_aggregate(**drift_call(), face="metal")
    with pytest.raises(RuntimeError if not torch.cuda.is_available() else ValueError, match="face 'cuda'"):
        drift_aggregate(**drift_call(), face="cuda")


def test_every_combination_of_parts_has_a_kernel():
    for parts, states in itertools.product(("", "guided", "guided rescaled"), (None, torch.float32)):
        for clipped in ("", " clipped"):
            call = drift_call(2, 33, torch.float32, states, parts + clipped)
            assert_same(run(call, "cpu"), drift_aggregate(**call, face="reference"))
