"""What a removal means to operators that mix channels, such as norms, softmax and reductions.

Zeros would still count in a mean or in a softmax's sum. So such a node runs on the channels that are left,
with its parameters' entries for them; zeros stand for the removed channels in what it yields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree as pytree

from morphir.errors import MorphirError
from morphir.ir.channels import Value
from morphir.ir.graph import Graph
from morphir.ir.source import source_of
from morphir.ir.state import named_state, own_state

Removed = Mapping[str, frozenset[int]]
"""Space name to the groups that are treated as if they were not there."""

_SHAPED: frozenset[Any] = frozenset({F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm})
"""Functions whose second argument is the shape that they normalise."""

_Norm = Callable[[Any, torch.Tensor, Mapping[str, torch.Tensor | None]], torch.Tensor]


def _layer_norm(
    module: nn.LayerNorm, x: torch.Tensor, own: Mapping[str, torch.Tensor | None]
) -> torch.Tensor:
    shape = list(x.shape[-len(module.normalized_shape) :])
    return F.layer_norm(x, shape, own.get("weight"), own.get("bias"), module.eps)


def _rms_norm(module: nn.RMSNorm, x: torch.Tensor, own: Mapping[str, torch.Tensor | None]) -> torch.Tensor:
    return F.rms_norm(x, list(x.shape[-len(module.normalized_shape) :]), own.get("weight"), module.eps)


def _group_norm(
    module: nn.GroupNorm, x: torch.Tensor, own: Mapping[str, torch.Tensor | None]
) -> torch.Tensor:
    return F.group_norm(x, module.num_groups, own.get("weight"), own.get("bias"), module.eps)


_NORMS: Mapping[type[nn.Module], _Norm] = {
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
}


def _values(arguments: Any, env: Mapping[fx.Node, Any]) -> Any:
    def value(leaf: Any) -> Any:
        return env[leaf] if isinstance(leaf, fx.Node) else leaf

    return pytree.tree_map(value, arguments)


class IncomparableError(MorphirError):
    """No original with some channels left out can be built to compare with."""


class Remainder:
    """Runs nodes on the channels that are left.

    Args:
        graph: The original.
        removed: Space name to group indices.
    """

    def __init__(self, graph: Graph, removed: Removed) -> None:
        self.graph = graph
        self.removed = removed
        self.keys = {id(tensor): key for key, tensor in named_state(graph).items()}

    def run(self, node: fx.Node, env: dict[fx.Node, Any], call: Callable[[fx.Node], Any]) -> Any:
        """Returns what a node yields from what is left, with zeros in the removed channels' places.

        Args:
            node: A node that mixes channels.
            env: Every node's value; the same again afterwards.
            call: Runs a node on the values in ``env``.

        Raises:
            IncomparableError: if the operator cannot run on fewer channels as it is written.
        """
        originals = {source: env[source] for source in node.all_input_nodes}
        try:
            env.update({source: self._left(source, value) for source, value in originals.items()})
            return self._put_back(node, self._call(node, env, call))
        except IncomparableError:
            raise
        except Exception as error:
            raise self._incomparable(node, str(error)) from error
        finally:
            env.update(originals)

    def _call(self, node: fx.Node, env: Mapping[fx.Node, Any], call: Callable[[fx.Node], Any]) -> Any:
        if node.op == "call_module":
            module = self.graph.get_submodule(str(node.target))
            if own_state(module):
                norm = _NORMS[type(module)]
                source = node.args[0] if node.args else node.kwargs["input"]
                return norm(module, env[cast("fx.Node", source)], self._parameters(module))
        if node.op == "call_function" and node.target in _SHAPED:
            args, kwargs = _values((node.args, dict(node.kwargs)), env)
            source = args[0] if args else kwargs.pop("input")
            shape = args[1] if len(args) > 1 else kwargs.pop("normalized_shape")
            left = list(source.shape[-len(shape) :])
            return cast("Any", node.target)(source, left, *args[2:], **kwargs)
        return call(node)

    def _parameters(self, module: nn.Module) -> dict[str, torch.Tensor | None]:
        return {
            name: self._entries(self.keys[id(tensor)], tensor) for name, tensor in own_state(module).items()
        }

    def _entries(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        for name, groups in self.removed.items():
            for binding in self.graph.space(name).bindings:
                if binding.parameter == key:
                    left = [at for at, group in enumerate(binding.groups) if group not in groups]
                    tensor = tensor.index_select(binding.axis, torch.tensor(left, device=tensor.device))
        return tensor

    def _left(self, node: fx.Node, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            for dim, left in self._kept(self._layout(node)).items():
                value = value.index_select(dim, left.to(value.device))
        elif any(self._kept(item) for item in self.graph.channels.values[node.name]):
            raise self._incomparable(node, "several values")
        return value

    def _put_back(self, node: fx.Node, result: Any) -> Any:
        leaves, structure = pytree.tree_flatten(result)
        tensors = iter(self.graph.channels.values[node.name])
        found = [self._whole(node, leaf, next(tensors)) if torch.is_tensor(leaf) else leaf for leaf in leaves]
        return pytree.tree_unflatten(found, structure)

    def _whole(self, node: fx.Node, found: torch.Tensor, wanted: Value) -> torch.Tensor:
        kept = self._kept(wanted)
        left = tuple(len(kept[dim]) if dim in kept else extent for dim, extent in enumerate(wanted.shape))
        if tuple(found.shape) != left:
            raise self._incomparable(node, f"it yields {tuple(found.shape)} and not {left}")
        for dim, positions in kept.items():
            shape = (*found.shape[:dim], wanted.shape[dim], *found.shape[dim + 1 :])
            found = found.new_zeros(shape).index_copy(dim, positions.to(found.device), found)
        return found

    def _layout(self, node: fx.Node) -> Value:
        return self.graph.channels.values[node.name][0]

    def _kept(self, value: Value) -> dict[int, torch.Tensor]:
        """Returns the positions that are left, for every dimension that loses some."""
        gone: dict[int, set[int]] = {}
        for layout in value.layouts:
            groups = self.removed.get(layout.space, frozenset())
            at = {position for position, group in enumerate(layout.groups) if group in groups}
            gone.setdefault(layout.dim, set()).update(at)
        return {
            dim: torch.tensor([at for at in range(value.shape[dim]) if at not in positions])
            for dim, positions in gone.items()
            if positions
        }

    def _incomparable(self, node: fx.Node, why: str) -> IncomparableError:
        return IncomparableError(
            f"the operator does not run on fewer channels as it is written: {why}",
            node=node.name,
            source=source_of(node),
        )
