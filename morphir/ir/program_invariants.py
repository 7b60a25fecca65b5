"""What every program keeps: definitions before uses, targets that exist, modules whose attributes fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from torch import fx, nn

from morphir.ir.faults import Check, Fault
from morphir.ir.graph import Graph
from morphir.ir.state import own_state


def _defined_before_use(graph: Graph) -> Iterator[Fault]:
    defined: set[fx.Node] = set()
    for node in graph.graph.nodes:
        for source in node.all_input_nodes:
            if source not in defined:
                yield Fault(f"%{node.name} reads %{source.name}, which is not defined before it", node.name)
        defined.add(node)


def _names_are_unique(graph: Graph) -> Iterator[Fault]:
    seen: set[str] = set()
    for node in graph.graph.nodes:
        if node.name in seen:
            yield Fault(f"two nodes are named %{node.name}", node.name)
        seen.add(node.name)


def _ends_in_one_output(graph: Graph) -> Iterator[Fault]:
    outputs = [index for index, node in enumerate(graph.graph.nodes) if node.op == "output"]
    if outputs != [len(graph.graph.nodes) - 1]:
        yield Fault(f"the program has {len(outputs)} outputs, not one at its end")


def _targets_exist(graph: Graph) -> Iterator[Fault]:
    for node in graph.graph.nodes:
        if node.op in {"call_module", "get_attr"} and not _has_target(graph, node):
            kind = "module" if node.op == "call_module" else "attribute"
            yield Fault(
                f"%{node.name} refers to {kind} {node.target!r}, which the graph does not own", node.name
            )


def _has_target(graph: Graph, node: fx.Node) -> bool:
    found: object = graph
    for name in str(node.target).split("."):
        found = getattr(found, name, None)
    return isinstance(found, nn.Module) if node.op == "call_module" else found is not None


def _attributes_match_shapes(graph: Graph) -> Iterator[Fault]:
    for node, path, module in _called_modules(graph):
        shapes = {name: tuple(tensor.shape) for name, tensor in own_state(module).items()}
        for name, expected in _expected_shapes(module).items():
            if name in shapes and shapes[name] != expected:
                message = (
                    f"{path}.{name} has shape {shapes[name]}, but the attributes of {path} say {expected}"
                )
                yield Fault(message, node.name)


def _called_modules(graph: Graph) -> Iterator[tuple[fx.Node, str, nn.Module]]:
    for node in graph.graph.nodes:
        if node.op == "call_module":
            path = cast("str", node.target)
            yield node, path, graph.get_submodule(path)


Shapes = dict[str, tuple[int, ...]]


def _convolution_shapes(module: Any) -> Shapes:
    first, second = module.out_channels, module.in_channels
    if module.transposed:
        first, second = second, first
    return {
        "weight": (first, second // module.groups, *module.kernel_size),
        "bias": (module.out_channels,),
    }


def _vector_shapes(count: str) -> Callable[[Any], Shapes]:
    names = ("weight", "bias", "running_mean", "running_var")
    return lambda module: {name: (getattr(module, count),) for name in names}


def _linear_shapes(module: Any) -> Shapes:
    return {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}


def _embedding_shapes(module: Any) -> Shapes:
    return {"weight": (module.num_embeddings, module.embedding_dim)}


def _layer_norm_shapes(module: Any) -> Shapes:
    return {name: tuple(module.normalized_shape) for name in ("weight", "bias")}


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
SHAPES: Mapping[tuple[type[nn.Module], ...], Callable[[Any], Shapes]] = {
    _CONVOLUTIONS: _convolution_shapes,
    (nn.Linear,): _linear_shapes,
    (nn.Embedding,): _embedding_shapes,
    (*_BATCH_NORMS, *_INSTANCE_NORMS): _vector_shapes("num_features"),
    (nn.GroupNorm,): _vector_shapes("num_channels"),
    (nn.LayerNorm, nn.RMSNorm): _layer_norm_shapes,
    (nn.PReLU,): _vector_shapes("num_parameters"),
}


def _expected_shapes(module: nn.Module) -> Shapes:
    found = next((shapes for kinds, shapes in SHAPES.items() if issubclass(type(module), kinds)), None)
    return found(module) if found is not None else {}


def _parameters_have_their_own_memory(graph: Graph) -> Iterator[Fault]:
    owners: dict[int, str] = {}
    for name, parameter in graph.named_parameters():
        if parameter.numel() == 0 or parameter.device.type == "meta":
            continue
        owner = owners.setdefault(parameter.untyped_storage().data_ptr(), name)
        if owner != name:
            yield Fault(f"the parameters {owner} and {name} are different, but share their memory")


PROGRAM_INVARIANTS: tuple[Check, ...] = (
    _names_are_unique,
    _defined_before_use,
    _ends_in_one_output,
    _targets_exist,
    _attributes_match_shapes,
    _parameters_have_their_own_memory,
)
