"""gromo's statistics pass against MorphIR's learning step: one VGG-19, the same weights, the same batch.

Arms, by turns, all in float32, images and kernels channels last:

- *training*: a plain training step (``timing/arms.py``) of the network in plain layers.
- *learning*: MorphIR's learning step over every split and prune of every space, Adam included; with the
  paper's curvature, compiled and not, and with the default ones, which take one more data-gradient pass.
- *one layer*, for each layer that gromo's own ``VGG`` can grow: what gromo's ``compute_statistics`` does with
  one batch, less its meters. Forward and backward of the whole network in evaluation mode, then all that
  ``update_computation`` updates by default: the moments of the layer's input (S), with the gradient (M), of
  the gradient, and, across the previous layer, which is where channels would be added, S, M and P.
- *all layers*: one such pass with the statistics of every layer.

The optimal updates (linear solve, eigen-decomposition of S, singular values) are made once for each growth,
not once for each batch: they are timed apart, from as many batches as S needs to have full rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from gromo.containers.vgg import VGG
from gromo.modules.conv2d_growing_module import Conv2dGrowingModule
from timing.arms import ARMS, Step
from timing.cases import CASES, EXTRA_CASES, Case
from timing.clock import Times, interleaved
from timing.modes import modes
from timing.tables import described, markdown
from torch import nn
from torch.nn.functional import cross_entropy

import morphir
from morphir.runtime.oracle.checks import relative_difference

Row = Mapping[str, Any]
NETWORKS = ("vgg19-16", "vgg19-64", "vgg19")
_MOST_ROWS = 1000
"""Updates are timed where no S has more rows: their time grows with the third power of it."""


def measure(patterns: Sequence[str] | None, repeats: int) -> Iterator[Row]:
    """Yields a row for each network."""
    for case in CASES + EXTRA_CASES:
        if case.name in NETWORKS and any(fnmatch(case.name, pattern) for pattern in patterns or "*"):
            try:
                yield _row(case, repeats)
            except Exception as error:
                yield {"model": case.name, "error": described(error)}


def _row(case: Case, repeats: int) -> Row:
    model = case.build()
    network = as_gromo(model, case.side)
    images, labels = case.data()
    difference = _difference(model, network, images)
    added = _grown_spaces(model, network)
    mode = modes("cpu")[0]
    arms = {name: arm(case, mode, "cpu") for name, arm in ARMS.items()}
    network.to(memory_format=mode.memory_format)
    images = images.to(memory_format=mode.memory_format)
    graph = morphir.trace(model, images)
    arms["all layers"] = statistics(network, images, labels)
    arms |= {name: statistics(network, images, labels, index) for index, name in enumerate(added)}
    times = interleaved(arms, repeats, "cpu", warm_up=1)
    updates = _updates(case, network, added, repeats)
    training = times["training"]
    one_by_one = _total([times[name] for name in added])
    return {
        "model": case.name,
        "side": case.side,
        "batch": case.batch,
        "difference": difference,
        "training_ms": training.median,
        "spaces": sum(any(verdict.kind != "frozen" for verdict in s.verdicts) for s in graph.spaces.values()),
        "learning": _cost(times["learning"], training),
        "uncompiled": _cost(times["uncompiled"], training),
        "sampled": _cost(times["sampled"], training),
        "all_layers": _cost(times["all layers"], training),
        "one_by_one": _cost(one_by_one, training),
        "updates": updates and _cost(_total(list(updates.values())), training),
        "layers": [
            {
                "space": name,
                **_cost(times[name], training),
                "updates_ms": updates[name].median if updates else None,
            }
            for name in added
        ],
    }


def as_gromo(model: nn.Module, side: int) -> VGG:
    """Returns gromo's own VGG with the weights of MorphIR's; its convolutions' biases are zero."""
    parts = [part for part in model.features if isinstance(part, nn.Conv2d | nn.MaxPool2d)]
    widths = [part.out_channels if isinstance(part, nn.Conv2d) else "M" for part in parts]
    targets = [width if width == "M" else 2 * width for width in widths]  # only what is to grow can be grown
    network = VGG(
        widths, targets, num_classes=10, number_of_fc_layers=1, input_spatial_shape=(side, side), device="cpu"
    )
    norms = (part for part in model.features if isinstance(part, nn.BatchNorm2d))
    for own, norm, its in zip(_convolutions(model).values(), norms, _growing(network), strict=True):
        its.layer.load_state_dict({**own.state_dict(), "bias": torch.zeros(own.out_channels)})
        its.post_layer_function[0].load_state_dict(norm.state_dict())
    network.classifier[0].layer.load_state_dict(model.classifier.state_dict())
    return network


def statistics(network: VGG, images: torch.Tensor, labels: torch.Tensor, index: int | None = None) -> Step:
    """Returns gromo's pass over one batch, for one of the layers that can grow or for all of them."""

    def step() -> None:
        network.set_growing_layers(index=index)
        network.init_computation()
        network.eval()
        _accumulate(network, images, labels)
        network.reset_computation()

    return step


def _accumulate(network: VGG, images: torch.Tensor, labels: torch.Tensor) -> None:
    network.zero_grad()
    cross_entropy(network(images), labels, reduction="sum").backward()
    network.update_computation()


def _updates(case: Case, network: VGG, names: Sequence[str], repeats: int) -> dict[str, Times] | None:
    """Times each layer's optimal updates; None where that would take too long."""
    network.set_growing_layers()
    layers = network._growing_layers
    rows = max(math.prod(layer.weight.shape[1:]) + 1 for layer in layers)
    if rows > _MOST_ROWS:
        return None
    network.init_computation()
    network.eval()
    smallest = case.batch * min(math.prod(layer.input_size) for layer in layers)
    for _ in range(math.ceil(2 * rows / smallest)):
        _accumulate(network, torch.randn(case.batch, 3, case.side, case.side), case.data()[1])
    arms: dict[str, Step] = {
        name: layer.compute_optimal_updates for name, layer in zip(names, layers, strict=True)
    }
    return interleaved(arms, repeats, "cpu", warm_up=1)


def _grown_spaces(model: nn.Module, network: VGG) -> list[str]:
    """Returns the space to which each layer's growth adds channels: it is named after the layer before."""
    names = dict(zip(_growing(network), _convolutions(model), strict=True))
    return [names[layer.previous_module] for layer in network._growable_layers]


def _convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Conv2d)}


def _growing(network: VGG) -> Iterator[Conv2dGrowingModule]:
    return (layer for block in network.stage_blocks for layer in block.growing_modules)


@torch.no_grad()
def _difference(model: nn.Module, network: VGG, images: torch.Tensor) -> float:
    return relative_difference([network.eval()(images)], [model.eval()(images)])


def _total(times: Sequence[Times]) -> Times:
    columns = ([own.milliseconds for own in times], [own.wall for own in times])
    return Times(*(tuple(map(sum, zip(*column, strict=True))) for column in columns))


def _cost(own: Times, training: Times) -> dict[str, float]:
    return {"ms": own.median, "ratio": own.ratio(training)}


def tables(rows: Sequence[Row]) -> str:
    """Returns a table of networks, one of layers, and what went wrong."""
    measured = [row for row in rows if "error" not in row]
    errors = [f"- {row['model']}: {row['error']}\n" for row in rows if "error" in row]
    return "\n".join([_networks(measured), *map(_layers, measured), "".join(errors)])


def _networks(rows: Sequence[Row]) -> str:
    columns = {
        "network": "",
        "batch": "d",
        "training, ms": ".1f",
        "MorphIR: spaces": "d",
        "learning, ms": ".1f",
        "ratio": ".2f",
        "uncompiled": ".2f",
        "sampled Fisher too": ".2f",
        "gromo: layers": "d",
        "all at once, ms": ".0f",
        "ratio  ": ".1f",
        "layer by layer, ms": ".0f",
        "ratio   ": ".1f",
        "optimal updates, ms": ".0f",
        "outputs differ by": ".0e",
    }
    cells = (
        (
            *(row["model"], row["batch"], row["training_ms"]),
            *(row["spaces"], *row["learning"].values()),
            *(row["uncompiled"]["ratio"], row["sampled"]["ratio"]),
            *(len(row["layers"]), *row["all_layers"].values(), *row["one_by_one"].values()),
            *(row["updates"] and row["updates"]["ms"], row["difference"]),
        )
        for row in rows
    )
    return markdown(columns, cells)


def _layers(row: Row) -> str:
    columns = {
        f"{row['model']}: channels are added to": "",
        "statistics, ms": ".1f",
        "ratio": ".2f",
        "optimal updates, ms": ".1f",
    }
    cells = ((layer["space"], layer["ms"], layer["ratio"], layer["updates_ms"]) for layer in row["layers"])
    return markdown(columns, cells)
