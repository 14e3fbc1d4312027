"""Models of one's own: in-place code, repeated calls, and what cannot run on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parasample.bridge.trace import trace
from parasample.errors import ConfigError, UnsupportedPipelineError
from parasample.plan.blocks import BlockGraph

WIDTH = 16


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, time: Tensor | None = None) -> Tensor:
        shift = 0 if time is None else time
        return hidden + self.second(torch.relu(self.first(hidden + shift)))


class Model(nn.Module):
    """Layers and a time embedding; `mix` is the code between them."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.time = nn.Linear(1, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, sample: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        return {"sample": self.mix(sample, self.time(timestep))}

    def mix(self, sample: Tensor, time: Tensor) -> Tensor:
        for layer in self.layers:
            sample = layer(sample, time)
        return sample


def traced(model: nn.Module, **options: Any) -> BlockGraph:
    options = {"costs": "flops", "max_share": 1.0} | options
    return trace(model.eval(), (torch.randn(8, WIDTH),), {"timestep": torch.ones(1)}, **options)


def edges(graph: BlockGraph) -> dict[str, set[str]]:
    return {b.label: {graph.blocks[i].label for i in b.inputs} for b in graph.blocks}


def test_a_layer_in_a_list_is_one_block() -> None:
    graph = traced(Model())
    assert edges(graph) == {
        "time": set(), "layers.0": {"time"}, "layers.1": {"time", "layers.0"},
        "layers.2": {"time", "layers.1"}, "the output": {"layers.2"},
    }  # fmt: skip
    assert [b.everywhere for b in graph.blocks] == [True, False, False, False, False]
    layer = graph.blocks[1]
    assert layer.cost == 2 * 2 * 8 * WIDTH * WIDTH
    assert layer.weight_bytes == 2 * 4 * (WIDTH * WIDTH + WIDTH) and layer.output_bytes == 4 * 8 * WIDTH
    assert sum(b.weight_bytes for b in graph.blocks) == 4 * sum(p.numel() for p in Model().parameters())


def test_a_large_layer_is_taken_apart() -> None:
    found = edges(traced(Model(), max_share=0.1))
    assert found["layers.1.second"] == {"layers.1.first"}
    assert found["layers.1"] == {"layers.0", "layers.1.second"}, "the sum at its end is its exit"


class InPlace(Model):
    def mix(self, sample: Tensor, time: Tensor) -> Tensor:
        table = torch.zeros(2, *sample.shape)
        low, high = table.unbind(0)
        low.copy_(self.layers[0](sample))
        high += self.layers[1](sample)
        table[0, :, :2] = time[:2]
        left, right = table.reshape(2, -1, WIDTH).split(1)
        return self.layers[2]((left + right).squeeze(0))


def test_changes_in_place_reach_every_view() -> None:
    assert edges(traced(InPlace()))["layers.2"] == {"time", "layers.0", "layers.1"}


class Shapes(Model):
    def mix(self, sample: Tensor, time: Tensor) -> Tensor:
        first = self.layers[0](sample)
        second = self.layers[1](torch.zeros_like(first) + sample)
        return self.layers[2](second.view_as(first).to(first))


def test_a_shape_is_no_data() -> None:
    found = edges(traced(Shapes()))
    assert found["layers.1"] == set() and found["layers.2"] == {"layers.1"}


class Twice(Model):
    def mix(self, sample: Tensor, time: Tensor) -> Tensor:
        return self.layers[0](self.layers[1](self.layers[0](sample)))


def test_a_module_called_twice_is_two_blocks_with_its_weights_once() -> None:
    graph = traced(Twice())
    assert edges(graph)["layers.0#1"] == {"layers.1"} and edges(graph)["layers.1"] == {"layers.0"}
    again = graph.blocks[graph.index("layers.0", 1)]
    assert again.weight_bytes == 0 and again.cost == graph.blocks[graph.index("layers.0")].cost


class Overwrites(Layer):
    def forward(self, hidden: Tensor, time: Tensor | None = None) -> Tensor:
        hidden.mul_(2)
        return super().forward(hidden, time)


class Stage(nn.Module):
    """A list of layers of which one changes its argument, which the caller reads again."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Layer(), Overwrites()])

    def forward(self, hidden: Tensor, time: Tensor | None = None) -> Tensor:
        made = self.parts[0](hidden)
        return made + self.parts[1](made)


def test_a_block_that_changes_its_argument_is_joined_to_its_caller() -> None:
    model = Model(2)
    model.layers.append(Stage())
    assert list(edges(traced(model))) == ["time", "layers.0", "layers.1", "layers.2", "the output"]
    model.layers[2] = Overwrites()
    with pytest.raises(UnsupportedPipelineError, match=r"layers\.2 changes a tensor .* in place"):
        traced(model)


class Asks(Model):
    def mix(self, sample: Tensor, time: Tensor) -> Tensor:
        return super().mix(sample * float(sample.abs().amax() > 0), time)


def test_a_model_that_reads_its_data_is_traced_on_its_own_device() -> None:
    assert edges(traced(Asks())) == edges(traced(Model()))


@pytest.mark.parametrize("costs", ["time", "flops"])
def test_tracing_leaves_no_trace(costs: str) -> None:
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    graph = traced(model, costs=costs)
    assert graph.unit == ("seconds" if costs == "time" else "flops")
    assert all((b.cost > 0) == (not b.exit) for b in graph.blocks)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match='pass "time" or "flops"'):
        traced(Model(), costs="bytes")
    with pytest.raises(ConfigError, match="nothing can be timed"):
        traced(Model().to("meta"), costs="time")
