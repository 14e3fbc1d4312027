"""A denoiser whose calls carry a whole round of states instead of one step's latents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_leaves, tree_map, tree_map_with_path

from parasample.bridge.conditioning import ConditioningWatch
from parasample.bridge.timesteps import TracedTimestep, has_traced, untraced
from parasample.errors import UnsupportedPipelineError
from parasample.runtime.forward import ReplacedForward
from parasample.runtime.picard import Share
from parasample.runtime.templates import version

if TYPE_CHECKING:
    from parasample.bridge.run import PipelineRun

# Arguments that have no batch dimension although their first size may happen to equal the batch.
UNBATCHED_ARGUMENTS = ("img_ids", "txt_ids", "rotary_emb")
TIMESTEP_ARGUMENTS = ("timestep", "timesteps", "t")


def takes_timestep(module: nn.Module) -> bool:
    """Whether a component is a denoiser (or a ControlNet): whether its forward takes a timestep."""
    parameters = forward_parameters(module)
    return any(name in parameters for name in TIMESTEP_ARGUMENTS)


def forward_parameters(module: nn.Module) -> list[str]:
    """Names of the arguments of a module's forward, in order."""
    compiled = getattr(
        module, "_orig_mod", module
    )  # `torch.compile` wraps a module in one that takes anything
    return list(inspect.signature(type(compiled).forward).parameters)[1:]


class RowSelector:
    """Repeats conditioning for the rows of a round, remembering what it repeated last for each argument."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Tensor, int, Tensor, Tensor]] = {}

    def select(self, name: str, value: Any, rows: int, index: Tensor) -> Any:
        """Tensors in `value` with `rows` rows, indexed by `index` [n]; everything else as it is."""

        def pick(path: Any, leaf: Any) -> Any:
            where = name + keystr(path)
            if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != rows:
                return leaf
            if any(argument in where for argument in UNBATCHED_ARGUMENTS):
                return leaf
            if rows == 1:
                return leaf.expand(len(index), *leaf.shape[1:])
            if leaf.is_inference():  # has no version, so that an edit in place would go unnoticed
                return leaf.index_select(0, index)
            known = self._last.get(where)
            if known and known[0] is leaf and known[1] == version(leaf) and torch.equal(known[2], index):
                return known[3]
            picked = leaf.index_select(0, index)
            self._last[where] = (leaf, version(leaf), index, picked)
            return picked

        return tree_map_with_path(pick, value)


class CallSite:
    """One of a pipeline's calls to a denoiser in each step, as its first step made it."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents
        self.rows = latents.shape[0]
        self.template: Any = None
        self.selector = RowSelector()
        self.watch = ConditioningWatch()
        self.values: dict[str, Tensor] = {}

    def placeholder(self) -> Any:
        """An output of the right structure for a step without evaluation; its numbers are never used."""
        return self.template

    def resize(self, latents: Tensor) -> None:
        """The pipeline goes on with another number of rows (guidance switched on or off)."""
        self.latents, self.rows = latents, latents.shape[0]
        self.template, self.selector, self.values = None, RowSelector(), {}

    def learn(self, output: Any, rows: int) -> None:
        """Take the structure of the output of a call of `rows` rows."""

        def cut(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.shape[:1] != (rows,):
                return leaf
            return leaf.new_zeros((self.rows, *leaf.shape[1:]))

        self.template = tree_map(cut, output)


class WrappedDenoiser:
    """Replaces `module.forward` until `remove()`; what to evaluate is asked of the current run.

    The calls of a run's first step go through unchanged and are recorded. From then on a call's latents,
    timestep and batched conditioning are replaced by those of the round's states; the rows of a call are
    `copies` blocks of states (guidance puts conditional and unconditional rows into one batch), each block in
    the order of the share.
    """

    def __init__(self, name: str, module: nn.Module, current_run: Callable[[], PipelineRun | None]) -> None:
        self.name = name
        self.module = module
        self._current_run = current_run
        self._parameters = forward_parameters(module)
        self.latents_name = self._parameters[0]
        self.sites: list[CallSite] = []
        self._ordinal = 0
        self._replaced = ReplacedForward(module, self._call)
        self._forward = self._replaced.original

    def remove(self) -> None:
        """Put the module's own forward back."""
        self._replaced.remove()

    def new_run(self) -> None:
        self.sites = []
        self._ordinal = 0

    def new_step(self) -> None:
        self._ordinal = 0

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        run = self._current_run()
        call = dict(zip(self._parameters, args, strict=False)) | kwargs
        traced = has_traced(call)
        if run is None or not run.active or (run.traced and not traced):
            return self._forward(*args, **kwargs)  # not a call of the loop
        try:
            return self._first_step(run, call) if run.solver is None else self._round(run, call)
        except BaseException:
            run.active = False  # the loop ends here; what is called next is no part of it
            raise

    def _round(self, run: PipelineRun, call: dict[str, Any]) -> Any:
        if self._ordinal >= len(self.sites):
            raise UnsupportedPipelineError(
                f"{self.name}: step {run.row} calls it more often than the first step did; sample "
                "sequentially"
            )
        site = self.sites[self._ordinal]
        self._ordinal += 1
        latents = call[self.latents_name]
        changed = site.watch.changed(call, (self.latents_name, *TIMESTEP_ARGUMENTS), run.round_open)
        if latents.shape[0] != site.rows:
            site.resize(latents)
            changed = True
        part = run.open_share(latents, changed)
        if part is None:
            return site.placeholder()
        expanded = self._expand(run, site, call, part)
        output = self._in_first_rows(run, site, expanded) if run.config.exact else self._forward(**expanded)
        if site.template is None:
            site.learn(output, expanded[self.latents_name].shape[0])
        return output

    def _in_first_rows(self, run: PipelineRun, site: CallSite, expanded: dict[str, Any]) -> Any:
        """A call with its rows as a repeated first step has them: all copies of a state together."""
        assert run.solver is not None
        rows, batch = expanded[self.latents_name].shape[0], run.solver.batch
        order = torch.arange(rows, device=site.latents.device)
        order = order.view(site.rows // batch, -1, batch).transpose(0, 1).reshape(-1)
        call = {name: RowSelector().select(name, value, rows, order) for name, value in expanded.items()}
        return RowSelector().select("", self._forward(**call), rows, order.argsort())

    def _first_step(self, run: PipelineRun, call: dict[str, Any]) -> Any:
        latents = call.get(self.latents_name)
        if not isinstance(latents, Tensor) or latents.ndim < 2:
            raise UnsupportedPipelineError(
                f"{self.name}: expected a tensor of latents as argument {self.latents_name!r}, found "
                f"{type(latents).__name__}; sample this pipeline sequentially"
            )
        steps = [leaf for leaf in tree_leaves(call) if isinstance(leaf, TracedTimestep)]
        run.start(steps[0].span if steps else None)
        site = CallSite(latents)
        site.watch.changed(call, (self.latents_name, *TIMESTEP_ARGUMENTS), False)
        self.sites.append(site)
        self._ordinal += 1
        plain = {name: tree_map(untraced, value) for name, value in call.items()}
        site.template = self._at_constant_size(plain, site, run.exact_repeat)
        return site.template

    def _at_constant_size(self, call: dict[str, Any], site: CallSite, repeat: int) -> Any:
        """The first step's call; in exact mode at the batch size that every later call has, too."""
        if repeat == 1:
            return self._forward(**call)
        index = torch.arange(site.rows, device=site.latents.device).repeat(repeat)
        output = self._forward(**{k: RowSelector().select(k, v, site.rows, index) for k, v in call.items()})
        return tree_map(lambda leaf: leaf[: site.rows] if isinstance(leaf, Tensor) else leaf, output)

    # ------------------------------------------------------------------ a round's arguments

    def _expand(
        self, run: PipelineRun, site: CallSite, call: Mapping[str, Any], part: Share
    ) -> dict[str, Any]:
        batch = run.solver.batch if run.solver is not None else 1
        copies, rest = divmod(site.rows, batch)
        if rest:
            raise UnsupportedPipelineError(
                f"{self.name}: expected a multiple of {batch} rows (the samples) at step {run.row}, found "
                f"{site.rows}; sample this pipeline sequentially"
            )
        block = torch.arange(copies, device=part.samples.device)[:, None] * batch
        index = (block + part.samples[None]).reshape(-1)  # [copies * n]
        expanded: dict[str, Any] = {}
        for name, value in call.items():
            if name == self.latents_name:
                expanded[name] = self._latents(run, value, part, copies, index)
            elif has_traced(value):
                expanded[name] = self._at_steps(name, value, run, site, part, copies)
            elif name in TIMESTEP_ARGUMENTS:
                expanded[name] = self._untraced_timestep(run, value, part, copies)
            else:
                expanded[name] = site.selector.select(name, value, site.rows, index)
        return expanded

    def _latents(self, run: PipelineRun, given: Tensor, part: Share, copies: int, index: Tensor) -> Tensor:
        assert run.solver is not None
        states = run.solver.model_inputs(part).to(given.dtype)
        states = states.repeat(copies, *(1,) * (states.ndim - 1)) if copies > 1 else states
        if given.shape[1] == states.shape[1]:
            return states
        # Masks and low-resolution images are conditioning.
        extra = given[:, states.shape[1] :].index_select(0, index)
        return torch.cat([states, extra], dim=1)

    def _at_steps(
        self, name: str, value: Any, run: PipelineRun, site: CallSite, part: Share, copies: int
    ) -> Any:
        """An argument made from the timestep, at every state's own step: [copies * n, ...]."""

        def at_steps(path: Any, leaf: Any) -> Any:
            if not isinstance(leaf, TracedTimestep):
                return leaf
            where = name + keystr(path)
            if where not in site.values:
                with torch._C.DisableTorchFunctionSubclass():
                    each = [leaf.replay(t) for t in run.timesteps.clone()]  # an operation may be in place
                site.values[where] = torch.stack([v if v.ndim == 0 else v[0] for v in each])
                seen = leaf.plain() if leaf.ndim == 0 else leaf.plain()[0]
                if not torch.equal(site.values[where][run.row], seen):
                    raise UnsupportedPipelineError(
                        f"{self.name}: argument {where!r} depends on more than the timestep, so that it is "
                        "not known for steps ahead; sample this pipeline sequentially"
                    )
            values = site.values[where]
            return values[part.steps].repeat(copies, *(1,) * (values.ndim - 1))

        return tree_map_with_path(at_steps, value)

    def _untraced_timestep(self, run: PipelineRun, value: Any, part: Share, copies: int) -> Tensor:
        """A timestep that the pipeline took out of torch: accepted when it is the scheduler's own number."""
        here = float(run.timesteps[run.row])
        given = torch.as_tensor(value).reshape(-1)[0]
        if float(given) != here:
            raise UnsupportedPipelineError(
                f"{self.name}: expected timestep {here:g} at step {run.row}, found {float(given):g}, "
                "computed outside of torch; sample this pipeline sequentially"
            )
        return run.timesteps[part.steps].to(given).repeat(copies)
