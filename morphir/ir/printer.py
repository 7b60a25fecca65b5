"""The textual IR: one line for each node, and one for each channel space.

ASCII, deterministic, typed; the same form in the terminal, in tests, in diffs and in reports::

    graph @net(%x: f32[N,3,32,32]) {
      %conv1: f32[N,{conv1:16},32,32] = conv2d(%x, @conv1.weight) {kernel_size=3, padding=1}      # net.py:12
      ...
    }
    spaces {
      conv1: 16 groups, 16 exact; producers %conv1; consumers %conv2
    }

A dimension of channels is ``{space:width}``; ``{a:16+b:8}`` where several spaces share it, ``{a:16*49}``
where every group of the space has 49 positions in it. ``N`` is the batch.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx, nn

from morphir.ir.channels import ChannelSpace, Value, ValueLayout, Verdict
from morphir.ir.graph import Graph, require_graph
from morphir.ir.guards import guard
from morphir.ir.source import source_of

_DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "b1",
}
_OPERATORS: Mapping[type[nn.Module], str] = {
    nn.BatchNorm1d: "batch_norm",
    nn.BatchNorm2d: "batch_norm",
    nn.BatchNorm3d: "batch_norm",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.PReLU: "prelu",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.ELU: "elu",
    nn.SELU: "selu",
    nn.CELU: "celu",
    nn.GLU: "glu",
}
# What the types of the values say already.
_SHAPE_ATTRIBUTES = {
    "in_channels",
    "out_channels",
    "in_features",
    "out_features",
    "num_features",
    "num_channels",
    "num_parameters",
    "normalized_shape",
    "bias",
    "device",
    "dtype",
    "inplace",
}


def print_graph(graph: Graph) -> str:
    """Returns the textual IR of an analysed graph; raises :class:`MorphirError` for anything else."""
    require_graph(graph)
    nodes = list(graph.graph.nodes)
    inputs = ", ".join(_typed(graph, node) for node in nodes if node.op == "placeholder")
    name = _snake_case(graph.module_types.get("", "") or "net")
    body = [f"  {_print_node(graph, node)}" for node in nodes if node.op != "placeholder"]
    spaces = [f"  {_print_space(space)}" for space in graph.spaces.values()]
    return _ascii("\n".join([f"graph @{name}({inputs}) {{", *body, "}", "spaces {", *spaces, "}", ""]))


def print_operations(graph: Graph) -> str:
    """Returns what the nodes compute, without types, spaces and source lines.

    Two graphs that print alike compute alike with the same weights, wherever their source lies and whatever
    the sizes of their example inputs.
    """
    return _ascii("\n".join(_statement(graph, node, f"%{node.name}") for node in graph.graph.nodes))


def print_node(graph: Graph, name: str) -> str:
    """Returns the line of one node.

    Args:
        graph: An analysed graph.
        name: The node's name.

    Raises:
        MorphirError: if there is no such node.
    """
    return _ascii(_print_node(graph, graph.node(name)))


def _print_node(graph: Graph, node: fx.Node) -> str:
    line = _statement(graph, node, _typed(graph, node))
    source = source_of(node)
    return f"{line}      # {source}" if source is not None and node.op != "output" else line


def _statement(graph: Graph, node: fx.Node, result: str) -> str:
    if node.target is guard:
        return _print_guard(node)
    if node.op == "output":
        return f"return {_value(node.args[0])}"
    return result if node.op == "placeholder" else f"{result} = {_operation(graph, node)}"


def _print_guard(node: fx.Node) -> str:
    value, question, expected = node.args[:3]
    if question == "none":
        return f"guard {_value(value)} is {'' if expected else 'not '}None"
    asked = {"truth": "bool({})", "length": "len({})", "keys": "list({})"}.get(cast("str", question), "{}")
    return f"guard {asked.format(_value(value))} == {expected!r}"


def _typed(graph: Graph, node: fx.Node) -> str:
    return f"%{node.name}: {_type_of(graph, node)}"


def _type_of(graph: Graph, node: fx.Node) -> str:
    values = graph.channels.values.get(node.name, ())
    if not values and node.op == "placeholder":
        return "value"
    if not values:
        return "bool" if node.op == "get_attr" else "int"
    types = [print_value(value, graph.inputs.batch_size) for value in values]
    return types[0] if len(types) == 1 else f"({', '.join(types)})"


def print_value(value: Value, batch: int | None) -> str:
    """Returns the type of a tensor, as ``f32[N,{conv1:16},32,32]``.

    Args:
        value: The tensor.
        batch: What is printed as ``N`` where it is the extent of dimension 0; None for nothing.
    """
    dims = ",".join(_dim(value, dim, batch) for dim in range(len(value.shape)))
    return f"{_DTYPES.get(value.dtype, str(value.dtype).removeprefix('torch.'))}[{dims}]"


def _dim(value: Value, dim: int, batch: int | None) -> str:
    extent = value.shape[dim]
    layouts = [layout for layout in value.layouts if layout.dim == dim]
    if not layouts:
        return "N" if dim == 0 and extent == batch else str(extent)
    layouts.sort(key=lambda layout: int(layout.groups.at[0]))
    parts = [f"{layout.space}:{_extent(layout)}" for layout in layouts]
    rest = extent - sum(len(layout.groups.at) for layout in layouts)
    return f"{{{'+'.join([*parts, *([str(rest)] if rest else [])])}}}"


def _extent(layout: ValueLayout) -> str:
    """Number of groups, times their positions where each has several; or the number of positions."""
    counts = Counter[int](layout.groups.held.tolist())
    each = set(counts.values())
    if len(each) > 1:
        return str(counts.total())
    (positions,) = each
    return f"{len(counts)}*{positions}" if positions > 1 else str(len(counts))


def _operation(graph: Graph, node: fx.Node) -> str:
    if node.op == "get_attr":
        return f"@{node.target}"
    if node.op == "call_module":
        return _module_call(graph, node)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return _call(cast("str", name), map(_value, node.args), {k: _value(v) for k, v in node.kwargs.items()})


def _module_call(graph: Graph, node: fx.Node) -> str:
    path = cast("str", node.target)
    module = graph.get_submodule(path)
    owned = [f"@{path}.{name}" for name, _ in module.named_parameters()]
    inputs = [*map(_value, node.args), *(f"{key}={_value(value)}" for key, value in node.kwargs.items())]
    return _call(_operator(module), [*inputs, *owned], _attributes(module))


def _operator(module: nn.Module) -> str:
    return _OPERATORS.get(type(module)) or _snake_case(type(module).__name__)


def _attributes(module: nn.Module) -> dict[str, str]:
    """Returns the constructor's arguments that are not at their defaults and that no shape tells."""
    found: dict[str, str] = {}
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        value = getattr(module, name, None)
        if name in _SHAPE_ATTRIBUTES or not _is_plain(value):
            continue
        if _collapsed(value) != _collapsed(parameter.default):
            found[name] = _literal(_collapsed(value))
    return found


def _is_plain(value: object) -> bool:
    """Whether a value is a number, a word or a tuple of these; a submodule or a tensor is none."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, cast("Sequence[object]", value)))
    return isinstance(value, (int, float, str))


def _collapsed(value: object) -> object:
    """Returns ``3`` for ``(3, 3)``: how users write it."""
    if isinstance(value, (tuple, list)):
        items = cast("Sequence[object]", value)
        return items[0] if items and all(item == items[0] for item in items) else tuple(items)
    return value


def _call(name: str, arguments: Iterable[str], attributes: Mapping[str, str]) -> str:
    listed = ", ".join(f"{key}={value}" for key, value in attributes.items())
    return f"{name}({', '.join(arguments)})" + (f" {{{listed}}}" if listed else "")


def _value(argument: Any) -> str:
    """Prints an argument: nodes as ``%name``, the rest as literals."""
    if isinstance(argument, fx.Node):
        return f"%{argument.name}"
    if isinstance(argument, (tuple, list)):
        items = [_value(item) for item in cast("Sequence[object]", argument)]
        return f"[{', '.join(items)}]" if isinstance(argument, list) else f"({', '.join(items)})"
    if isinstance(argument, Mapping):
        pairs = cast("Mapping[object, object]", argument).items()
        return f"{{{', '.join(f'{key}: {_value(value)}' for key, value in pairs)}}}"
    if type(argument) is slice:
        bounds = [argument.start, argument.stop, *([] if argument.step is None else [argument.step])]
        return ":".join("" if bound is None else _value(bound) for bound in bounds)
    return _literal(argument)


def _literal(value: object) -> str:
    if value is ...:
        return "..."
    return value if isinstance(value, str) else repr(value)


def _print_space(space: ChannelSpace) -> str:
    verdicts = Counter(map(_print_verdict, space.verdicts))
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    producers = ", ".join(f"%{producer.node}" for producer in space.producers)
    consumers = ", ".join(f"%{consumer.node}" for consumer in space.consumers) or "none"
    groups = "group" if space.width == 1 else "groups"
    return f"{space.name}: {space.width} {groups}, {counts}; producers {producers}; consumers {consumers}"


def _print_verdict(verdict: Verdict) -> str:
    where = f" at %{verdict.node}" if verdict.node else ""
    return f"{verdict.kind} ({verdict.code}{where})" if verdict.code else verdict.kind


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")
