"""What index maps make of a program, proven before any tensor is touched.

Literals and module options are rewritten first; then a labelled run of the program on the *predicted* shapes
must find the predicted widths, shapes and bindings, and every literal must still pick what it picked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from morphir.analysis.axis_map import AxisMap, MismatchError, axis_maps
from morphir.analysis.literals import rewrite_literals
from morphir.analysis.module_literals import module_attributes, rewrite_modules
from morphir.analysis.picks import misplaced, picks
from morphir.analysis.spaces import analyse
from morphir.errors import AnalysisError, MorphirError, RewriteError
from morphir.ir.channels import ChannelLayer, Value
from morphir.ir.codes import suggestion_for
from morphir.ir.garbage import collected_later
from morphir.ir.graph import Graph
from morphir.ir.index_map import Copies, IndexMap, copies_of
from morphir.ir.source import source_of
from morphir.ir.state import named_state, own_state

DOES_NOT_FOLLOW = "does-not-follow"


@dataclass(frozen=True)
class Rewritten:
    """A program whose literals are rewritten, and what is left to do to its tensors.

    Attributes:
        layer: The channel layer of the rewritten program.
        axes: ``state_dict`` key to the maps of its axes; the producer's rows come last, when theta's other
            axes are rewritten.
    """

    layer: ChannelLayer
    axes: Mapping[str, Sequence[AxisMap]]


def rewrite_program(graph: Graph, maps: Sequence[IndexMap]) -> Rewritten:
    """Rewrites the literals and module options of a graph in place, and proves that the program follows.

    Parameters are left as they are, and the graph's channel layer too: the graph is not consistent until the
    caller has replaced both, or has put back a snapshot.

    Args:
        graph: The graph.
        maps: At most one index map for each space; indices refer to the graph as it is.

    Raises:
        RewriteError: if the program does not follow; says at which node, where one is known.
    """
    try:
        with collected_later():
            return _rewrite(graph, maps)
    except AnalysisError as error:
        raise _refusal(graph, str(error.__cause__ or error.message), error.node) from error
    except MismatchError as error:
        raise _refusal(graph, str(error), _reader(graph, error.parameter)) from error
    except MorphirError:
        raise
    except Exception as error:
        raise _refusal(graph, f"{type(error).__name__}: {error}") from error


def _rewrite(graph: Graph, maps: Sequence[IndexMap]) -> Rewritten:
    before, program, copies = graph.channels, graph.graph, copies_of(maps)
    shapes = _new_shapes(graph, before, copies)
    old_picks = picks(program, before)
    rewrite_literals(program, before, copies)
    rewrite_modules(graph, program, before, copies)
    _set_module_attributes(graph, shapes)
    after = analyse(graph, shapes)
    _check_values(graph, before, after, copies)
    _check_widths(graph, before, after, maps)
    wrong = misplaced(before, after, old_picks, picks(program, after), maps)
    if wrong is not None:
        raise _refusal(graph, "a literal position picks other channels than before", wrong)
    return Rewritten(after, _by_parameter(axis_maps(before, after, maps)))


def _refusal(graph: Graph, reason: str, node: str | None = None, code: str = DOES_NOT_FOLLOW) -> RewriteError:
    return RewriteError(
        f"the program does not follow the rewrite: {reason}",
        node=node,
        source=None if node is None else source_of(graph.node(node)),
        hint=suggestion_for(code),
        code=code,
    )


def _reader(graph: Graph, parameter: str) -> str | None:
    """Returns the first node that uses a parameter."""
    places = {("call_module", parameter.rpartition(".")[0]), ("get_attr", parameter)}
    return next((node.name for node in graph.graph.nodes if (node.op, str(node.target)) in places), None)


def _by_parameter(maps: Iterable[AxisMap]) -> dict[str, list[AxisMap]]:
    found: dict[str, list[AxisMap]] = {}
    for axis_map in maps:
        found.setdefault(axis_map.parameter, []).append(axis_map)
    return {
        key: sorted(items, key=lambda axis_map: bool(axis_map.signs.any())) for key, items in found.items()
    }


def _new_shapes(graph: Graph, layer: ChannelLayer, copies: Copies) -> dict[str, tuple[int, ...]]:
    state = named_state(graph)
    extents: dict[str, list[int]] = {}
    for name, counts in copies.items():
        for binding in layer.spaces[name].bindings:
            shape = extents.setdefault(binding.parameter, list(state[binding.parameter].shape))
            shape[binding.axis] += binding.groups.added(counts)
    return {key: tuple(shape) for key, shape in extents.items()}


def _set_module_attributes(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> None:
    # By identity: a shared parameter shapes every module that holds it, whatever its first name is.
    state = named_state(graph)
    shape_of = {id(state[key]): shape for key, shape in shapes.items()}
    for module in graph.modules():
        held = own_state(module)
        if any(id(tensor) in shape_of for tensor in held.values()):
            own = {name: shape_of.get(id(tensor), tuple(tensor.shape)) for name, tensor in held.items()}
            for attribute, value in module_attributes(module, own).items():
                setattr(module, attribute, value)


def _check_widths(graph: Graph, before: ChannelLayer, after: ChannelLayer, maps: Sequence[IndexMap]) -> None:
    expected = {name: space.width for name, space in before.spaces.items()}
    expected.update({m.space: m.new_width for m in maps})
    found = {name: space.width for name, space in after.spaces.items()}
    if expected != found:
        wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        detail = ", ".join(
            f"{name}: {expected.get(name)} predicted, {found.get(name)} found" for name in wrong
        )
        node = next((before.spaces[name].producers[0].node for name in wrong if name in before.spaces), None)
        raise _refusal(graph, f"other channels then go together than now ({detail})", node, "regrouped")


def _check_values(graph: Graph, before: ChannelLayer, after: ChannelLayer, copies: Copies) -> None:
    for node in graph.graph.nodes:
        if node.op == "get_attr":  # parameters follow their axis maps; an index has an entry for each channel
            continue
        expected = [value.extents(copies) for value in before.values[node.name]]
        found = [value.shape for value in after.values[node.name]]
        if expected != found:
            raise _refusal(graph, f"it yields shape {found}, predicted was {expected}", node.name)
        for old, new in zip(before.values[node.name], after.values[node.name], strict=True):
            if not _lies_as_before(old, new, copies):
                raise _refusal(graph, "channels come to lie along another dimension than before", node.name)


def _lies_as_before(old: Value, new: Value, copies: Copies) -> bool:
    """Whether every space's channels lie along the same dimensions, as far as any of them is left."""
    places = {(layout.space, layout.dim) for layout in new.layouts}
    left = {
        (layout.space, layout.dim)
        for layout in old.layouts
        if layout.space not in copies or np.any(np.asarray(copies[layout.space])[layout.groups.held])
    }
    return places == left
