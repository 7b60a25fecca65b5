"""The fx tracer: proxies that answer questions about shapes, modules that cannot be traced kept whole.

A question about a shape (a truth, a number, a length) is answered from the example inputs, and a
:func:`~morphir.ir.guards.guard` is left in the program. A question about a tensor's values is refused, as fx
does; the innermost module that asks it becomes an *opaque* leaf.
"""

from __future__ import annotations

import dis
import operator
import sys
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx import proxy as fx_proxy

from morphir.ir.example_run import ExampleRun, Unknown
from morphir.ir.guards import answer, describe, guard, is_size
from morphir.ir.opaque import Failure
from morphir.ir.signature import Signature
from morphir.ir.source import SourceLocation, calling_user_line, failing_user_line

_FACTORIES: tuple[Callable[..., Any], ...] = (
    *(
        torch.zeros,
        torch.ones,
        torch.empty,
        torch.full,
        torch.rand,
        torch.randn,
        torch.randint,
        torch.randperm,
    ),
    *(torch.arange, torch.linspace, torch.logspace, torch.eye, torch.tensor),
)
_UNPACK = dis.opmap["UNPACK_SEQUENCE"]
_PIECES = frozenset({"split", "unbind", "tensor_split", "split_with_sizes"})
_VIEWS_OF_DICTS = frozenset({"keys", "values", "items"})
_NUMBERS = (int, float)


class Proxy(fx.Proxy):
    """A traced value that answers what the example inputs tell about its shape."""

    tracer: Tracer

    def __getattr__(self, k: str) -> fx_proxy.Attribute:
        return _Attribute(self, k)

    def __iter__(self) -> Iterator[Any]:
        count = _unpacked(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        return self.tracer.iter(self) if count is None else self.tracer.unpack(self, count)

    def __len__(self) -> int:
        return self.tracer.length(self)

    def __int__(self) -> int:
        return int(self.tracer.number(self))

    def __float__(self) -> float:
        return float(self.tracer.number(self))

    def __round__(self, digits: int | None = None) -> float:
        return round(self.tracer.number(self), digits)

    def __index__(self) -> int:
        return operator.index(cast("int", self.tracer.number(self, sys._getframe(1))))  # pyright: ignore[reportPrivateUsage]


class _Attribute(Proxy, fx_proxy.Attribute):
    """An attribute of a traced value."""


def _unpacked(frame: FrameType) -> int | None:
    """Returns how many names the running instruction unpacks a value into; None where it does not."""
    code, at = frame.f_code.co_code, frame.f_lasti
    return code[at + 1] if code[at] == _UNPACK else None


@dataclass(frozen=True)
class _Peek:
    """A guard that stands for nothing if the instruction turns out to record the number instead."""

    frame: FrameType
    instruction: int
    guard: fx.Node


class Tracer(fx.Tracer):
    """Traces one model in the mode that it is in.

    Args:
        signature: The model's forward function, bound to the example inputs.
        opaque: Paths of modules to keep whole.

    Attributes:
        failures: Module path to why it could not be traced and was kept whole.
        constants: Modules that the model holds where ``nn.Module`` does not see them.
        example: What the values are on the example inputs.
        ungraded: Nodes that were computed under ``torch.no_grad``.
    """

    proxy_buffer_attributes = True

    def __init__(self, signature: Signature, opaque: Collection[str] = ()) -> None:
        super().__init__()
        self._autowrap_search.append(torch)
        self._autowrap_function_ids.update(map(id, _FACTORIES))
        self.signature = signature
        self.opaque = set(opaque)
        self.failures: dict[str, Failure] = {}
        self.constants: dict[str, SourceLocation | None] = {}
        self.ungraded: set[fx.Node] = set()
        self._detached: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._parameter_proxies: dict[str, fx.Proxy] = {}
        self._guards: dict[tuple[str, str], fx.Node] = {}
        self._peeks: list[_Peek] = []

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        """Traces a model; whatever its own ``no_grad`` blocks compute is detached."""
        assert isinstance(root, nn.Module)
        call = self.signature.caller(root)
        self.example = ExampleRun(root, self.signature.values, call, self.opaque)
        with torch.enable_grad(), _refused_custom_gradients():
            graph = super().trace(root, concrete_args)
        for node in graph.nodes:
            if node.target in _FACTORIES:
                # fx would have the generated code wrap a name with a dot, which poisons every later trace.
                node.meta.pop("is_wrapped", None)
        self._detach_ungraded(graph)
        self._drop_unread_sizes(graph)
        return graph

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[[], Any], list[Any]]:
        """Makes one placeholder for each input; what is None in the example inputs is None in the trace."""
        proxies: dict[str, Any] = {}
        for name, default in self.signature.placeholders.items():
            proxies[name] = self.create_proxy("placeholder", name, default, {})
        for name, value in self.signature.values.items():
            if value is None:
                self.guard(proxies[name], "none", located=False)
                proxies[name] = None
        args, kwargs = self.signature.arguments(proxies)
        return lambda: root_fn(self.root, *args, **kwargs), []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wraps a node."""
        return Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Makes a node as fx does, and notes where it comes from."""
        node = super().create_node(*args, **kwargs)
        node.meta.setdefault("source", calling_user_line())
        if not torch.is_grad_enabled():
            self.ungraded.add(node)
        self._settle_peeks(node)
        return node

    def create_arg(self, a: Any) -> Any:
        """Returns an argument; a parameter that is not the model's is a constant."""
        if (
            isinstance(a, torch.Tensor)
            and a.requires_grad
            and all(a is not p for p in self.root.parameters())
        ):
            # The same constant for the same tensor, so that it has one name; kept, so that its id stays its own.
            _, a = self._detached.setdefault(id(a), (a, a.detach()))
        return super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Returns a proxy for a parameter or buffer, but for modules that run."""
        self._parameter_proxies = parameter_proxy_cache
        return attr_val if self.example.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is kept whole."""
        return module_qualified_name in self.opaque or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Traces into a module, or keeps it whole where that fails."""
        if self.example.running:
            return forward(*args, **kwargs)
        if m not in cast("dict[nn.Module, str]", self.submodule_paths):
            self.constants.setdefault(type(m).__name__, calling_user_line())
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        stack, last = dict(self.module_stack), next(iter(reversed(self.graph.nodes)), None)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            self.failures[path] = Failure(_first_line(error), failing_user_line(error.__traceback__))
            self.opaque.add(path)
            self._roll_back(stack, last)
            return super().call_module(m, forward, args, kwargs)

    def _roll_back(self, stack: Mapping[str, Any], last: fx.Node | None) -> None:
        """Forgets what was traced since ``last``."""
        self.module_stack.clear()
        self.module_stack.update(stack)
        self._peeks.clear()
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            self.graph.erase_node(node)
        left = set(self.graph.nodes)
        self._guards = {key: node for key, node in self._guards.items() if node in left}
        for name in [name for name, found in self._parameter_proxies.items() if found.node not in left]:
            del self._parameter_proxies[name]
        self.example.rewind(left, last)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answers ``if value``."""
        value = self._example(obj)
        if isinstance(value, _NUMBERS):
            return bool(self.guard(obj, "truth"))
        if value is None:
            return not self.guard(obj, "none")
        if isinstance(value, str):
            return bool(self.guard(obj, "value"))
        if hasattr(value, "__len__") and not isinstance(value, torch.Tensor):
            return self.length(obj) > 0
        return super().to_bool(obj)

    def number(self, obj: Proxy, peeking: FrameType | None = None) -> float:
        """Answers ``int(value)``, ``range(value)`` and the like.

        Args:
            obj: The value.
            peeking: The frame whose running instruction may only want to know whether this is a number.
        """
        value = self._example(obj)
        if not isinstance(value, _NUMBERS):
            raise TypeError("a Python number made from a tensor depends on the tensor's values")
        before = len(self._guards)
        self.guard(obj, "value")
        if peeking is not None and len(self._guards) > before:
            made = next(reversed(self._guards.values()))
            self._peeks.append(_Peek(peeking, peeking.f_lasti, made))
        return value

    def length(self, obj: Proxy) -> int:
        """Answers ``len(value)``; the length of a shape is its tensor's number of dimensions."""
        node, value = obj.node, self._example(obj)
        if isinstance(value, torch.Size) and (node.target == "size" or node.target is getattr):
            tensor = self.proxy(cast("fx.Node", node.args[0]))
            return int(self.number(cast("Proxy", self.create_proxy("call_method", "dim", (tensor,), {}))))
        if isinstance(value, torch.Tensor):
            return int(self.number(cast("Proxy", self.create_proxy("call_method", "size", (obj, 0), {}))))
        return cast("int", self.guard(obj, "length"))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Answers ``for item in value``."""
        value, node = self._example(obj), obj.node
        if node.op == "call_method" and node.target in _VIEWS_OF_DICTS:
            return self._iterate_view(
                cast("Proxy", self.proxy(cast("fx.Node", node.args[0]))), str(node.target)
            )
        if isinstance(value, Mapping):
            return iter(cast("list[Any]", self.guard(obj, "keys")))
        if not isinstance(value, (torch.Tensor, tuple, list)):
            return super().iter(obj)
        return iter([obj[at] for at in range(self.length(cast("Proxy", obj)))])

    def _iterate_view(self, obj: Proxy, view: str) -> Iterator[Any]:
        keys = cast("list[Any]", self.guard(obj, "keys"))
        if view == "keys":
            return iter(keys)
        return iter([obj[key] if view == "values" else (key, obj[key]) for key in keys])

    def keys(self, obj: fx.Proxy) -> Any:
        """Answers ``value.keys()``."""
        if isinstance(self._example(obj), Mapping):
            return self.guard(obj, "keys")
        return super().keys(obj)

    def unpack(self, obj: Proxy, count: int) -> Iterator[Any]:
        """Answers ``a, b = value``; what has as many items as the shapes have it is held to them."""
        name = getattr(obj.node.target, "__name__", obj.node.target)
        if name in _PIECES:
            self.length(obj)
        return iter([obj[at] for at in range(count)])

    def guard(self, obj: fx.Proxy, question: str, *, located: bool = True) -> Any:
        """Answers a question from the example inputs, and holds later inputs to the answer."""
        expected = answer(self._example(obj), question)
        text, source = describe(obj.node), calling_user_line() if located else None
        if (text, question) not in self._guards:
            where = None if source is None else str(source)
            node = self.create_node("call_function", guard, (obj.node, question, expected, text, where), {})
            self._guards[text, question] = node
        return expected

    def _example(self, obj: fx.Proxy) -> Any:
        """Returns a value on the example inputs."""
        try:
            return self.example.value(obj.node)
        except Unknown as error:
            raise fx_proxy.TraceError(
                f"symbolically traced variables cannot be used as inputs to control flow ({error})"
            ) from error

    def _settle_peeks(self, node: fx.Node) -> None:
        """Takes back the guards on numbers that the running instruction recorded after all."""
        if not self._peeks or node.target is guard:
            return
        for peek in self._peeks:
            if peek.guard.args[0] in node.all_input_nodes and _is_running(peek):
                self._guards = {key: made for key, made in self._guards.items() if made is not peek.guard}
                node.graph.erase_node(peek.guard)
        self._peeks = [peek for peek in self._peeks if _is_running(peek)]

    def _detach_ungraded(self, graph: fx.Graph) -> None:
        """Detaches what was computed under ``no_grad`` where the rest of the program reads it."""
        for node, readers in self._leaving_no_grad(graph):
            with graph.inserting_after(node):
                detached = graph.call_method("detach", (node,))
            detached.meta.update(node.meta)
            for reader in readers:
                reader.replace_input_with(node, detached)

    def _leaving_no_grad(self, graph: fx.Graph) -> list[tuple[fx.Node, list[fx.Node]]]:
        """Returns the tensors computed under ``no_grad`` that others read, with these readers."""
        found: list[tuple[fx.Node, list[fx.Node]]] = []
        for node in graph.nodes:
            if node not in self.ungraded or not _computes(node):
                continue
            readers = [user for user in node.users if user not in self.ungraded and user.target is not guard]
            if readers and self._is_tensor(node):
                found.append((node, readers))
            elif readers:
                self.ungraded.update(user for user in readers if user.target is operator.getitem)
        return found

    def _is_tensor(self, node: fx.Node) -> bool:
        try:
            return isinstance(self.example.value(node), torch.Tensor)
        except Unknown:
            return node.op == "call_module"

    def _drop_unread_sizes(self, graph: fx.Graph) -> None:
        """Erases the sizes that were read for a question alone, which its guard reads in another way."""
        if self._guards:
            for node in reversed(graph.nodes):
                if not node.users and is_size(node):
                    graph.erase_node(node)


def _is_running(peek: _Peek) -> bool:
    """Whether the instruction that peeked is still running."""
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame is peek.frame:
            return frame.f_lasti == peek.instruction
        frame = frame.f_back
    return False


def _computes(node: fx.Node) -> bool:
    """Whether a node makes a value of its own, and does not write into another's."""
    in_place = node.op == "call_method" and str(node.target).endswith("_")
    return node.op in {"call_function", "call_method", "call_module"} and not in_place


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _refused_custom_gradients() -> Generator[None]:
    """Refuses a user's ``autograd.Function`` on traced values: fx would trace its forward, and lose its backward."""
    function = torch.autograd.Function
    original = function.__dict__["apply"]

    def apply(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        if not cls.__module__.startswith("torch.") and any(isinstance(arg, fx.Proxy) for arg in args):
            raise fx_proxy.TraceError(f"{cls.__name__} has a gradient of its own, which a trace cannot hold")
        return original.__func__(cls, *args, **kwargs)

    function.apply = classmethod(apply)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        function.apply = original
