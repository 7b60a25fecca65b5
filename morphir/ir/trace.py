"""From a model to a :class:`~morphir.ir.graph.Graph`: ``torch.fx`` traces, every node keeps its user's line.

The program is traced once in each mode. Where the two traces differ only in boolean literals
(``training=False`` against ``training=True`` of a functional dropout or batch norm), the literal becomes a
read of the graph's own ``training`` flag, so that ``graph.train()`` and ``graph.eval()`` mean what they mean
on the model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import fx, nn

from morphir.errors import MorphirError, TraceError
from morphir.ir.graph import ExampleInputs, Graph
from morphir.ir.source import calling_user_line, failing_user_line
from morphir.ir.state import evaluation_mode, restore_modes, submodules, training_modes

ExampleArgument = torch.Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


class _Tracer(fx.Tracer):
    """An fx tracer that notes the user's line on every node, and keeps reads of buffers as reads."""

    proxy_buffer_attributes = True

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        """Makes a node as fx does, and notes where it comes from."""
        proxy = super().create_proxy(*args, **kwargs)
        proxy.node.meta.setdefault("source", calling_user_line())
        return proxy


def split_inputs(example_inputs: ExampleArgument) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns positional and keyword arguments: a tensor is one, a tuple several, a dict keywords."""
    if isinstance(example_inputs, Mapping):
        return (), {str(key): value for key, value in example_inputs.items()}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def trace_program(model: nn.Module, example_inputs: ExampleArgument) -> Graph:
    """Traces ``model`` into a graph without a channel layer; :func:`morphir.trace` adds it.

    Args:
        model: Any module that ``torch.fx`` can trace. It is copied, never changed.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments, with a batch dimension.

    Raises:
        TraceError: if fx cannot trace the model, or the model fails on the example inputs; names the user's
            line.
    """
    if not isinstance(cast("object", model), nn.Module):
        raise TraceError(f"expected an nn.Module, got {type(model).__name__}")
    args, kwargs = split_inputs(example_inputs)
    root = copy.deepcopy(model)
    program = _trace_both_modes(root)
    _check_arguments(program, args, kwargs)
    module_types = {path: type(module).__name__ for path, module in submodules(model)}
    graph = Graph(root, program, inputs=ExampleInputs.of(args, kwargs), module_types=module_types)
    _check_runs(graph, args, kwargs)
    return graph


def _trace_both_modes(root: nn.Module) -> fx.Graph:
    training = root.training
    modes = training_modes(root)
    current = _trace_once(root)
    root.train(not training)
    other = _try_trace(root)
    restore_modes(root, modes)
    if other is not None:
        _read_training_flag(current, other, training)
    return current


def _try_trace(root: nn.Module) -> fx.Graph | None:
    """Traces the mode that the user did not ask for; a model may well support one mode alone."""
    try:
        return _trace_once(root)
    except TraceError:
        return None


def _trace_once(root: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(root)
    except MorphirError:
        raise
    except Exception as error:
        raise TraceError(
            f"torch.fx cannot trace {type(root).__name__}: {error}",
            source=failing_user_line(error.__traceback__),
            hint="control flow on tensor values, and Python numbers made from tensors, cannot be traced; "
            "move them into a module of their own or out of forward()",
        ) from error


def _read_training_flag(current: fx.Graph, other: fx.Graph, training: bool) -> None:
    """Replaces boolean literals that follow the mode by a read of ``self.training``."""
    here, there = list(current.nodes), list(other.nodes)
    if [(n.op, n.target) for n in here] != [(n.op, n.target) for n in there]:
        return
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


def _check_arguments(program: fx.Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    placeholders = [node for node in program.nodes if node.op == "placeholder"]
    names = [str(node.target).lstrip("*") for node in placeholders]
    unknown = [key for key in kwargs if key not in names]
    required = sum(1 for node in placeholders if not node.args)
    if unknown or len(args) > len(names) or len(args) + len(kwargs) < required:
        given = ", ".join((*("a tensor" for _ in args), *kwargs))
        raise TraceError(
            f"the model takes ({', '.join(names)}), the example inputs are ({given})",
            hint="pass a tensor, a tuple of positional arguments, or a dict of keyword arguments",
        )


def _check_runs(graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Runs the program once in evaluation mode, so that a shape mismatch is named here and not later."""
    runner = _NamingInterpreter(graph)
    try:
        with torch.no_grad(), evaluation_mode(graph):
            runner.run(*args, *keywords_in_order(graph, len(args), kwargs))
    except Exception as error:
        node = runner.current
        raise TraceError(
            f"the model fails on the example inputs: {error}",
            node=None if node is None else node.name,
            source=None if node is None else node.meta.get("source"),
            hint="check the example inputs' shapes, dtypes and device",
        ) from error


class _NamingInterpreter(fx.Interpreter):
    """Remembers which node runs, for the error message."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.current: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node."""
        self.current = n
        return super().run_node(n)


def keywords_in_order(graph: Graph, skip: int, kwargs: Mapping[str, Any]) -> list[Any]:
    """Orders keyword inputs as the placeholders are, since an interpreter takes positions alone."""
    names = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"][skip:]
    last = max((i for i, name in enumerate(names) if name in kwargs), default=-1)
    defaults = {str(n.target): n.args[0] for n in graph.graph.nodes if n.op == "placeholder" and n.args}
    return [kwargs[name] if name in kwargs else defaults[name] for name in names[: last + 1]]
