"""What every channel layer keeps: it fits its program's values, parameters and edges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from morphir.ir.channels import ChannelSpace
from morphir.ir.faults import Check, Fault
from morphir.ir.graph import Graph
from morphir.ir.groups import Groups
from morphir.ir.state import named_state


def _values_are_complete(graph: Graph) -> Iterator[Fault]:
    names = {node.name for node in graph.graph.nodes}
    for name in names - graph.channels.values.keys():
        yield Fault(f"the channel layer does not know %{name}", name)
    for name in graph.channels.values.keys() - names:
        yield Fault(f"the channel layer knows a node %{name}, which the program has not")


def _layouts_fit_values(graph: Graph) -> Iterator[Fault]:
    for name, values in graph.channels.values.items():
        for value in values:
            for layout in value.layouts:
                space = graph.spaces.get(layout.space)
                if space is None:
                    yield Fault(f"%{name} holds channels of {layout.space!r}, which is no space", name)
                elif layout.dim >= len(value.shape) or len(layout.groups) != value.shape[layout.dim]:
                    yield Fault(
                        f"%{name} has shape {value.shape}, but {len(layout.groups)} positions of "
                        f"{layout.space} along dimension {layout.dim}",
                        name,
                    )
                elif not layout.groups.fit(space.width):
                    yield Fault(f"%{name} holds a group that {layout.space} has not", name)


def _spaces_have_their_names(graph: Graph) -> Iterator[Fault]:
    for key, space in graph.spaces.items():
        if key != space.name:
            yield Fault(f"the space {space.name!r} is registered as {key!r}")


def _bindings_fit_parameters(graph: Graph) -> Iterator[Fault]:
    state = named_state(graph)
    for space in graph.spaces.values():
        for binding in space.bindings:
            tensor, axis = state.get(binding.parameter), binding.axis
            node = space.producers[0].node
            if tensor is None:
                yield Fault(f"{space.name} binds {binding.parameter}, which the graph does not own", node)
            elif axis >= tensor.dim() or len(binding.groups) != tensor.shape[axis]:
                yield Fault(
                    f"{space.name} binds {len(binding.groups)} entries of axis {axis} of "
                    f"{binding.parameter}, whose shape is {tuple(tensor.shape)}",
                    node,
                )
            elif not binding.groups.fit(space.width):
                yield Fault(
                    f"{space.name} has {space.width} groups, but binds {binding.parameter} to another", node
                )


def _axes_belong_to_one_group(graph: Graph) -> Iterator[Fault]:
    bound: dict[tuple[str, int], list[tuple[ChannelSpace, Groups]]] = {}
    for space in graph.spaces.values():
        for binding in space.bindings:
            bound.setdefault((binding.parameter, binding.axis), []).append((space, binding.groups))
    for (parameter, axis), bindings in bound.items():
        twice = np.flatnonzero(np.bincount(np.concatenate([groups.at for _, groups in bindings])) > 1)
        if twice.size:
            entry = int(twice[0])
            first, second, *_ = [(space, groups[entry]) for space, groups in bindings if groups[entry] >= 0]
            where = f"entry {entry} of axis {axis} of {parameter}"
            owners = " and to ".join(f"{space.name}[{group}]" for space, group in (first, second))
            yield Fault(f"{where} is bound twice, to {owners}", second[0].producers[0].node)
            return


def _producers_make_every_group(graph: Graph) -> Iterator[Fault]:
    for space in graph.spaces.values():
        for producer in space.producers:
            binding = space.binding(producer.parameter, producer.out_axis)
            made = binding.groups.held if binding is not None and binding.role == "producer" else ()
            missing = np.setdiff1d(np.arange(space.width), made)
            if missing.size:
                message = (
                    f"{producer.parameter} is a producer of {space.name}, but makes no group {missing[0]}"
                )
                yield Fault(message, producer.node)


def _edges_exist(graph: Graph) -> Iterator[Fault]:
    nodes = {node.name: node for node in graph.graph.nodes}
    for space in graph.spaces.values():
        for producer in space.producers:
            if producer.node not in nodes:
                yield Fault(f"{space.name} is made by %{producer.node}, which the program has not")
        for consumer in space.consumers:
            reader, tensor = nodes.get(consumer.node), nodes.get(consumer.tensor)
            if reader is None or tensor is None or tensor not in reader.all_input_nodes:
                yield Fault(
                    f"{space.name} is read by %{consumer.node} from %{consumer.tensor}: no such edge",
                    None if reader is None else consumer.node,
                )
                continue
            shapes = [value.shape for value in graph.channels.values[consumer.tensor]]
            if not any(_fits(shape, consumer.dim, len(consumer.groups)) for shape in shapes):
                yield Fault(
                    f"%{consumer.node} reads {len(consumer.groups)} positions of {space.name} from "
                    f"%{consumer.tensor}, which has not as many along dimension {consumer.dim}",
                    consumer.node,
                )


def _fits(shape: tuple[int, ...], dim: int, extent: int) -> bool:
    return dim < len(shape) and shape[dim] == extent


CHANNEL_INVARIANTS: tuple[Check, ...] = (
    _values_are_complete,
    _spaces_have_their_names,
    _layouts_fit_values,
    _bindings_fit_parameters,
    _axes_belong_to_one_group,
    _producers_make_every_group,
    _edges_exist,
)
