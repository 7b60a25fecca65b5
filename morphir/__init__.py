"""MorphIR: a compiler for growing neural networks.

A CNN is traced with ``torch.fx`` into a growable graph; a locality analysis finds what a change to each
channel touches; a runtime learns how to split or prune every channel of the whole network at about the cost
of training it; rewrite passes apply what pays; the grown network leaves as PyTorch source or ONNX::

    graph = morphir.trace(model, example_inputs)
    learner = morphir.Learner(graph, loss)
    for inputs, targets in data:
        learner.step(inputs, targets)
    paying = [s.morphism for s in learner.scores() if s.morphism.kind == "split" and s.delta_loss < -1e-3]
    morphir.transform(graph, paying, optimizer)

Names are resolved on first use, so that ``import morphir.ir`` loads the IR alone.
"""

from __future__ import annotations

from importlib import import_module, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphir.errors import MorphirError

if TYPE_CHECKING:
    from exporters.onnx import export_onnx
    from exporters.pytorch_source import export_pytorch
    from morphir.analysis.cost import cost
    from morphir.analysis.explain import explain
    from morphir.analysis.locality import locality
    from morphir.analysis.tracing import trace
    from morphir.ir.channels import ChannelSpace, Verdict
    from morphir.ir.graph import Graph
    from morphir.ir.printer import print_graph
    from morphir.ir.remarks import Remark
    from morphir.ir.verify import verify
    from morphir.morphisms.base import Morphism
    from morphir.morphisms.prune import Prune
    from morphir.morphisms.split import Split
    from morphir.runtime.growing.config import GrowthConfig
    from morphir.runtime.growing.growth import GrowthResult, grow
    from morphir.runtime.learning.learner import Learner, Score, StepResult
    from passes.transform import TransformResult, replay, transform

__version__ = "0.1.0"

__all__ = [
    "ChannelSpace",
    "Graph",
    "GrowthConfig",
    "GrowthResult",
    "Learner",
    "MorphirError",
    "Morphism",
    "Prune",
    "Remark",
    "Score",
    "Split",
    "StepResult",
    "TransformResult",
    "Verdict",
    "cost",
    "explain",
    "export_onnx",
    "export_pytorch",
    "grow",
    "locality",
    "print_graph",
    "replay",
    "trace",
    "transform",
    "verify",
]

_HOMES = {
    "ChannelSpace": "morphir.ir.channels",
    "Graph": "morphir.ir.graph",
    "GrowthConfig": "morphir.runtime.growing.config",
    "GrowthResult": "morphir.runtime.growing.growth",
    "Learner": "morphir.runtime.learning.learner",
    "Morphism": "morphir.morphisms.base",
    "Prune": "morphir.morphisms.prune",
    "Remark": "morphir.ir.remarks",
    "Score": "morphir.runtime.learning.learner",
    "Split": "morphir.morphisms.split",
    "StepResult": "morphir.runtime.learning.learner",
    "TransformResult": "passes.transform",
    "Verdict": "morphir.ir.channels",
    "cost": "morphir.analysis.cost",
    "explain": "morphir.analysis.explain",
    "export_onnx": "exporters.onnx",
    "export_pytorch": "exporters.pytorch_source",
    "grow": "morphir.runtime.growing.growth",
    "locality": "morphir.analysis.locality",
    "print_graph": "morphir.ir.printer",
    "replay": "passes.transform",
    "trace": "morphir.analysis.tracing",
    "transform": "passes.transform",
    "verify": "morphir.ir.verify",
}


def __getattr__(name: str) -> Any:
    if name == "debug":  # a module of its own, which most programs never need
        return import_module("morphir.debug")
    if name not in _HOMES:
        raise AttributeError(f"module 'morphir' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))


def _check_siblings() -> None:
    """Says so when another package of the common names ``passes`` and ``exporters`` is found first."""
    home = Path(__file__).resolve().parent.parent
    for sibling in ("passes", "exporters"):
        spec = util.find_spec(sibling)
        found = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if found is None or found.parent.parent != home:
            raise MorphirError(
                f"the package {sibling!r} that Python finds is not MorphIR's: {found or 'none'}",
                hint=f"MorphIR's own is {home / sibling}; rename the other, or change the order of sys.path",
            )


_check_siblings()
