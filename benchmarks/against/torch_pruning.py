"""torch-pruning's graph, groups and pruning against MorphIR's, on torchvision's networks.

Both get the same model in evaluation mode, with random weights and affine maps and one batch's statistics,
and the same two images of 64 pixels. Both remove the first quarter of every group but the logits.
torch-pruning is used as its documentation does: ``build_dependency``, then ``group.prune`` for each of
``get_all_groups``, the head among the ignored layers.

- *graph*: ``build_dependency`` against ``morphir.trace``, which also copies the model, compares the program
  with it, and tries on shapes what it promises. The analysis alone is what answers to ``build_dependency``.
- *listing*: every group, with the layers that it touches and the indices there.
- *pruning*: of models made off the clock. MorphIR changes literals too, analyses the new program, and
  compares it with what was predicted, before it touches a tensor.

The checks are in float64. *From zeroed*: the pruned network against the original in which those columns of
kernels are zero that read a removed channel, according to the tool's own groups. Where a norm mixes a group's
channels, absent is not zero, by design: these groups are pruned after that comparison. *From each other*: the
two networks, all groups pruned.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from timing.arms import Step
from timing.clock import in_turns
from timing.tables import described, markdown
from torch import nn
from torchvision import models

import morphir
from morphir.analysis.spaces import analyse
from morphir.ir.channels import ChannelSpace
from morphir.runtime.oracle.checks import relative_difference
from morphir.runtime.oracle.subjects import randomise_norms

Row = Mapping[str, Any]
NETWORKS = (
    "vgg19_bn",
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "efficientnet_b0",
    "densenet121",
    "convnext_tiny",
    "shufflenet_v2_x1_0",
)
"""All that are measured unless others are named; torch-pruning does not build the last one's graph."""

Column = tuple[str, int, list[int]]
"""A kernel's ``state_dict`` key, its axis of input channels, and places along it."""

_MIXING_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


class TorchPruning:
    """One model and its dependency graph; the model itself is pruned."""

    name = "torch-pruning"

    def __init__(self, model: nn.Module, images: torch.Tensor) -> None:
        self.module = model
        self.graph = tp.DependencyGraph().build_dependency(model, example_inputs=images, verbose=False)

    def groups(self) -> list[tp.Group]:
        """Lists every group but the head's."""
        head = [layer for layer in self.module.modules() if isinstance(layer, nn.Linear)][-1]
        return list(self.graph.get_all_groups(ignored_layers=[head]))

    def prune(self, groups: Sequence[tp.Group]) -> None:
        """Removes the first quarter of each group."""
        for group in groups:
            group.prune(idxs=_quarter(len(group[0].idxs)))

    def columns(self, groups: Sequence[tp.Group]) -> Iterator[Column]:
        """Yields what would read the channels that are to be removed."""
        names = {module: name for name, module in self.module.named_modules()}
        for group in groups:
            root, *_ = group[0]
            removed = self.graph.get_pruning_group(
                root.target.module, root.handler, _quarter(len(group[0].idxs))
            )
            for dependency, places in removed.items:
                reads = self.graph.is_in_channel_pruning_fn(dependency.handler)
                if reads and not self.graph.is_out_channel_pruning_fn(dependency.handler):
                    yield f"{names[dependency.target.module]}.weight", 1, places

    def is_mixed(self, group: tp.Group) -> bool:
        """Whether a norm mixes the group's channels."""
        return any(isinstance(dependency.target.module, _MIXING_NORMS) for dependency, _ in group.items)


class MorphIR:
    """The same on a traced copy."""

    name = "MorphIR"

    def __init__(self, model: nn.Module, images: torch.Tensor) -> None:
        self.module = morphir.trace(model, images)

    def groups(self) -> list[ChannelSpace]:
        """Lists every space that may be pruned, each binding's places with it."""
        spaces = self.module.spaces.values()
        return [space for space in spaces if all(verdict.kind != "frozen" for verdict in space.verdicts)]

    def prune(self, groups: Sequence[ChannelSpace]) -> None:
        """Removes the first quarter of each space."""
        prunes = [morphir.Prune(space.name, index) for space in groups for index in _quarter(space.width)]
        morphir.transform(self.module, prunes)

    def columns(self, groups: Sequence[ChannelSpace]) -> Iterator[Column]:
        """Yields what would read the channels that are to be removed."""
        for space in groups:
            removed = set(_quarter(space.width))
            for binding in space.bindings:
                if binding.role == "consumer":
                    places = [place for place, group in enumerate(binding.groups) if group in removed]
                    yield binding.parameter, binding.axis, places

    def is_mixed(self, group: ChannelSpace) -> bool:
        """Whether a norm mixes the group's channels."""
        return any(verdict.kind == "prune-only" for verdict in group.verdicts)


Tool = type[TorchPruning] | type[MorphIR]
TOOLS: tuple[Tool, ...] = (TorchPruning, MorphIR)
STAGES = ("graph", "listing", "pruning", "running", "pruning the rest")
TIMED = STAGES[:3]


def measure(patterns: Sequence[str] | None, repeats: int) -> Iterator[Row]:
    """Yields a row for each network."""
    known = models.list_models(module=models)
    for name in [x for x in known if any(fnmatch(x, p) for p in patterns)] if patterns else NETWORKS:
        model, images = _subject(name)
        checks = {tool.name: _checked(tool, copy.deepcopy(model).double(), images.double()) for tool in TOOLS}
        outputs = [[check.pop("outputs", None)] for check in checks.values()]
        yield {
            "model": name,
            "checks": checks,
            "differing": None if [None] in outputs else relative_difference(*outputs),
            "ms": _times(model, images, checks, repeats),
        }


def _subject(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = models.get_model(name, weights=None)
    randomise_norms(model, 0)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # the next batch's statistics, so that signals neither fade nor explode
    _run(model.train(), torch.randn(16, 3, 64, 64))
    return model.eval(), torch.randn(2, 3, 64, 64)


def _checked(tool: Tool, model: nn.Module, images: torch.Tensor) -> dict[str, Any]:
    """Returns what each stage told, up to the first that raises something."""
    found: dict[str, Any] = {"done": []}
    try:
        for facts in _stages(tool, model, images):
            found |= facts
            found["done"].append(STAGES[len(found["done"])])
    except Exception as error:
        found["error"] = f"{STAGES[len(found['done'])]}: {described(error)}"
    return found


def _stages(tool: Tool, model: nn.Module, images: torch.Tensor) -> Iterator[dict[str, Any]]:
    original = copy.deepcopy(model)
    subject = tool(model, images)
    yield {}
    groups = subject.groups()
    mixed = [group for group in groups if subject.is_mixed(group)]
    plain = [group for group in groups if not subject.is_mixed(group)]
    yield {"groups": len(groups), "mixed": len(mixed)}
    _zero(original, subject.columns(plain))
    subject.prune(plain)
    yield {}
    yield {"difference": relative_difference([_run(subject.module, images)], [_run(original, images)])}
    subject.prune(mixed)
    outputs = _run(subject.module, images)
    yield {"outputs": outputs, "parameters": sum(x.numel() for x in subject.module.parameters())}


@torch.no_grad()
def _zero(model: nn.Module, columns: Iterator[Column]) -> None:
    for key, axis, places in columns:
        model.get_parameter(key).index_fill_(axis, torch.tensor(places), 0)


@torch.no_grad()
def _run(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images)


def _quarter(width: int) -> list[int]:
    return list(range(width // 4))


def _times(
    model: nn.Module, images: torch.Tensor, checks: Mapping[str, Any], repeats: int
) -> dict[str, float]:
    """Returns the median milliseconds of the stages that went through in the check."""
    graph = morphir.trace(model, images)
    makers: dict[str, Callable[[], Step]] = {"analysis": lambda: partial(analyse, graph)}
    for tool in TOOLS:
        done = [stage for stage in TIMED if stage in checks[tool.name]["done"]]
        makers |= {f"{tool.name} {stage}": partial(_maker, tool, stage, model, images) for stage in done}
    times = in_turns(makers, repeats, "cpu")
    return {name: own.median for name, own in times.items()}


def _maker(tool: Tool, stage: str, model: nn.Module, images: torch.Tensor) -> Step:
    """Makes one stage's step, with all that comes before it done."""
    model = copy.deepcopy(model)
    gc.collect()
    if stage == "graph":
        return partial(tool, model, images)
    subject = tool(model, images)
    if stage == "listing":
        return subject.groups
    return partial(subject.prune, subject.groups())


def tables(rows: Sequence[Row]) -> str:
    """Returns a table of times and one of checks."""
    return f"{_time_table(rows)}\n{_check_table(rows)}"


def _time_table(rows: Sequence[Row]) -> str:
    columns = {
        "CPU ms": "",
        **{f"torch-pruning: {stage}": ".1f" for stage in TIMED},
        "in all": ".0f",
        **{f"MorphIR: {stage}": ".1f" for stage in ("trace", *TIMED[1:])},
        "in all ": ".0f",
        "analysis alone": ".1f",
    }
    return markdown(columns, map(_time_cells, rows))


def _time_cells(row: Row) -> list[object]:
    cells: list[object] = [row["model"]]
    for tool in TOOLS:
        own = [row["ms"].get(f"{tool.name} {stage}") for stage in TIMED]
        cells += [*own, None if None in own else sum(own)]
    return [*cells, row["ms"]["analysis"]]


def _check_table(rows: Sequence[Row]) -> str:
    columns = {
        "network": "",
        "pruned by": "",
        "groups": "d",
        "of these mixed by a norm": "d",
        "parameters left": ",",
        "from zeroed": ".0e",
        "from each other": ".0e",
        "raises": "",
    }
    keys = ("groups", "mixed", "parameters", "difference")
    cells = (
        [row["model"], name, *map(check.get, keys), row["differing"], check.get("error", "nothing")]
        for row in rows
        for name, check in row["checks"].items()
    )
    return markdown(columns, cells)
