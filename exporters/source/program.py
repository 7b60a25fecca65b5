"""From a graph to the classes of its source file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized

from exporters.source.bodies import Body, write_body, write_root
from exporters.source.calls import Scope, call_tree, settle
from exporters.source.classes import Blueprint, ClassDefinition, share
from exporters.source.helpers import helper_sources
from exporters.source.layers import construction, is_layer
from exporters.source.modules import ModuleTree, is_attribute
from exporters.source.records import record_sources
from exporters.source.template import Argument, Call, Hole, Piece, Template, render
from morphir.errors import ExportError, TargetLimitError
from morphir.ir.graph import Graph
from morphir.ir.source import source_of

_SMALL = 1024
_INPUT_NAMES = ("x", "y", "z", "u", "v", "w")


@dataclass(frozen=True)
class Program:
    """What a source file holds: helper functions, and classes with the model's last."""

    helpers: tuple[str, ...]
    classes: tuple[ClassDefinition, ...]


def program(graph: Graph, class_name: str) -> Program:
    """Returns the classes that compute what the graph computes.

    Args:
        graph: The graph; nothing in it is changed.
        class_name: What to call the model's class.

    Raises:
        ExportError: if the graph uses something that is not torch's.
    """
    root = call_tree(graph.graph)
    tree = ModuleTree(graph, frozenset(scope.path for scope in root.scopes()))
    _check_modules(tree, graph.graph)
    settle(root, lambda scope: _is_writable(tree, scope))
    writer = _Writer(tree, root, class_name)
    taken: Counter[str] = Counter(dict.fromkeys(("torch", "nn", "F", "math", "operator", "load"), 1))
    helpers = {**record_sources(graph.graph.nodes), **helper_sources(graph.graph)}
    taken.update(helpers.keys())
    definitions: list[ClassDefinition] = []
    for level in tree.classes():
        made, calls = share({path: writer.blueprint(path) for path in level}, taken)
        definitions += made
        writer.calls.update(calls)
    return Program(tuple(helpers.values()), tuple(definitions))


def _check_modules(tree: ModuleTree, graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.name in tree.graph.opaque_calls:
            call = tree.graph.opaque_calls[node.name]
            raise TargetLimitError(
                f"{tree.type_name(call.path)} at {call.path!r} could not be traced ({call.failure.reason}), "
                "and exported source cannot hold it",
                node=node.name,
                source=call.failure.source,
                hint="write it so that torch.fx can trace it; ONNX export may still pass",
            )
        if node.op != "call_module" or is_layer(module := tree.modules[str(node.target)]):
            continue
        if is_parametrized(module):
            raise TargetLimitError(
                f"{type(module).__name__} at {node.target!r} computes its weight from other parameters, and "
                "exported source cannot hold it",
                node=node.name,
                source=source_of(node),
                hint="fold it into the weight first: torch.nn.utils.parametrize.remove_parametrizations",
            )
        raise ExportError(
            f"{type(module).__name__} at {node.target!r} is not a layer of torch.nn",
            node=node.name,
            source=source_of(node),
            hint="morphir.trace looks into modules outside torch.nn; trace the model with it",
        )


def _is_writable(tree: ModuleTree, scope: Scope) -> bool:
    """Whether a call of a plain container is what the container itself does."""
    if tree.kind(scope.path) != "class":
        return tree.type_name(scope.path) == "Sequential" and is_chain(tree, scope)
    return True


def is_chain(tree: ModuleTree, scope: Scope) -> bool:
    """Whether the call passes one value through every child in order, as ``nn.Sequential`` does."""
    paths = [item.path if isinstance(item, Scope) else str(item.target) for item in scope.items]
    if tree.tensors(scope.path) or paths != list(tree.children(scope.path).values()):
        return False
    previous: fx.Node | None = None
    for item in scope.items:
        nodes = [item] if isinstance(item, fx.Node) else list(item.nodes())
        if isinstance(item, fx.Node) and (item.op != "call_module" or len(item.args) != 1 or item.kwargs):
            return False
        inputs = _inputs(tree, item)
        results = item.results() if isinstance(item, Scope) else [item]
        if len(inputs) != 1 or len(results) != 1 or previous not in {None, inputs[0]}:
            return False
        if previous is not None and any(user not in nodes for user in previous.users):
            return False
        previous = results[0]
    return previous is not None and not (isinstance(scope.items[-1], Scope) and not scope.items[-1].items)


def _inputs(tree: ModuleTree, item: fx.Node | Scope) -> list[fx.Node]:
    if isinstance(item, fx.Node):
        return item.all_input_nodes
    return [node for _, node in write_body(item, tree.access, _positions(item)).inputs]


def _positions(root: Scope) -> dict[str, tuple[int, ...]]:
    """Returns for every called module which of its nodes it returns, over all its calls."""
    found: dict[str, set[int]] = {}
    for scope in (*root.scopes(), root):
        results = set(scope.results())
        positions = {at for at, node in enumerate(scope.nodes()) if node in results}
        found.setdefault(scope.path, set()).update(positions)
    return {path: tuple(sorted(positions)) for path, positions in found.items()}


class _Writer:
    """Makes blueprints; classes further down must have been shared before."""

    def __init__(self, tree: ModuleTree, root: Scope, class_name: str) -> None:
        self.tree = tree
        self.root = root
        self.class_name = class_name
        self.results = _positions(root)
        self.scopes = {scope.path: scope for scope in reversed(list(root.scopes()))}
        self.calls: dict[str, Call] = {}

    def blueprint(self, path: str) -> Blueprint:
        """Returns the class of the module at ``path``."""
        scope = self.root if path == "" else self.scopes.get(path)
        made = (
            self._list_blueprint(path, scope)
            if self.tree.indexed(path)
            else self._class_blueprint(path, scope)
        )
        if path == "":
            return replace(made, name=self.class_name, setup=(*made.setup, *self._finish()))
        return made

    def _class_blueprint(self, path: str, scope: Scope | None) -> Blueprint:
        setup = [("super().__init__()",), *self._children(path), *self._tensors(path)]
        members = frozenset((*self.tree.children(path), *self.tree.tensors(path)))
        name = self.tree.type_name(path)
        made = Blueprint(name, "nn.Module", tuple(setup), members)
        return made if scope is None else self._with_forward(path, scope, tuple(setup), members)

    def _list_blueprint(self, path: str, scope: Scope | None) -> Blueprint:
        """A class whose children are numbered derives from nn.Sequential or nn.ModuleList."""
        items = self._listed(path)
        name = self.tree.type_name(path)
        if scope is not None and is_chain(self.tree, scope) and (path or self._returns_last()):
            setup = (Call(("super().__init__",), tuple(Argument(item) for item in items)),)
            return Blueprint(name, "nn.Sequential", (setup,), frozenset())
        listed: Template = (Call(("super().__init__",), (Argument(("[", *_joined(items), "]")),)),)
        made = Blueprint(name, "nn.ModuleList", (listed,), frozenset())
        if scope is None:
            return made
        return replace(self._with_forward(path, scope, (listed,), frozenset()), base="nn.ModuleList")

    def _returns_last(self) -> bool:
        """Whether the model returns what its last call returns, as it is."""
        output = next(node for node in self.tree.graph.graph.nodes if node.op == "output").args[0]
        return output is list(self.root.nodes())[-1] and self.root.results() == [output]

    def _with_forward(
        self, path: str, scope: Scope | None, setup: tuple[Template, ...], members: frozenset[str]
    ) -> Blueprint:
        assert scope is not None
        name = self.tree.type_name(path)
        if path == "":
            body = write_root(scope, self.tree.graph.graph, self.tree.access, self.results)
            parameters = tuple((number, _parameter(node)) for number, node in body.inputs)
        else:
            body = write_body(scope, self.tree.access, self.results)
            parameters = tuple((number, _input_name(at)) for at, (number, _) in enumerate(body.inputs))
        anonymous = Body((), body.statements, body.result)
        return Blueprint(name, "nn.Module", setup, members, parameters, anonymous)

    def _children(self, path: str) -> list[Template]:
        made: list[Template] = []
        for name, child in self.tree.children(path).items():
            value = _qualified(self.construct(child), name)
            if is_attribute(name):
                made.append((f"self.{name} = ", *value))
            else:
                made.append((f'self.add_module("{name}", ', *value, ")"))
        return made

    def construct(self, path: str) -> Template:
        """Returns the expression that makes the module at ``path``."""
        kind = self.tree.kind(path)
        if kind == "layer":
            return (construction(self.tree.modules[path], path),)
        if kind == "class":
            return (self.calls[path],)
        name = f"nn.{self.tree.type_name(path)}"
        if kind == "list" and self.tree.indexed(path):
            items = self._listed(path)
            if name == "nn.Sequential":
                return (Call((name,), tuple(Argument(item) for item in items)),)
            return (Call((name,), (Argument(("[", *_joined(items), "]")),)),)
        return (Call((name,), (Argument(self._named(path)),)),)

    def _listed(self, path: str) -> list[Template]:
        """Returns the items of a list; what the program never calls and has no parameters is an identity."""
        children, tensors = self.tree.children(path), self.tree.tensors(path)
        items: list[Template] = []
        for at in range(max((int(name) for name in (*children, *tensors)), default=-1) + 1):
            if str(at) in children:
                items.append(_qualified(self.construct(children[str(at)]), str(at)))
            elif str(at) in tensors:
                items.append(_tensor(tensors[str(at)]))
            else:
                items.append(("nn.Identity()",))
        return items

    def _named(self, path: str) -> Template:
        ordered = self.tree.type_name(path) == "Sequential"
        pairs: list[Template] = []
        for name, child in self.tree.children(path).items():
            pairs.append(_pair(name, _qualified(self.construct(child), name), ordered))
        for name, tensor in self.tree.tensors(path).items():
            pairs.append(_pair(name, _tensor(tensor), ordered))
        return ("OrderedDict([", *_joined(pairs), "])") if ordered else ("{", *_joined(pairs), "}")

    def _tensors(self, path: str) -> list[Template]:
        made: list[Template] = []
        for name, tensor in self.tree.tensors(path).items():
            if isinstance(tensor, nn.Parameter):
                target = f"self.{name} = " if is_attribute(name) else f'self.register_parameter("{name}", '
                made.append((target, *_tensor(tensor), *(() if is_attribute(name) else (")",))))
            elif self.tree.persistent(path, name):
                made.append((f'self.register_buffer("{name}", ', *_zeros(tensor), ")"))
            else:
                value = _constant(tensor, f"{path}.{name}" if path else name)
                made.append((f'self.register_buffer("{name}", ', *value, ", persistent=False)"))
        return made

    def _finish(self) -> list[Template]:
        """Returns what must be said of the whole model: shared parameters, dtypes, frozen layers."""
        made: list[Template] = []
        for path, target in self.tree.aliases().items():
            made.append((f"{self.tree.access('', path)} = {self.tree.access('', target)}",))
        layers = {path: self.tree.modules[path] for path in self.tree.layers()}
        made += self._converted(layers)
        for path, module in layers.items():
            flags = [parameter.requires_grad for parameter in module.parameters()]
            if flags and not any(flags):
                made.append((f"{self.tree.access('', path)}.requires_grad_(False)",))
        return made

    def _converted(self, layers: dict[str, nn.Module]) -> list[Template]:
        dtypes = {path: _dtype(module) for path, module in layers.items()}
        dtypes = {path: dtype for path, dtype in dtypes.items() if dtype is not None}
        if not set(dtypes.values()) - {torch.float32}:
            return []
        return [
            (f"{self.tree.access('', path)}.to({dtype})",)
            for path, dtype in dtypes.items()
            if dtype != torch.float32
        ]


def _parameter(node: fx.Node) -> str:
    default = (Hole(node.args[0]),) if node.args else ()
    return f"{node.target}={render(default)}" if default else str(node.target)


def _input_name(at: int) -> str:
    return _INPUT_NAMES[at] if at < len(_INPUT_NAMES) else f"x{at}"


def _dtype(module: nn.Module) -> torch.dtype | None:
    tensors = (*module.parameters(), *module.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)


def _pair(name: str, value: Template, ordered: bool) -> Template:
    return (f'("{name}", ', *value, ")") if ordered else (f'"{name}": ', *value)


def _joined(templates: list[Template]) -> Template:
    joined: list[Piece] = []
    for at, template in enumerate(templates):
        joined += [", ", *template] if at else template
    return tuple(joined)


def _qualified(template: Template, prefix: str) -> Template:
    """Prefixes every hint, so that an option's name says which layer it is for."""
    return tuple(_qualified_piece(piece, prefix) for piece in template)


def _qualified_piece(piece: Piece, prefix: str) -> Piece:
    if isinstance(piece, Hole):
        return Hole(piece.value, f"{prefix}.{piece.hint}")
    if isinstance(piece, Call):
        arguments = tuple(replace(a, value=_qualified(a.value, prefix)) for a in piece.arguments)
        return Call(piece.callee, arguments)
    return piece


def _tensor(tensor: torch.Tensor) -> Template:
    if not isinstance(tensor, nn.Parameter):
        return _zeros(tensor)
    frozen = () if tensor.requires_grad else (", requires_grad=False",)
    return ("nn.Parameter(", *_zeros(tensor), *frozen, ")")


def _zeros(tensor: torch.Tensor) -> Template:
    sizes: list[Template] = [(Hole(size, "size"),) for size in tensor.shape]
    shape = _joined(sizes) if len(sizes) else ("()",)
    dtype = () if tensor.dtype == torch.float32 else (f", dtype={tensor.dtype}",)
    return ("torch.zeros(", *shape, *dtype, ")")


def _constant(tensor: torch.Tensor, name: str) -> Template:
    if tensor.numel() > _SMALL:
        raise ExportError(
            f"the buffer {name!r} is not in the state_dict; {tensor.numel()} values are too many for source",
            hint="register it with persistent=True, so that it is stored with the weights",
        )
    values = cast("object", tensor.detach().cpu().tolist())  # pyright: ignore[reportUnknownMemberType]
    return ("torch.tensor(", Hole(values, "constant"), f", dtype={tensor.dtype})")
