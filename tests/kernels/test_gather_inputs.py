"""Every face of gather_inputs equals the reference, to the bit."""

from __future__ import annotations

import pytest
import torch
from rounds import FACES, NAMES, device_of, gather_call

from parasample.kernels import gather_inputs

FACES = FACES[:2]
DTYPES = list(NAMES)


def run(call, copies, dtype, face):
    mine = [None if tensor is None else tensor.to(device_of(face)) for tensor in call]
    return gather_inputs(*mine, copies, dtype, face=face).cpu()


def assert_equal(found, expected):
    assert found.dtype == expected.dtype and found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("to", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("face", FACES)
def test_matches_reference(face, dtype, to):
    sizes = [(1, 1, 1, 1), (9, 3, 63, 7), (5, 2, 1025, 3), (3, 1, 2600, 40)]
    for seed, (T, B, D, n) in enumerate(sizes):
        for scaled, copies in ((True, 2), (False, 1), (False, 3)):
            call = gather_call(T, B, D, n, dtype, scaled, seed)
            assert_equal(run(call, copies, to, face), gather_inputs(*call, copies, to, face="reference"))


@pytest.mark.parametrize("face", FACES)
def test_matches_reference_large(face):
    for T, B, D, n in ((4, 1, 1 << 22, 2), (1000, 1, 50, 1000)):
        call = gather_call(T, B, D, n)
        expected = gather_inputs(*call, 2, torch.bfloat16, face="reference")
        assert_equal(run(call, 2, torch.bfloat16, face), expected)


def test_is_the_chain_of_torch_operators():
    states, steps, samples, scale = gather_call()
    chain = (states[steps, samples] * scale[steps, None]).to(torch.bfloat16).repeat(2, 1)
    assert_equal(gather_inputs(states, steps, samples, scale, 2, torch.bfloat16), chain)
    assert_equal(gather_inputs(states, steps, samples), states[steps, samples])


@pytest.mark.parametrize("face", FACES)
def test_bad_values_propagate(face):
    call = gather_call(T=4, B=1, D=20, n=3)
    call[0][2, 0, 5], call[0][2, 0, 6] = torch.nan, torch.inf
    call[1][:] = torch.tensor([1, 2, 2])
    for to in DTYPES:
        result = run(call, 2, to, face)
        assert result[[1, 2, 4, 5], 5].isnan().all() and result[[1, 2, 4, 5], 6].isposinf().all()
        assert result.isfinite().sum() == result.numel() - 8


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("D, n", [(0, 3), (5, 0)])
def test_nothing_to_do(face, D, n):
    assert run(gather_call(D=D, n=n), 2, torch.float16, face).shape == (2 * n, D)


@pytest.mark.parametrize("face", FACES)
def test_every_element_is_written(face):
    """Deterministic torch fills new memory with NaN: none of it may be left."""
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        assert run(gather_call(D=1111), 3, torch.float32, face).isfinite().all()
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("scaled", [False, True])
def test_opcheck(face, scaled):
    call = [None if tensor is None else tensor.to(device_of(face)) for tensor in gather_call(scaled=scaled)]
    gather_inputs(*call, face=face)  # loads the library
    torch.library.opcheck(torch.ops.parasample.gather_inputs.default, (*call, 2, torch.float16))


def test_compiles_into_one_graph():
    call = gather_call()

    def use(*arguments):
        return gather_inputs(*arguments, 2, torch.bfloat16) * 2

    assert torch.equal(torch.compile(use, fullgraph=True, backend="aot_eager")(*call), use(*call))


MISTAKES = {
    "states_2d": (0, lambda t: t[0], "states must have shape"),
    "states_int": (0, lambda t: t.long(), "states must"),
    "states_strided": (0, lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), "unit stride"),
    "steps_2d": (1, lambda t: t[None], "steps must have shape"),
    "steps_dtype": (1, lambda t: t.int(), "steps must"),
    "steps_last_row": (1, lambda t: t * 0 + 9, r"steps must have values 0 .. 8, found 9"),
    "steps_negative": (1, lambda t: t * 0 - 1, "found -1"),
    "samples_shape": (2, lambda t: t[1:], "samples must have shape"),
    "samples_too_large": (2, lambda t: t * 0 + 3, "samples must have values 0 .. 2, found 3"),
    "scale_shape": (3, lambda t: t[1:], "scale must have shape"),
    "scale_dtype": (3, lambda t: t.double(), "scale must"),
    "copies": (4, lambda copies: 0, "copies must"),
    "dtype": (5, lambda dtype: torch.int32, "float32, float64, float16"),
}


@pytest.mark.parametrize("face", ["reference", "cpu"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_argument(face, mistake):
    place, spoil, message = MISTAKES[mistake]
    call = [*gather_call(), 2, torch.float32]
    call[place] = spoil(call[place])
    with pytest.raises(ValueError, match=message) as error:
        gather_inputs(*call, face=face)
    assert "found" in str(error.value) and ";" in str(error.value)
