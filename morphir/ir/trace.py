"""From a model to a :class:`~morphir.ir.graph.Graph`: ``torch.fx`` traces, every node keeps its user's line.

The program is traced once in each mode. Where the two traces differ only in boolean literals
(``training=False`` against ``training=True`` of a functional dropout or batch norm), the literal becomes a
read of the graph's own ``training`` flag, so that ``graph.train()`` and ``graph.eval()`` mean what they mean
on the model.

What the example inputs decide is held in the program by guards (:mod:`morphir.ir.guards`); a module that
cannot be traced is kept whole (:mod:`morphir.ir.opaque`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from morphir.errors import MorphirError, MorphirWarning, TraceError, reason
from morphir.ir.graph import Graph
from morphir.ir.inputs import ExampleInputs
from morphir.ir.opaque import Failure, OpaqueCall
from morphir.ir.quiet import fixed_randomness
from morphir.ir.signature import Signature
from morphir.ir.source import SourceLocation, failing_user_line
from morphir.ir.state import (
    copied,
    drop_backward_hooks,
    evaluation_mode,
    require_autograd,
    restore_modes,
    submodules,
    training_modes,
)
from morphir.ir.traceable import check_traceable, model_failure
from morphir.ir.tracer import StartAgain, Tracer
from morphir.ir.values import cloned, leaves

ExampleArgument = torch.Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Findings:
    """What tracing a model found beside its program.

    Attributes:
        failures: Path of each module to keep whole, to why.
        constants: Type of each module that the model holds out of sight of ``nn.Module``, to the line that
            calls it.
        opened: Wrapped functions to trace into.
        closed: Wrapped functions to keep whole all the same: they cannot be traced.
    """

    failures: dict[str, Failure]
    opened: Collection[Callable[..., Any]] = ()
    constants: dict[str, SourceLocation | None] = field(default_factory=dict["str", "SourceLocation | None"])
    closed: set[Callable[..., Any]] = field(default_factory=set["Callable[..., Any]"])

    def warn(self) -> None:
        """Says which parameters are constants."""
        for name, source in self.constants.items():
            where = "" if source is None else f" ({source})"
            warnings.warn(
                f"the model calls a {name} that it holds in no nn.Module attribute{where}; its parameters "
                "are constants, as they are for the model's own parameters() and state_dict()",
                MorphirWarning,
                stacklevel=4,
            )


def split_inputs(example_inputs: ExampleArgument) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns positional and keyword arguments: a tensor is one, a tuple several, a dict keywords."""
    if isinstance(example_inputs, Mapping):
        return (), {str(key): value for key, value in example_inputs.items()}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def trace_program(
    model: nn.Module,
    example_inputs: ExampleArgument,
    opaque: Mapping[str, Failure] | None = None,
    opened: Collection[Callable[..., Any]] = (),
    closed: set[Callable[..., Any]] | None = None,
) -> Graph:
    """Traces ``model`` into a graph without a channel layer; :func:`morphir.trace` adds it.

    Args:
        model: Any module that ``torch.fx`` can trace. It is copied, never changed.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments, with a batch dimension.
        opaque: Paths of modules to keep whole, and why.
        opened: Functions to trace into although ``torch.fx.wrap`` keeps them whole, where that can be.
        closed: Functions that are known not to be traceable; those that turn out so are added.

    Raises:
        TraceError: if fx cannot trace the model, or the model fails on the example inputs; names the user's
            line.
    """
    require_autograd("a trace")
    check_traceable(model)
    args, kwargs = split_inputs(example_inputs)
    root = _copy(model)
    signature = Signature.bind(root, args, kwargs)
    findings = Findings(
        dict(opaque or {}), frozenset(opened), closed=set[Callable[..., Any]]() if closed is None else closed
    )
    program, for_evaluation = _trace_both_modes(root, signature, findings)
    module_types = {path: type(module).__name__ for path, module in submodules(model)}
    graph = Graph(root, program, inputs=ExampleInputs.of(args, kwargs), module_types=module_types)
    outputs, graph.opaque_calls = _check_runs(graph, args, kwargs, findings.failures)
    if for_evaluation:
        _check_outputs(root, outputs, signature)
    findings.warn()
    return graph


def _copy(model: nn.Module) -> nn.Module:
    try:
        root = copied(model)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} cannot be copied: {error}",
            hint="hold no tensors computed by autograd, as the old torch.nn.utils.weight_norm does; "
            "torch.nn.utils.parametrizations has its successors",
        ) from error
    _drop_backward_hooks(root)
    return root


def _drop_backward_hooks(root: nn.Module) -> None:
    """A program has no place for them; its gradients are those of what it computes."""
    hooked = [(path, module) for path, module in submodules(root) if drop_backward_hooks(module)]
    if hooked:
        path, module = hooked[0]
        others = f", nor those of {len(hooked) - 1} others" if len(hooked) > 1 else ""
        warnings.warn(
            f"the graph has no backward hooks: {type(module).__name__} at {path!r} loses its own{others}",
            MorphirWarning,
            stacklevel=4,
        )


def _trace_both_modes(root: nn.Module, signature: Signature, findings: Findings) -> tuple[fx.Graph, bool]:
    """Returns the program, and whether it is what the model runs in evaluation mode.

    A module that cannot be traced in one mode is kept whole in both, and added to ``findings``; so is a
    function whose inside differs.

    A model whose two modes run different operators has its evaluation program traced, with a warning: a
    graph has one program.
    """
    training = root.training
    modes = training_modes(root)
    current = _trace_once(root, signature, findings)
    known, closed = len(findings.failures), len(findings.closed)
    root.train(not training)
    other = _try_trace(root, signature, findings)
    restore_modes(root, modes)
    if len(findings.failures) > known or len(findings.closed) > closed:
        current = _trace_once(root, signature, findings)
    if other is None:
        return current, not training
    if _operations(current) == _operations(other):
        _read_training_flag(current, other, training)
        return current, True
    pair = _first_differing(current, other)
    if inside := {node.meta["opened"] for node in pair if "opened" in node.meta}:
        findings.closed.update(inside)
        return _trace_both_modes(root, signature, findings)
    warnings.warn(
        f"{type(root).__name__} runs other operators in training mode than in evaluation mode, from "
        f"{_first_difference(current, other)} on; the graph holds the program of evaluation mode",
        MorphirWarning,
        stacklevel=4,
    )
    return (other if training else current), True


def _first_difference(current: fx.Graph, other: fx.Graph) -> str:
    """Names the user's line where two programs part."""
    node = next(iter(_first_differing(current, other)), None)
    source = None if node is None else node.meta.get("source")
    return "the end" if node is None else f"%{node.name}" + (f" ({source})" if source else "")


def _first_differing(current: fx.Graph, other: fx.Graph) -> tuple[fx.Node, ...]:
    pairs = zip(current.nodes, other.nodes, strict=False)
    return next(((a, b) for a, b in pairs if _operation(a) != _operation(b)), ())


def _operations(program: fx.Graph) -> list[tuple[str, object]]:
    """Returns what each node does; the constants that tracing found are numbered anew by each trace."""
    return [_operation(node) for node in program.nodes]


def _operation(node: fx.Node) -> tuple[str, object]:
    constant = str(node.target).startswith("_tensor_constant")
    return node.op, "_tensor_constant" if constant else node.target


def _try_trace(root: nn.Module, signature: Signature, findings: Findings) -> fx.Graph | None:
    """Traces the mode that the user did not ask for; a model may well support one mode alone."""
    try:
        return _trace_once(root, signature, findings)
    except TraceError:
        return None


def _trace_once(root: nn.Module, signature: Signature, findings: Findings) -> fx.Graph:
    """Traces until no further module has to be kept whole: what was half traced leaves no mark in the end."""
    try:
        while True:
            tracer = Tracer(signature, findings.failures, findings.opened, findings.closed)
            with suppress(StartAgain):
                program = tracer.trace(root)
                findings.constants.update(tracer.constants)
                if not tracer.failures:
                    return program
            findings.failures.update(tracer.failures)
    except MorphirError:
        raise
    except Exception as error:
        _check_model_runs(root, signature)
        raise TraceError(
            f"torch.fx cannot trace {type(root).__name__}: {reason(error)}",
            source=failing_user_line(error.__traceback__),
            hint="control flow on tensor values, and Python numbers made from tensors, cannot be traced; "
            "move them into a module of their own or out of forward()",
        ) from error


def _check_model_runs(root: nn.Module, signature: Signature) -> None:
    """Runs the model itself, to tell its own failure from one to trace it.

    Raises:
        TraceError: if it fails on the example inputs.
    """
    try:
        with torch.no_grad(), evaluation_mode(root), fixed_randomness():
            signature.caller(root)()
    except Exception as error:
        raise model_failure(error) from error


def _read_training_flag(current: fx.Graph, other: fx.Graph, training: bool) -> None:
    """Replaces boolean literals that follow the mode by a read of ``self.training``."""
    here, there = list(current.nodes), list(other.nodes)
    flag: fx.Node | None = None
    for node, twin in zip(here, there, strict=True):
        follows = [
            key
            for key, value in node.kwargs.items()
            if value is training and twin.kwargs[key] is (not training)
        ]
        positions = [
            i for i, value in enumerate(node.args) if value is training and twin.args[i] is (not training)
        ]
        if (follows or positions) and flag is None:
            with current.inserting_before(next(n for n in here if n.op != "placeholder")):
                flag = current.create_node("get_attr", "training", name="training")
        for key in follows:
            node.update_kwarg(key, flag)
        for position in positions:
            node.update_arg(position, flag)


def _check_runs(
    graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any], failures: Mapping[str, Failure]
) -> tuple[Any, dict[str, OpaqueCall]]:
    """Runs the program once in evaluation mode, so that a shape mismatch is named here and not later.

    Returns:
        The outputs, and what the opaque modules returned.
    """
    runner = _ExampleInterpreter(graph, failures)
    try:
        with torch.no_grad(), evaluation_mode(graph), fixed_randomness():
            args, kwargs = cloned(args), cloned(kwargs)
            outputs = runner.run(*args, *keywords_in_order(graph, len(args), kwargs))
            return outputs, runner.opaque
    except Exception as error:
        node = runner.current
        is_opaque = node is not None and str(node.target) in failures
        raise TraceError(
            f"the model fails on the example inputs: {reason(error)}",
            node=None if node is None else node.name,
            source=failing_user_line(error.__traceback__) if is_opaque else node and node.meta.get("source"),
            hint="check the example inputs' shapes, dtypes and device",
        ) from error


def _check_outputs(root: nn.Module, outputs: Any, signature: Signature) -> None:
    """Compares the program with the model: fx records ``v += 1`` on a view as an addition beside it."""
    with torch.no_grad(), evaluation_mode(root), fixed_randomness():
        wanted = signature.caller(root)()
    mine, theirs = leaves(outputs), leaves(wanted)
    if len(mine) != len(theirs) or not all(map(_agree, mine, theirs)):
        raise TraceError(
            f"the program that torch.fx traced computes something else than {type(root).__name__}",
            hint="fx does not follow writes through views (as v = x[:, :2]; v += 1) or changes of Python "
            "state; write such a step out of place, or move it into a module of its own that is a leaf",
        )


def _agree(found: Any, true: Any) -> bool:
    """Whether two results are the same up to the device's rounding."""
    if not isinstance(found, torch.Tensor) or not isinstance(true, torch.Tensor):
        return isinstance(found, torch.Tensor) == isinstance(true, torch.Tensor)
    if found.shape != true.shape or found.dtype != true.dtype:
        return False
    if true.is_meta:
        return True
    if not true.is_floating_point():
        return torch.equal(found, true)
    scale = float(true.abs().nan_to_num(posinf=0.0).amax()) if true.numel() else 0.0
    return torch.allclose(found, true, rtol=1e-2, atol=1e-2 * scale, equal_nan=True)


class _ExampleInterpreter(fx.Interpreter):
    """Remembers which node runs, for the error message, and what the opaque modules return."""

    def __init__(self, graph: Graph, failures: Mapping[str, Failure]) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.current: fx.Node | None = None
        self.failures = failures
        self.opaque: dict[str, OpaqueCall] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node."""
        self.current = n
        result = super().run_node(n)
        if n.op == "call_module" and str(n.target) in self.failures:
            self.opaque[n.name] = OpaqueCall.of(n, self.failures[str(n.target)], result)
        return result


def keywords_in_order(graph: Graph, skip: int, kwargs: Mapping[str, Any]) -> list[Any]:
    """Orders keyword inputs as the placeholders are, since an interpreter takes positions alone."""
    names = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"][skip:]
    last = max((i for i, name in enumerate(names) if name in kwargs), default=-1)
    defaults = {str(n.target): n.args[0] for n in graph.graph.nodes if n.op == "placeholder" and n.args}
    return [kwargs[name] if name in kwargs else defaults[name] for name in names[: last + 1]]
