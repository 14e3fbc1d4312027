"""Bad arguments of picard_update: the same ValueError from every face, and nothing is written."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

from parasample.kernels import faces, picard_update

MISTAKES = {
    "states_2d": ("states", lambda t: t[0], "states"),
    "states_int": ("states", lambda t: t.long(), "convert it with .to()"),
    "states_strided": ("states", lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), "unit stride"),
    "anchors_shape": ("anchors", lambda t: t[:-1], "anchors must have shape"),
    "anchors_dtype": ("anchors", lambda t: t.double(), "anchors"),
    "outputs_shape": ("outputs", lambda t: t[:, :, :-1], "outputs must have shape"),
    "outputs_int": ("outputs", lambda t: t.int(), "outputs"),
    "noise_shape": ("noise", lambda t: t[:1], "noise must have shape"),
    "noise_missing": ("noise", lambda t: None, "pass noise"),
    "no_history": ("state_coef", lambda t: t[:, :0], "state_coef"),
    "coef_length": ("anchor_coef", lambda t: t[:-1], "anchor_coef must have shape"),
    "coef_dtype": ("output_coef", lambda t: t.double(), "output_coef"),
    "x0_shape": ("x0_coef", lambda t: t[:, 0], "x0_coef must have shape"),
    "scale_shape": ("residual_scale", lambda t: t[1:], "residual_scale must have shape"),
    "begin_dtype": ("begin", lambda t: t.int(), "begin"),
    "begin_negative": ("begin", lambda t: t - 1, "clip the window"),
    "end_too_late": ("end", lambda t: t + 1, "clip the window"),
    "weights_alone": ("directions", lambda t: None, "both or neither"),
    "directions_alone": ("weights", lambda t: None, "both or neither"),
    "weights_shape": ("weights", lambda t: t[:-1], "weights must have shape"),
    "weights_dtype": ("weights", lambda t: t.double(), "weights"),
    "weights_strided": ("weights", lambda t: t.transpose(0, 2).contiguous().transpose(0, 2), "contiguous"),
    "rank_zero": ("weights", lambda t: t[:, :, :0], "R = 1 .. 8"),
    "rank_too_high": ("weights", lambda t: t.repeat(1, 1, 5), "R = 1 .. 8"),
    "directions_shape": ("directions", lambda t: t[:, :, :1], "directions must have shape"),
    "directions_int": ("directions", lambda t: t.long(), "directions"),
    "hold_too_early": ("hold", lambda t: t - 50, "hold >= begin - 1"),
}


@pytest.mark.parametrize("face", ["reference", "cpu"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_argument(random_call, face, mistake):
    name, spoil, message = MISTAKES[mistake]
    call = random_call(W=5, B=2, D=8, rank=2)
    call.begin[:], call.hold[:], call.end[:] = 0, 4, 5
    setattr(call, name, spoil(getattr(call, name)))
    before = call.states.clone()
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")) as error:
        picard_update(*call.args(), face=face)
    assert "found" in str(error.value) and ";" in str(error.value)
    assert torch.equal(call.states, before)


def test_long_history_goes_to_dense_update(random_call):
    call = random_call(W=9, B=2, D=8)
    for name in ("state_coef", "anchor_coef", "output_coef"):
        setattr(call, name, torch.cat([getattr(call, name), torch.full((9, 6), 0.05)], dim=1))
    expected, found = copy.deepcopy(call), copy.deepcopy(call)
    picard_update(*expected.args(), face="reference")
    picard_update(*found.args())
    torch.testing.assert_close(found.states, expected.states)
    with pytest.raises(ValueError, match="K = 1 .. 5.*dense_update"):
        picard_update(*call.args(), face="cpu")


def test_unknown_face(random_call):
    with pytest.raises(ValueError, match="face must be one of auto"):
        picard_update(*random_call().args(), face="metal")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_missing_device_is_explained(random_call):
    with pytest.raises(RuntimeError, match="face 'cuda' is not available"):
        picard_update(*random_call().args(), face="cuda")


def test_faces_say_why():
    statuses = {status.face: status for status in faces()}
    assert set(statuses) == {"reference", "cpu", "cuda", "triton"}
    assert statuses["reference"].available and statuses["cpu"].available
    assert "instructions" in statuses["cpu"].reason
    assert all(status.reason for status in statuses.values())


WITHOUT_LIBRARY = """
import sys, warnings
from pathlib import Path
import torch
from parasample.kernels import native
native.FOLDER = Path("nowhere")
from parasample.kernels import picard_update
one, zero = torch.ones(3, 1), torch.zeros(3, 1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        states = torch.arange(4.0).reshape(4, 1, 1).repeat(1, 1, 5)
        residual = picard_update(states, states, torch.ones(3, 1, 5), None, one, zero, one, zero[:, 0],
                                 torch.ones(3, 2), torch.ones(4), *(torch.tensor([i]) for i in (0, 3, 3)))
assert states[:, 0, 0].tolist() == [0, 1, 2, 3] and residual[1:, 0].tolist() == [0, 0, 0]
print([str(w.message) for w in caught if "parasample" in str(w.message)])
"""


def test_reference_runs_without_the_library_and_warns_once():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBRARY], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("slow reference kernels") == 1
