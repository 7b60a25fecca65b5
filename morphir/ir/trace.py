"""From a model to a :class:`~morphir.ir.graph.Graph`: ``torch.fx`` traces, every node keeps its user's line.

The program is traced once in each mode. Where the two traces differ only in boolean literals
(``training=False`` against ``training=True`` of a functional dropout or batch norm), the literal becomes a
read of the graph's own ``training`` flag, so that ``graph.train()`` and ``graph.eval()`` mean what they mean
on the model.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from morphir.errors import MorphirError, MorphirWarning, TraceError
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
    root = _copy(model)
    program, for_evaluation = _trace_both_modes(root)
    _check_arguments(program, args, kwargs)
    module_types = {path: type(module).__name__ for path, module in submodules(model)}
    graph = Graph(root, program, inputs=ExampleInputs.of(args, kwargs), module_types=module_types)
    outputs = _check_runs(graph, args, kwargs)
    if for_evaluation:
        _check_outputs(root, outputs, args, kwargs)
    return graph


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} cannot be copied: {error}",
            hint="hold no tensors computed by autograd, as the old torch.nn.utils.weight_norm does; "
            "torch.nn.utils.parametrizations has its successors",
        ) from error


def _trace_both_modes(root: nn.Module) -> tuple[fx.Graph, bool]:
    """Returns the program, and whether it is what the model runs in evaluation mode.

    A model whose two modes run different operators has its evaluation program traced, with a warning: a
    graph has one program.
    """
    training = root.training
    modes = training_modes(root)
    current = _trace_once(root)
    root.train(not training)
    other = _try_trace(root)
    restore_modes(root, modes)
    if other is None:
        return current, not training
    if _operations(current) == _operations(other):
        _read_training_flag(current, other, training)
        return current, True
    warnings.warn(
        f"{type(root).__name__} runs other operators in training mode than in evaluation mode, from "
        f"{_first_difference(current, other)} on; the graph holds the program of evaluation mode",
        MorphirWarning,
        stacklevel=4,
    )
    return (other if training else current), True


def _first_difference(current: fx.Graph, other: fx.Graph) -> str:
    """Names the user's line where two programs part."""
    pairs = zip(current.nodes, other.nodes, strict=False)
    node = next((a for a, b in pairs if _operation(a) != _operation(b)), None)
    source = None if node is None else node.meta.get("source")
    return "the end" if node is None else f"%{node.name}" + (f" ({source})" if source else "")


def _operations(program: fx.Graph) -> list[tuple[str, object]]:
    """Returns what each node does; the constants that tracing found are numbered anew by each trace."""
    return [_operation(node) for node in program.nodes]


def _operation(node: fx.Node) -> tuple[str, object]:
    constant = str(node.target).startswith("_tensor_constant")
    return node.op, "_tensor_constant" if constant else node.target


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


def _check_runs(graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Runs the program once in evaluation mode, so that a shape mismatch is named here and not later."""
    runner = _NamingInterpreter(graph)
    try:
        with torch.no_grad(), evaluation_mode(graph), _fixed_randomness():
            args, kwargs = _cloned(args), _cloned(kwargs)
            return runner.run(*args, *keywords_in_order(graph, len(args), kwargs))
    except Exception as error:
        node = runner.current
        raise TraceError(
            f"the model fails on the example inputs: {error}",
            node=None if node is None else node.name,
            source=None if node is None else node.meta.get("source"),
            hint="check the example inputs' shapes, dtypes and device",
        ) from error


def _check_outputs(root: nn.Module, outputs: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Compares the program with the model: fx records ``v += 1`` on a view as an addition beside it."""
    with torch.no_grad(), evaluation_mode(root), _fixed_randomness():
        wanted = root(*_cloned(args), **_cloned(dict(kwargs)))
    mine, theirs = pytree.tree_leaves(outputs), pytree.tree_leaves(wanted)
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


def _cloned(values: Any) -> Any:
    """Copies the tensors: a model may write into its inputs."""

    def clone(leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf

    return pytree.tree_map(clone, values)


@contextmanager
def _fixed_randomness() -> Generator[None]:
    """The same random draws inside each block, and none outside disturbed."""
    # torch.manual_seed would also queue a seed for a CUDA that is not initialised yet.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):  # pyright: ignore[reportUnknownMemberType]
        torch.default_generator.manual_seed(0)
        if devices:
            torch.cuda.manual_seed_all(0)
        yield


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
