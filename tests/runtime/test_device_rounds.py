"""Rounds controlled on the device: the ordinary solver's results, without asking the host anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy import SCHEDULERS, make_scheduler, mixture_epsilon, noise, seeded, sequential, start, step_arguments

import parasample as ps
from parasample.bridge.device import require_device_control
from parasample.kernels import native
from parasample.runtime.device_rounds import DeviceRounds
from parasample.runtime.notices import Notices
from parasample.runtime.picard import PicardSolver
from parasample.runtime.transports import LocalRank

STEPS = 9
UPDATES = ("published", "v", "gaussian", "secant")


def solve(name: str, config: ps.Picard, model: Callable[..., Any] = mixture_epsilon, **more: Any) -> Any:
    return ps.sample(
        model, make_scheduler(name), start(name, 3, 2, 4, 4), config, STEPS,
        generator=seeded(5), step_kwargs=step_arguments(name), **more,
    )  # fmt: skip


@pytest.fixture
def whole_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ordinary solver evaluates every state of the window in every round, as the device does."""

    def choose(self: PicardSolver, start_only: bool) -> tuple[list[int], list[int]]:
        pairs = [
            (row, sample)
            for sample, progress in enumerate(self.progress)
            for row in range(progress.begin, min(progress.begin + self.window, self.num_steps))
        ]
        return [row for row, _ in pairs], [sample for _, sample in pairs]

    monkeypatch.setattr(PicardSolver, "_choose", choose)


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait on a device: a number, a truth value or a size taken from a tensor."""

    READS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique")
    COPIES = ("lift_fresh", "scalar_tensor")  # a number of the host made a tensor, which a GPU would fetch

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.rpartition("::")[2]
        if name.startswith(self.READS + self.COPIES):
            self.found.append(name)
        if name.startswith("index") and any(
            t is not None and t.dtype == torch.bool for a in args if isinstance(a, (list, tuple)) for t in a
        ):
            self.found.append(f"{name} by a mask")
        return func(*args, **(kwargs or {}))


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of host reads, those that read memory without an operator included."""
    mode = HostReads()
    with monkeypatch.context() as patch, mode:
        for method in ("tolist", "numpy", "cpu", "__array__"):
            original = getattr(torch.Tensor, method)

            def read(self: torch.Tensor, *args: Any, _name: str = method, _read: Any = original) -> Any:
                mode.found.append(_name)
                return _read(self, *args)

            patch.setattr(torch.Tensor, method, read)
        yield mode.found


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(
    "name, window", [*((name, 5) for name in SCHEDULERS), ("ddpm", 1), ("ddpm", "full"), ("dpm++2m", "full")]
)
def test_tolerance_zero_equals_sequential(name: str, window: Any, update: Any) -> None:
    generator = seeded(5)
    expected = sequential(
        mixture_epsilon,
        make_scheduler(name),
        start(name, 3, 2, 4, 4),
        STEPS,
        generator,
        **step_arguments(name),
    )
    found = solve(name, ps.Picard(window=window, tolerance=0, update=update, control="device"))
    scale = max(float(expected.abs().max()), 1.0)
    torch.testing.assert_close(found.sample, expected, rtol=1e-4, atol=2e-5 * scale)
    assert found.stats.rounds <= found.stats.num_steps


@pytest.mark.usefixtures("whole_windows")
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(
    "name, window", [("ddim-clip", 3), ("ddpm", "full"), ("euler", 3), ("dpm++2m", "full"), ("pndm", 4)]
)
def test_equals_the_ordinary_solver_round_for_round(name: str, window: Any, update: Any) -> None:
    config = {"window": window, "tolerance": 0.03, "update": update}
    ordinary = solve(name, ps.Picard(**config)).stats, solve(name, ps.Picard(**config)).sample
    found = solve(name, ps.Picard(**config, control="device"))
    assert [r.begin for r in found.stats.history] == [r.begin for r in ordinary[0].history]
    for ours, theirs in zip(found.stats.residual, ordinary[0].residual, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-5)
    torch.testing.assert_close(found.sample, ordinary[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", ["ddim-clip", "ddpm", "dpm++2m", "pndm-prk"])
def test_a_round_reads_nothing(name: str, update: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a whole run: the notice of each round, and nothing else."""
    if not native.ops_library().loaded:
        pytest.skip("the reference kernels read their ranges; the fused ones are not built here")
    method = ps.Picard(window=5, tolerance=0.02, update=update, control="device")
    seen: list[list[str]] = []
    original = DeviceRounds.solve

    def watched(self: DeviceRounds, evaluate: Any) -> None:
        with counting(monkeypatch) as reads:
            original(self, evaluate)
        seen.append(reads)

    monkeypatch.setattr(DeviceRounds, "solve", watched)
    solution = solve(name, method)
    assert solution.stats.rounds >= 3
    assert seen == [["tolist"] * solution.stats.rounds]


def test_the_counter_sees_the_ordinary_solver_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with counting(monkeypatch) as reads:
        stats = solve("ddpm", ps.Picard(window=5, tolerance=0.02)).stats
    assert len(reads) >= stats.rounds


def test_operations_of_a_round_do_not_depend_on_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same operators on the same shapes in every round: what a captured graph relies on."""

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            shapes = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
            rounds[-1].append((str(func), shapes))
            return func(*args, **(kwargs or {}))

    rounds: list[list[Any]] = []
    original = DeviceRounds.round

    def recorded(self: DeviceRounds, evaluate: Any) -> None:
        rounds.append([])
        with Recorder():
            original(self, evaluate)

    monkeypatch.setattr(DeviceRounds, "round", recorded)
    for update in UPDATES:
        rounds.clear()
        solve("ddpm", ps.Picard(window=4, tolerance=0.02, update=update, control="device"))
        assert len(rounds) >= 3 and len(rounds[0]) > 20
        assert all(each == rounds[0] for each in rounds[1:]), update


@pytest.mark.parametrize("update", UPDATES)
def test_a_round_ahead_changes_nothing(update: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that always hears of a round after it has begun the next one."""
    config = ps.Picard(window=4, tolerance=0.02, update=update, control="device")
    expected = solve("ddpm", config)
    assert expected.stats.rounds_ahead == 0, "a CPU has finished a round when it is reported"

    class Event:
        def record(self) -> None:
            pass

        def synchronize(self) -> None:
            pass

    late = Event()
    monkeypatch.setattr(Notices, "_ready", lambda self, event: event is None)
    original = Notices.post

    def post(self: Notices, numbers: torch.Tensor) -> None:
        original(self, numbers)
        self._posted[-1] = (self._posted[-1][0], late)

    monkeypatch.setattr(Notices, "post", post)
    found = solve("ddpm", config)
    assert found.stats.rounds_ahead == 1 and found.stats.rounds == expected.stats.rounds
    assert torch.equal(found.sample, expected.sample)


@pytest.mark.parametrize("update", UPDATES)
def test_samples_advance_by_themselves(update: Any) -> None:
    """One sample converges at once (its model is linear), the others do not, and none changes another."""

    def model(x: torch.Tensor, t: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        return mixture_epsilon(x, t, spread.view(-1, 1, 1, 1))

    spread = torch.tensor([5.0, 0.3, 0.2])
    config = ps.Picard(window=5, tolerance=0.02, update=update, control="device")
    together = solve("ddim", config, model, model_kwargs={"spread": spread})
    finished = [
        next(i for i, r in enumerate(together.stats.history) if r.begin[b] == STEPS) for b in range(3)
    ]
    assert len(set(finished)) > 1
    for b in range(3):
        alone = ps.sample(
            model, make_scheduler("ddim"), start("ddim", 3, 2, 4, 4)[b : b + 1], config, STEPS,
            model_kwargs={"spread": spread[b : b + 1]},
        )  # fmt: skip
        torch.testing.assert_close(together.sample[b : b + 1], alone.sample, rtol=1e-5, atol=1e-6)
        assert alone.stats.rounds == finished[b] + 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("update", UPDATES)
def test_bad_outputs_raise(update: Any, bad: float) -> None:
    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        output = mixture_epsilon(x, t)
        output[t < 500] = bad
        return output

    with pytest.raises(ps.DivergedError, match=r"step \d+ of sample 0 \(timestep \d+\) is not finite"):
        solve("ddim", ps.Picard(window=4, tolerance=0.02, update=update, control="device"), model)


def test_half_precision_and_double() -> None:
    for dtype in (torch.float16, torch.float64):
        seen = set()

        def model(x: torch.Tensor, t: torch.Tensor, seen: set = seen) -> torch.Tensor:
            seen.add(x.dtype)
            return mixture_epsilon(x.float(), t).to(x.dtype)

        x_T = noise(2, 6).to(dtype)
        method = ps.Picard(window=4, tolerance=0.01, control="device")
        found = ps.sample(model, make_scheduler("ddim"), x_T, method, STEPS)
        assert found.sample.dtype == dtype and seen == {dtype}


def test_noise_is_drawn_as_sequential_sampling_draws_it() -> None:
    first, second = seeded(1), seeded(1)
    x_T = start("ddpm", 2, 6)
    sequential(mixture_epsilon, make_scheduler("ddpm"), x_T, STEPS, first)
    method = ps.Picard(window=4, tolerance=0.5, control="device")
    ps.sample(mixture_epsilon, make_scheduler("ddpm"), x_T, method, STEPS, generator=second)
    assert torch.equal(first.get_state(), second.get_state())


def test_every_round_costs_the_whole_window() -> None:
    stats = solve("ddim", ps.Picard(window=4, tolerance=0.02, control="device")).stats
    assert stats.window == [4 * 3] * stats.rounds
    assert solve("ddim", ps.Picard(control="device")).stats.window[0] == STEPS * 3, "auto: all of few steps"


@pytest.mark.parametrize(
    "setting",
    [{"update": "anderson"}, {"states_per_round": 2}, {"exact": True, "tolerance": 0}, {"record": True}],
)
def test_what_needs_the_host_is_refused(setting: dict[str, Any]) -> None:
    for control in ("device", "graph"):
        with pytest.raises(ps.ConfigError, match='control="host"'):
            ps.Picard(control=control, **setting)
    with pytest.raises(ps.ConfigError, match="unknown"):
        ps.Picard(control="gpu")  # type: ignore[arg-type]


def test_pipelines_and_several_ranks_are_refused() -> None:
    class Two(LocalRank):
        size = 2

    for control in ("device", "graph"):
        with pytest.raises(ps.ConfigError, match=r"ps\.sample"):
            ps.parallelize(object(), ps.Picard(control=control))
        with pytest.raises(ps.ConfigError, match="single process, found 2 ranks"):
            require_device_control(ps.Picard(control=control), Two())
    require_device_control(ps.Picard(), Two())


# ---------------------------------------------------------------------- on a GPU


class Small(torch.nn.Module):
    """A model of a policy's size."""

    def __init__(self) -> None:
        super().__init__()
        generator = seeded(3)
        sizes = [(64, 33), (64, 64), (32, 64)]
        self.weights = torch.nn.ParameterList(
            torch.randn(*size, generator=generator) / size[1] ** 0.5 for size in sizes
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = torch.cat([x, t[:, None].to(x.dtype) / 1000], 1)
        for weight in self.weights[:-1]:
            h = torch.nn.functional.silu(h @ weight.T)
        return x * 0.9 + 0.1 * (h @ self.weights[-1].T)


@pytest.fixture
def no_synchronisation() -> Iterator[Callable[[], None]]:
    """Gives a function from whose call on every synchronising operation raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("control", ["device", "graph"])
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", ["ddim-clip", "ddpm", "euler", "dpm++2m"])
def test_gpu_rounds_equal_the_cpu(
    name: str, update: Any, control: Any, no_synchronisation: Callable[[], None], monkeypatch: Any
) -> None:
    """The same rounds on the device, and no operation that waits for it in any of them."""
    method = ps.Picard(window=6, tolerance=0.02, update=update, control=control)
    model, x_T = Small().eval(), start(name, 4, 32)
    expected = ps.sample(model, make_scheduler(name), x_T, method, 20, generator=seeded(5))
    original = DeviceRounds.solve

    def strict(self: DeviceRounds, evaluate: Any) -> None:
        no_synchronisation()
        try:
            original(self, evaluate)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(DeviceRounds, "solve", strict)
    found = ps.sample(model.cuda(), make_scheduler(name), x_T.cuda(), method, 20, generator=seeded(5))
    torch.testing.assert_close(found.sample.cpu(), expected.sample, rtol=1e-2, atol=1e-3)
    assert abs(found.stats.rounds - expected.stats.rounds) <= 1 and found.stats.rounds_ahead <= 1


@pytest.mark.gpu
def test_gpu_graph_replays_the_model() -> None:
    """The model's Python runs twice, whatever the number of rounds."""
    calls = []
    model = Small().cuda().eval()

    def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return model(x, t)

    x_T = start("ddpm", 4, 32).cuda()
    rounds = {}
    for control in ("device", "graph"):
        calls.clear()
        method = ps.Picard(window=8, tolerance=0, update="v", control=control)
        solution = ps.sample(counted, make_scheduler("ddpm"), x_T, method, 20, generator=seeded(5))
        rounds[control] = len(calls), solution
    assert rounds["device"][0] >= 10 and rounds["graph"][0] == 2
    torch.testing.assert_close(rounds["graph"][1].sample, rounds["device"][1].sample, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_gpu_graph_refuses_a_model_that_waits() -> None:
    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return mixture_epsilon(x, t) if float(x.sum()) else x

    method = ps.Picard(window=4, tolerance=0.02, control="graph")
    with pytest.raises(ps.ConfigError, match='control="device"'):
        ps.sample(model, make_scheduler("ddim"), start("ddim", 2, 6).cuda(), method, STEPS)
