"""A denoiser whose blocks report to the runner of a rank: where a split meets the modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from parasample.errors import UnsupportedPipelineError
from parasample.plan.blocks import BlockGraph
from parasample.runtime.component import ComponentRunner, WholeForward
from parasample.runtime.forward import ReplacedForward
from parasample.runtime.templates import Templates

_Listener = ComponentRunner | WholeForward | Templates


class SplitDenoiser:
    """Sends the calls of a denoiser's blocks to the runner at work, until `remove()`.

    Args:
        denoiser: its modules keep their own forward but for a stand-in.
        graph: of this denoiser.
    """

    def __init__(self, denoiser: nn.Module, graph: BlockGraph) -> None:
        self.denoiser = denoiser
        self.graph = graph
        self._index = {(block.name, block.call): index for index, block in enumerate(graph.blocks)}
        self._leaves = {block.name for block in graph.blocks if not block.exit}
        self._calls: Counter[str] = Counter()
        self._inside_leaf = False
        self._runner: _Listener | None = None
        modules = dict(denoiser.named_modules())
        self._modules = list(modules.items())
        missing = [block.name for block in graph.blocks if block.name not in modules]
        if missing:
            raise UnsupportedPipelineError(
                f"the denoiser has no module {missing[0]!r} any more; restore the pipeline and "
                f"parallelize again"
            )
        names = sorted({block.name for block in graph.blocks} - {""})
        self._replaced = [self._replace(name, modules[name]) for name in names]

    def _replace(self, name: str, module: nn.Module) -> ReplacedForward:
        replaced = ReplacedForward(module, lambda *args, **kwargs: self._block(name, replaced, args, kwargs))
        return replaced

    @property
    def changed(self) -> bool:
        """Whether modules were added, removed or replaced since the data flow was read."""
        now = list(self.denoiser.named_modules())
        same = (a[0] == b[0] and a[1] is b[1] for a, b in zip(now, self._modules, strict=False))
        return len(now) != len(self._modules) or not all(same)

    def remove(self) -> None:
        """Put every block's own forward back."""
        for replaced in self._replaced:
            replaced.remove()

    # ------------------------------------------------------------------ forwards

    def run(self, runners: Sequence[ComponentRunner], step: int, forward: Callable[[], Any]) -> None:
        """A forward of a step, for one worker or for several that run the whole denoiser.

        Args:
            forward: calls the denoiser's own forward.
        """
        at_work = [runner for runner in runners if runner.begin(step)]
        if not at_work:
            return
        whole = at_work[0].schedule.whole(at_work[0].worker, step)
        output = self._forward(WholeForward(at_work) if whole else at_work[0], forward)
        for runner in at_work:
            runner.finish(output)

    def record(self, templates: Templates, forward: Callable[[], Any]) -> None:
        """Note what every block's output looks like in a forward of the whole denoiser."""
        self._forward(templates, forward)

    def _forward(self, runner: _Listener, forward: Callable[[], Any]) -> Any:
        self._runner, self._inside_leaf = runner, False
        self._calls.clear()
        try:
            return self._dispatch(len(self.graph.blocks) - 1, forward)
        finally:
            self._runner = None

    def _block(
        self, name: str, replaced: ReplacedForward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._runner is None or self._inside_leaf:
            return replaced.original(*args, **kwargs)
        index = self._index.get((name, self._calls[name]))
        if index is None:
            raise UnsupportedPipelineError(
                f"the denoiser calls {name} more often than when its data flow was read; restore the "
                f"pipeline and "
                "parallelize again"
            )
        self._calls[name] += 1
        leaf = name in self._leaves

        def forward() -> Any:
            self._inside_leaf = leaf
            try:
                return replaced.original(*args, **kwargs)
            finally:
                self._inside_leaf = False

        return self._dispatch(index, forward)

    def _dispatch(self, index: int, forward: Callable[[], Any]) -> Any:
        if isinstance(self._runner, Templates):
            output = forward()
            self._runner.record(index, output)
            return output
        assert self._runner is not None
        return self._runner.block(index, forward)
