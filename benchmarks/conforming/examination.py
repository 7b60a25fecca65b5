"""Examines one model: analysis at 224 pixels, then every check of the oracle at the smallest size that does.

It knows no model by its name. The smallest size is the first at which the model runs in evaluation and in
train mode and has the same channel spaces as at 224 pixels; a model that is made for one image size is told
the size when it is made. Shapes are all that the search for it needs, so it runs on the meta device.
"""

from __future__ import annotations

import resource
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from morphir.analysis.tracing import trace
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.ir.trace import trace_program
from morphir.runtime.oracle.oracle import check_graph

ANALYSED_AT = 224
SIZES = (32, 64, 96, 128, 160, 192, ANALYSED_AT, 299)
BATCH = 4
SIZE_OPTIONS: tuple[Callable[[int], dict[str, Any]], ...] = (
    lambda size: {},
    lambda size: {"image_size": size},
    lambda size: {"img_size": size},
    lambda size: {"input_size": (size, size)},
)

Builder = Callable[..., nn.Module]


def examine(build: Builder, name: str, exports: Collection[str]) -> dict[str, Any]:
    """Returns the result of one model as plain data; what it raises is part of the result."""
    result: dict[str, Any] = {"model": name, "error": "", "checks": []}
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    try:
        analysed = _analyse(build, result)
        size, options = _smallest(build, analysed)
        result.update(size=size, batch=BATCH)
        _check(build(**options), size, exports, result)
    except MorphirError as error:
        result["error"] = str(error)
    except Exception:
        result["error"] = traceback.format_exc()[-1500:]
    result["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result


def _analyse(build: Builder, result: dict[str, Any]) -> Graph:
    """Traces and analyses at 224 pixels."""
    model, images = _without_data(build, {}), torch.empty(BATCH, 3, ANALYSED_AT, ANALYSED_AT, device="meta")
    started = time.process_time()
    trace_program(model, images)
    traced = time.process_time()
    graph = trace(model, images)
    analysed = time.process_time()
    verdicts = [verdict for space in graph.spaces.values() for verdict in space.verdicts]
    result.update(
        parameters=sum(parameter.numel() for parameter in graph.parameters()),
        nodes=len(graph.graph.nodes),
        spaces=len(graph.spaces),
        groups=dict(Counter(verdict.kind for verdict in verdicts)),
        frozen=dict(Counter(verdict.code for verdict in verdicts if verdict.kind == "frozen")),
        reasons={verdict.code: verdict.reason for verdict in verdicts if verdict.code},
        trace_seconds=traced - started,
        # Whatever the analysis has traced anew is its own.
        analysis_seconds=analysed - traced - (traced - started),
    )
    return graph


def _without_data(build: Builder, options: dict[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):
            return build(**options)
    except (NotImplementedError, RuntimeError):  # it computes with tensors while it is made
        return build(**options).to("meta")


def _smallest(build: Builder, analysed: Graph) -> tuple[int, dict[str, Any]]:
    for size in SIZES:
        for option in SIZE_OPTIONS:
            if _fits(build, option(size), size, analysed):
                return size, option(size)
    raise MorphirError(f"the model runs on images of none of the sizes {SIZES}")


def _fits(build: Builder, options: dict[str, Any], size: int, analysed: Graph) -> bool:
    images = torch.empty(BATCH, 3, size, size, device="meta")
    try:
        model = _without_data(build, options)
        with torch.no_grad():
            model.eval()(images)
            model.train()(images)
        graph = trace(model, images)
    except Exception:  # whatever a model says to a size that it is not made for
        return False
    return _widths(graph) == _widths(analysed)


def _widths(graph: Graph) -> dict[str, int]:
    return {name: space.width for name, space in graph.spaces.items()}


def _check(model: nn.Module, size: int, exports: Collection[str], result: dict[str, Any]) -> None:
    graph = trace(model, torch.rand(BATCH, 3, size, size))
    del model
    result["times"] = {}
    before = time.perf_counter()
    for check in check_graph(graph, exports=exports, together=True, consume=True):
        now = time.perf_counter()
        result["times"][check.check] = result["times"].get(check.check, 0.0) + now - before
        before = now
        result["checks"].append(check.to_json())
