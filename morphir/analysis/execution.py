"""Provenance by execution: run the traced program once on fake tensors, and see every ATen operator.

Beside every value the recorder carries its label layers. Which operator does what to labels is in the tables
of :mod:`morphir.analysis.rules`; an operator in no table freezes what it touches.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)

from morphir.analysis.labels import CONSTANT, INPUT, AxisLabels, Facts, LabelledValue, Layers
from morphir.analysis.literals import constrain_literals
from morphir.analysis.module_literals import constrain_module
from morphir.analysis.rules import MixingUse, Operation, Origin, apply_rule, iteration_spaces, result_origin
from morphir.analysis.rules.fake_results import fake_empty, fake_result
from morphir.analysis.sizes import Sizes, follow_sizes
from morphir.errors import AnalysisError, MorphirError
from morphir.ir.graph import Graph
from morphir.ir.opaque import OpaqueCall
from morphir.ir.quiet import failing_quietly
from morphir.ir.source import source_of
from morphir.ir.state import evaluation_mode, named_state, own_state, submodules
from morphir.ir.trace import keywords_in_order
from morphir.ir.values import leaves, tensors


@dataclass(frozen=True)
class Execution:
    """All that one labelled run found.

    Attributes:
        axes: Which label belongs to which axis of which tensor.
        facts: Ties and restrictions.
        mixing: Every use of a kernel by a mixing operator, in program order.
        values: Node name to each tensor that the node yields, with its labels.
        scattered: Node name and layer wherever labels vary along several dimensions at once.
        products: Node name and iteration space of every convolution and matrix product.
    """

    axes: AxisLabels
    facts: Facts
    mixing: list[MixingUse] = field(default_factory=list[MixingUse])
    values: dict[str, list[LabelledValue]] = field(default_factory=dict[str, "list[LabelledValue]"])
    scattered: list[tuple[str, torch.Tensor]] = field(default_factory=list["tuple[str, torch.Tensor]"])
    products: list[tuple[str, LabelledValue]] = field(default_factory=list["tuple[str, LabelledValue]"])


class _Recorder(TorchDispatchMode):
    """Sees every ATen operator and moves labels from its inputs to its outputs."""

    def __init__(self, execution: Execution, mode: FakeTensorMode, *, known: bool) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.mode = mode
        self.known = known
        self.execution = execution
        self.node = ""
        # Tensors are kept beside their layers: an id is only unique while its object lives.
        self.values: dict[int, tuple[torch.Tensor, Layers, Origin]] = {}
        self.lifted: dict[int, torch.Tensor] = {}

    def bind(self, tensor: torch.Tensor, layers: Layers, origin: Origin) -> None:
        """Gives a value its layers."""
        self.values[id(tensor)] = (tensor, layers, origin)

    def layers_of(self, tensor: torch.Tensor) -> Layers:
        """Returns the layers of a value; none for constants."""
        return self.values[id(tensor)][1] if id(tensor) in self.values else ()

    def origin_of(self, tensor: torch.Tensor) -> Origin:
        """Returns whether a value is a parameter, computed from parameters alone, or anything else."""
        return self.values[id(tensor)][2] if id(tensor) in self.values else "activation"

    def literal_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Returns the values of an index that the program holds as a list or a buffer; None for others."""
        return self.lifted.get(id(tensor)) if isinstance(tensor, FakeTensor) else tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = fake_result(self.mode, func, args, kwargs, known=self.known)
        if isinstance(result, torch.device):
            return result
        with _disable_current_modes():
            operation = Operation(
                func,
                args,
                kwargs,
                result,
                self.node,
                self.layers_of,
                self.origin_of,
                self.literal_of,
                self.execution.axes,
            )
            if operation.name == "lift_fresh" and not isinstance(args[0], FakeTensor):
                self.lifted[id(result)] = args[0]
            outcome = apply_rule(operation, self.execution.facts)
            origin = result_origin(operation)
            for tensor, layers in outcome.outputs:
                self.bind(tensor, layers, origin)
                self.execution.scattered.extend(
                    (self.node, layer) for layer in layers if sum(map(bool, layer.stride())) > 1
                )
            self.execution.mixing.extend(outcome.mixing)
            self.execution.products.extend(
                (self.node, space) for space in iteration_spaces(operation, outcome.outputs)
            )
        return result


class _LabelledInterpreter(fx.Interpreter):
    """Runs the program node by node and keeps every node's layers."""

    def __init__(self, graph: Graph, recorder: _Recorder, results: Mapping[str, Any]) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.extra_traceback = False
        self.recorder = recorder
        self.opaque = graph.opaque_calls
        self.results = results
        self.sizes: Sizes = {}

    def run_node(self, n: fx.Node) -> Any:
        self.recorder.node = n.name
        result = self._run_opaque(n, self.opaque[n.name]) if n.name in self.opaque else super().run_node(n)
        if n.op == "placeholder":
            self._label_input(n, result)
        execution = self.recorder.execution
        execution.values[n.name] = [
            LabelledValue(tuple(tensor.shape), tensor.dtype, self.recorder.layers_of(tensor))
            for tensor in tensors(result)
        ]
        with _disable_current_modes():
            constrain_literals(n, execution.values, execution.facts)
            if n.op == "call_module":
                module = self.module.get_submodule(str(n.target))
                constrain_module(n, module, execution.values, execution.facts)
            follow_sizes(n, execution.values, self.sizes, execution.facts)
            if n.op == "output":
                self._freeze_outputs(n)
        return result

    def _freeze_outputs(self, node: fx.Node) -> None:
        for value in self.recorder.execution.values[node.name]:
            self.recorder.execution.facts.restrict(
                value.layers, "frozen", "model-output", "channel of a model output", node.name
            )

    def _label_input(self, node: fx.Node, value: Any) -> None:
        """Labels every dimension of a model input but the batch, and freezes it."""
        self._label_fixed(node, value, "model-input", f"channel of the model input {node.name!r}")

    def _label_fixed(self, node: fx.Node, value: Any, code: str, reason: str) -> None:
        facts, axes = self.recorder.execution.facts, self.recorder.execution.axes
        for position, leaf in enumerate(leaves(value)):
            if isinstance(leaf, torch.Tensor):
                with _disable_current_modes():
                    key, shape = fixed_key(node.name, position), tuple(leaf.shape)
                    layers = axes.layers(key, shape, range(1, len(shape)))
                    facts.restrict(layers, "frozen", code, reason, node.name)
                self.recorder.bind(leaf, layers, "activation")

    def _run_opaque(self, node: fx.Node, call: OpaqueCall) -> Any:
        """Passes over a module that is kept whole, and freezes what it reads, holds and returns."""
        module, facts = self.module.get_submodule(call.path), self.recorder.execution.facts
        reason = f"at the boundary of {type(module).__name__} {call.path!r}, which cannot be traced"
        read = tensors(self.fetch_args_kwargs_from_env(node))
        with _disable_current_modes():
            for tensor in (*read, *module.parameters(), *module.buffers()):
                facts.restrict(self.recorder.layers_of(tensor), "frozen", "opaque-module", reason, node.name)
        result = self.results[node.name]
        self._label_fixed(node, result, "opaque-module", reason)
        return result


class _Runner(nn.Module):
    """Lets ``functional_call`` put fake tensors in the place of the graph's own."""

    def __init__(self, graph: Graph, recorder: _Recorder, results: Mapping[str, Any]) -> None:
        super().__init__()
        self.graph = graph
        self.recorder = recorder
        self.results = results

    def forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Runs the labelled program."""
        inputs = [*args, *keywords_in_order(self.graph, len(args), kwargs)]
        return _LabelledInterpreter(self.graph, self.recorder, self.results).run(*inputs)


def fixed_key(node: str, position: int) -> str:
    """Returns the key of a tensor from outside: a model input, or what an opaque module returns."""
    return f"{INPUT}{node}:{position}"


def is_fixed_key(key: str) -> bool:
    """Whether an axis belongs to a tensor from outside, or to constants."""
    return key.startswith((INPUT, CONSTANT))


def execute(graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Execution:
    """Runs the program once on fake tensors with labels.

    Args:
        graph: The program; it runs in evaluation mode and is left as it was.
        shapes: New shapes of parameters and buffers by ``state_dict`` key, to see what the program would do
            with them.

    Raises:
        AnalysisError: if the program fails on these shapes; names the node that does.
        GuardError: if the shapes are other than a guard in the program allows.
    """
    state = named_state(graph)
    device = graph.device
    fakes_of: dict[str, torch.Tensor] = {}
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    for key, tensor in state.items():
        shape = (shapes or {}).get(key, tuple(tensor.shape))
        fakes_of[key] = fake_empty(fake_mode, shape, tensor.dtype, tensor.device)
    with fake_mode:
        args, kwargs = graph.inputs.materialise(device)
        results = {name: call.materialise(device) for name, call in graph.opaque_calls.items()}
    axes = AxisLabels.allot(
        {
            **{key: tuple(t.shape) for key, t in fakes_of.items()},
            **_fixed_shapes({**_inputs(graph, args, kwargs), **results}),
        }
    )
    execution = Execution(axes, Facts())
    recorder = _Recorder(execution, fake_mode, known=not shapes)
    for key, fake in fakes_of.items():
        recorder.bind(fake, axes.layers(key, tuple(fake.shape), range(fake.dim())), "parameter")
    # Indices stay real: their values say which channels they pick.
    indices = _index_buffers(graph)
    replacements = _replacements(
        graph,
        {id(tensor): tensor if key in indices else fakes_of[key] for key, tensor in state.items()},
    )
    with (
        evaluation_mode(graph),
        torch.no_grad(),
        failing_quietly(),
        _attention_written_out(),
        _naming_the_node(graph, recorder),
        fake_mode,
        recorder,
    ):
        runner = _Runner(graph, recorder, results)
        torch.func.functional_call(runner, replacements, (args, kwargs), tie_weights=False)
    return execution


def _index_buffers(graph: Graph) -> set[str]:
    """Returns the keys of the integer vectors that the program reads."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    return {key for key, tensor in named_state(graph).items() if key in read and _is_index(tensor)}


def _is_index(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 1 and tensor.dtype in (torch.int64, torch.int32)


@contextmanager
def _naming_the_node(graph: Graph, recorder: _Recorder) -> Generator[None]:
    """Turns what the program raises into an error that says which node does."""
    try:
        yield
    except MorphirError:
        raise
    except Exception as error:
        node = graph.node(recorder.node) if recorder.node else None
        raise AnalysisError(
            f"the program fails on the shapes that it is run on: {error}",
            node=node and node.name,
            source=node and source_of(node),
        ) from error


@contextmanager
def _attention_written_out() -> Generator[None]:
    """Lets torch's attention modules run operator by operator, and not as one opaque kernel."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _replacements(graph: Graph, fake_of: Mapping[int, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names every place of every tensor once: shared tensors have several, a module of two names has one.

    ``functional_call`` would tie weights by itself, but swaps the place of a module of two names twice, and
    puts the first replacement back in the end.
    """
    return {
        f"graph.{path}.{name}" if path else f"graph.{name}": fake_of[id(tensor)]
        for path, module in submodules(graph)
        for name, tensor in own_state(module).items()
    }


def _inputs(graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    values = [*args, *keywords_in_order(graph, len(args), kwargs)]
    names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    return dict(zip(names, values, strict=False))


def _fixed_shapes(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {
        fixed_key(name, position): tuple(leaf.shape)
        for name, value in values.items()
        for position, leaf in enumerate(leaves(value))
        if isinstance(leaf, torch.Tensor)
    }
