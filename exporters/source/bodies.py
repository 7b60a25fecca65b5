"""From one call of a module to the statements of its ``forward``, with numbered variables."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from torch import fx
from torch.fx.node import Node, map_arg

from exporters.outputs import record_fields
from exporters.source.calls import Scope, under
from exporters.source.functions import function_name, parameters
from exporters.source.records import is_dict_record
from exporters.source.template import Argument, Call, Hole, Piece, Ref, Template
from morphir.ir.guards import guard, is_size
from morphir.ir.operators import AUGMENTED, INFIX, PREFIX

Access = Callable[[str, str], str]
"""How source reaches an object: (path of ``self``, path of the object) to ``self.features[0]``."""


_OPPOSITES: Mapping[object, object] = {
    operator.eq: operator.ne,
    operator.ne: operator.eq,
    operator.lt: operator.ge,
    operator.ge: operator.lt,
    operator.gt: operator.le,
    operator.le: operator.gt,
}

if TYPE_CHECKING:
    _Slice = slice[object, object, object]


@dataclass(frozen=True)
class Statement:
    """``targets = value``, or ``value`` alone; an augmented one is ``targets[0] <operator> value``.

    Attributes:
        hint: What to call the result, where there is a good name for it.
        scalar: The value is a size, a dtype or the like, no tensor.
    """

    targets: tuple[int, ...]
    value: Template
    augmented: str | None = None
    hint: str = ""
    scalar: bool = False


@dataclass(frozen=True)
class Body:
    """A forward function.

    Attributes:
        inputs: The values from outside that it reads, in order of first use, with their variables' numbers.
        statements: What it does.
        result: What it returns; None if nothing is read.
    """

    inputs: tuple[tuple[int, fx.Node], ...]
    statements: tuple[Statement, ...]
    result: Template | None


@dataclass
class _Writer:
    """The state of writing one body: what each node of the program is called in it."""

    path: str
    access: Access
    results: Mapping[str, tuple[int, ...]]
    known: dict[fx.Node, Template] = field(default_factory=dict["fx.Node", Template])
    inputs: list[tuple[int, fx.Node]] = field(default_factory=list[tuple[int, fx.Node]])
    statements: list[Statement] = field(default_factory=list[Statement])
    count: int = 0

    def declare(self, node: fx.Node) -> int:
        """Makes a new variable for what ``node`` computes."""
        number, self.count = self.count, self.count + 1
        self.known[node] = (Ref(number),)
        return number

    def read(self, node: fx.Node) -> Template:
        """Returns the expression for a value; one from outside becomes an input."""
        if node.op == "get_attr" and node.target == "training":
            return ("self.training",)
        if node.op == "get_attr" and under(str(node.target), self.path):
            return (self.access(self.path, str(node.target)),)
        if node not in self.known:
            self.inputs.append((self.declare(node), node))
        return self.known[node]

    def value(self, argument: object, hint: str = "value") -> Template:
        """Returns the expression for an argument of a node."""
        if isinstance(argument, fx.Node):
            return self.read(argument)
        if isinstance(argument, slice):
            return ("slice(", *self._listed(_bounds(cast("_Slice", argument)), hint), ")")
        if not _holds_node(argument):
            return (Hole(_unwrapped(argument), hint),)
        if isinstance(argument, dict):
            pairs = cast("dict[str, object]", argument).items()
            listed = [(Hole(key), ": ", *self.value(item, hint)) for key, item in pairs]
            return ("{", *_joined(listed), "}")
        opening, closing = ("[", "]") if isinstance(argument, list) else ("(", ")")
        items = cast("tuple[object, ...]", argument)
        comma = (",",) if len(items) == 1 and closing == ")" else ()
        return (opening, *self._listed(items, hint), *comma, closing)

    def _listed(self, items: tuple[object, ...], hint: str) -> Template:
        return _joined([self.value(item, hint) for item in items])

    def operand(self, argument: object) -> Template:
        """Returns an argument as it can stand beside an operator or before a dot."""
        template = self.value(argument)
        return ("(", *template, ")") if " " in _text(template) else template

    def write(self, node: fx.Node, *, inline: bool) -> None:
        """Appends what one node does, or keeps its expression for the node that reads it."""
        if node.op == "call_function" and node.target in AUGMENTED and self._augment(node):
            return
        if node.target is operator.setitem:
            self.statements.append(Statement((), _assignment(self, node)))
            return
        template = _WRITERS[node.op](self, node)
        if inline:
            self.known[node] = template
            return
        scalar = is_size(node)
        hint = "size" if scalar else ""
        self.statements.append(Statement((self.declare(node),), template, hint=hint, scalar=scalar))

    def _augment(self, node: fx.Node) -> bool:
        """Writes ``x += y``, if ``x`` is a variable that nothing reads afterwards under its old meaning."""
        target, value = node.args
        last_use = isinstance(target, fx.Node) and len(target.users) == 1
        if not (isinstance(target, fx.Node) and last_use and isinstance(self.read(target)[0], Ref)):
            return False
        number = cast("Ref", self.read(target)[0]).number
        self.statements.append(Statement((number,), self.value(value), AUGMENTED[node.target]))
        self.known[node] = (Ref(number),)
        return True

    def call(self, scope: Scope) -> None:
        """Appends the call of an inner module."""
        body = write_body(scope, self.access, self.results)
        arguments = tuple(Argument(self.read(node)) for _, node in body.inputs)
        callee = self.access(self.path, scope.path)
        nodes = list(scope.nodes())
        targets = tuple(self.declare(nodes[at]) for at in self.results[scope.path])
        name = scope.path.rsplit(".", 1)[-1]
        hint = name if name.isidentifier() and len(targets) == 1 else ""
        self.statements.append(Statement(targets, (Call((callee,), arguments),), hint=hint))


def write_body(scope: Scope, access: Access, results: Mapping[str, tuple[int, ...]]) -> Body:
    """Returns the statements of one call.

    Args:
        scope: The call.
        access: How source reaches parameters and modules.
        results: For the path of every called module, the positions of the nodes that it returns.
    """
    writer = _Writer(scope.path, access, results)
    _write_items(writer, scope)
    nodes = list(scope.nodes())
    returned = [writer.read(nodes[at]) for at in results[scope.path]]
    result = _joined(returned) if returned else None
    return Body(tuple(writer.inputs), tuple(writer.statements), result)


def write_root(root: Scope, graph: fx.Graph, access: Access, results: Mapping[str, tuple[int, ...]]) -> Body:
    """Returns the statements of the model's forward; its inputs are all the model's, read or not."""
    writer = _Writer("", access, results)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    inputs = tuple((writer.declare(node), node) for node in placeholders)
    _write_items(writer, root)
    output = next(node for node in graph.nodes if node.op == "output")
    return Body(inputs, tuple(writer.statements), writer.value(output.args[0]))


def _write_items(writer: _Writer, scope: Scope) -> None:
    inlined, unread = _inlined(scope), _unread(scope)
    for item in scope.items:
        if isinstance(item, Scope):
            writer.call(item)
        elif item not in unread:
            writer.write(item, inline=item in inlined)


def _unread(scope: Scope) -> set[fx.Node]:
    """Returns the sizes that nothing reads, as those that a rewrite has written down."""
    found: set[fx.Node] = set()
    for item in reversed(scope.items):
        if isinstance(item, fx.Node) and is_size(item) and found.issuperset(item.users):
            found.add(item)
    return found


def _inlined(scope: Scope) -> set[fx.Node]:
    """Returns the cheap nodes whose expression is written where it is read.

    They are read once, and right after: so the source evaluates everything in the program's order.
    """
    found: set[fx.Node] = set()
    readers: set[fx.Node] = set()
    for item in reversed(scope.items):
        if isinstance(item, Scope):
            readers = set(item.nodes())
            continue
        is_cheap = is_size(item) or _is_element(item)
        if is_cheap and len(item.users) == 1 and readers.issuperset(item.users):
            found.add(item)
            readers.add(item)
        else:
            readers = {item}
    return found


def _call_module(writer: _Writer, node: fx.Node) -> Template:
    return (Call((writer.access(writer.path, str(node.target)),), _arguments(writer, node, ())),)


def _call_method(writer: _Writer, node: fx.Node) -> Template:
    receiver, *rest = node.args
    callee = (*writer.operand(receiver), f".{node.target}")
    names = tuple((str(node.target), None) for _ in rest)
    return (Call(callee, _arguments(writer, node, names, tuple(rest))),)


def _assignment(writer: _Writer, node: fx.Node) -> Template:
    target, index, value = node.args
    return (*writer.operand(target), "[", *_index(writer, index), "] = ", *writer.value(value))


def _guard(writer: _Writer, node: fx.Node) -> Template:
    """Writes a guard as an assertion, which torch.fx can trace again."""
    value, question, expected, _, where = node.args
    text = writer.value(value)
    conditions: dict[object, Template] = {
        "truth": _truth(writer, value, bool(expected)),
        "length": ("len(", *text, ") == ", Hole(expected, "length")),
        "keys": ("list(", *text, ") == ", Hole(_unwrapped(expected), "keys")),
        "none": (*text, " is None" if expected else " is not None"),
        "value": (*writer.operand(value), " == ", Hole(expected, "size")),
    }
    line = "another path through the model" if where is None else f"another path at {where}"
    return ("torch._assert(", *conditions[question], f', "such inputs take {line}")')


def _truth(writer: _Writer, value: object, expected: bool) -> Template:
    """Writes that a value is true or false; a comparison that is written here is turned around."""
    if (
        isinstance(value, fx.Node)
        and value.target in _OPPOSITES
        and not isinstance(writer.read(value)[0], Ref)
    ):
        left, right = writer.operand(value.args[0]), writer.operand(value.args[1])
        symbol = INFIX[value.target if expected else _OPPOSITES[value.target]]
        return (*left, f" {symbol} ", *right)
    return (*writer.operand(value), " != 0" if expected else " == 0")


def _call_function(writer: _Writer, node: fx.Node) -> Template:
    target, args = node.target, node.args
    if target is guard:
        return _guard(writer, node)
    if is_dict_record(node):
        return writer.value({key: item for key, item in record_fields(node).items() if item is not None})
    if target is operator.getitem:
        return (*writer.operand(args[0]), "[", *_index(writer, args[1]), "]")
    if target is getattr and len(args) == 2:
        return (*writer.operand(args[0]), f".{args[1]}")
    if target in INFIX and len(args) == 2 and not node.kwargs:
        left, right = writer.operand(args[0]), writer.operand(args[1])
        if INFIX[target] == "**":
            return _power(args[0], left, right)
        return (*left, f" {INFIX[target]} ", *right)
    if target in PREFIX and not node.kwargs:
        return (PREFIX[target], *writer.operand(args[0]))
    if target is getattr:
        return (Call(("getattr",), _arguments(writer, node, ())),)
    return (Call((function_name(node),), _arguments(writer, node, parameters(target))),)


_WRITERS: Mapping[str, Callable[[_Writer, fx.Node], Template]] = {
    "call_module": _call_module,
    "call_method": _call_method,
    "call_function": _call_function,
}


def _arguments(
    writer: _Writer,
    node: fx.Node,
    names: tuple[tuple[str, Hole | None], ...],
    args: tuple[object, ...] | None = None,
) -> tuple[Argument, ...]:
    defaults = dict(names)
    hints = [name for name, _ in names] + ["value"] * len(node.args)
    given = node.args if args is None else args
    positional = [Argument(writer.value(arg, hint)) for arg, hint in zip(given, hints, strict=False)]
    named = [Argument(writer.value(arg, key), key, defaults.get(key)) for key, arg in node.kwargs.items()]
    return (*positional, *named)


def _index(writer: _Writer, index: object) -> Template:
    if isinstance(index, tuple) and index != ():
        items = [_index_item(writer, item) for item in cast("tuple[object, ...]", index)]
        return (*_joined(items), *((",",) if len(items) == 1 else ()))
    return _index_item(writer, cast("object", index))


def _index_item(writer: _Writer, item: object) -> Template:
    if not isinstance(item, slice):
        return writer.value(item, "index")
    start, stop, step = (
        () if bound is None else writer.value(bound, "index") for bound in _bounds(cast("_Slice", item))
    )
    return (*start, ":", *stop, *((":", *step) if step else ()))


def _bounds(item: _Slice) -> tuple[object, object, object]:
    return item.start, item.stop, item.step


def _is_element(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[1], int)


def _holds_node(argument: object) -> bool:
    found: list[Node] = []

    def note(node: Node) -> Node:
        found.append(node)
        return node

    map_arg(cast("Any", argument), note)
    return bool(found)


def _unwrapped(argument: object) -> object:
    """Returns fx's immutable lists and dicts as plain ones."""
    if isinstance(argument, list):
        return [_unwrapped(item) for item in cast("list[object]", argument)]
    if isinstance(argument, tuple):
        return tuple(_unwrapped(item) for item in cast("tuple[object, ...]", argument))
    if isinstance(argument, dict):
        return {key: _unwrapped(item) for key, item in cast("dict[object, object]", argument).items()}
    return argument


def _joined(templates: list[Template]) -> Template:
    joined: list[Piece] = []
    for at, template in enumerate(templates):
        joined += [", ", *template] if at else template
    return tuple(joined)


def _power(base: object, left: Template, right: Template) -> Template:
    """Binds more tightly than a sign: a negative base needs brackets."""
    if isinstance(base, (int, float)) and base < 0:
        left = ("(", *left, ")")
    symbol = "**" if _is_simple(left) and _is_simple(right) else " ** "
    return (*left, symbol, *right)


def _is_simple(template: Template) -> bool:
    """Whether formatters write a power of it without spaces."""
    return len(template) == 1 and isinstance(template[0], (Ref, Hole))


def _text(template: Template) -> str:
    return "".join(piece for piece in template if isinstance(piece, str))
