"""The part of the tracer that answers questions about shapes from the example inputs, and guards the answers.

A question about a tensor's *values* is refused, as fx does.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

import torch
from torch import fx
from torch.fx import proxy as fx_proxy

from morphir.ir.example_run import ExampleRun, Unknown
from morphir.ir.guards import answer, describe, guard, is_size
from morphir.ir.proxy import Proxy
from morphir.ir.source import calling_user_line

_PIECES = frozenset({"split", "unbind", "tensor_split", "split_with_sizes"})
_VIEWS_OF_DICTS = frozenset({"keys", "values", "items"})
_NUMBERS = (int, float)


@dataclass(frozen=True)
class _Peek:
    """A guard that stands for nothing if the instruction turns out to record the number instead."""

    frame: FrameType
    instruction: int
    guard: fx.Node

    @property
    def is_running(self) -> bool:
        """Whether the instruction that peeked is still running."""
        frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        while frame is not None:
            if frame is self.frame:
                return frame.f_lasti == self.instruction
            frame = frame.f_back
        return False


class Questions(fx.Tracer):
    """Answers what proxies are asked; a subclass sets ``example`` before it traces.

    Attributes:
        example: What the values are on the example inputs.
    """

    example: ExampleRun

    def __init__(self) -> None:
        super().__init__()
        self._guards: dict[tuple[str, str], fx.Node] = {}
        self._peeks: list[_Peek] = []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wraps a node."""
        return Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Makes a node as fx does."""
        node = super().create_node(*args, **kwargs)
        self._settle_peeks(node)
        return node

    def guard(self, obj: fx.Proxy, question: str, *, located: bool = True) -> Any:
        """Answers a question from the example inputs, and holds later inputs to the answer.

        Args:
            obj: The value.
            question: One of those that :func:`morphir.ir.guards.guard` knows.
            located: Whether the user's line asks it.
        """
        expected = answer(self._value(obj), question)
        text, source = describe(obj.node), calling_user_line() if located else None
        if (text, question) not in self._guards:
            where = None if source is None else str(source)
            node = self.create_node("call_function", guard, (obj.node, question, expected, text, where), {})
            self._guards[text, question] = node
        return expected

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answers ``if value``."""
        value = self._value(obj)
        if isinstance(value, _NUMBERS):
            return bool(self.guard(obj, "truth"))
        if value is None:
            return not self.guard(obj, "none")
        if isinstance(value, str):
            return bool(self.guard(obj, "value"))
        if hasattr(value, "__len__") and not isinstance(value, torch.Tensor):
            return self.length(obj) > 0
        return super().to_bool(obj)

    def number(self, obj: fx.Proxy, peeking: FrameType | None = None) -> float:
        """Answers ``int(value)``, ``range(value)`` and the like.

        Args:
            obj: The value.
            peeking: The frame whose running instruction may only want to know whether this is a number.
        """
        value = self._value(obj)
        if not isinstance(value, _NUMBERS):
            raise TypeError("a Python number made from a tensor depends on the tensor's values")
        before = len(self._guards)
        self.guard(obj, "value")
        if peeking is not None and len(self._guards) > before:
            made = next(reversed(self._guards.values()))
            self._peeks.append(_Peek(peeking, peeking.f_lasti, made))
        return value

    def length(self, obj: fx.Proxy) -> int:
        """Answers ``len(value)``; the length of a shape is its tensor's number of dimensions."""
        node, value = obj.node, self._value(obj)
        if isinstance(value, torch.Size) and (node.target == "size" or node.target is getattr):
            tensor = self.proxy(cast("fx.Node", node.args[0]))
            return int(self.number(self.create_proxy("call_method", "dim", (tensor,), {})))
        if isinstance(value, torch.Tensor):
            return int(self.number(self.create_proxy("call_method", "size", (obj, 0), {})))
        return cast("int", self.guard(obj, "length"))

    def type_of(self, obj: fx.Proxy) -> type | None:
        """Answers ``isinstance(value, ...)``; None where shapes alone do not tell."""
        try:
            value = self.example.value(obj.node)
        except Unknown:
            return None
        return torch.Tensor if isinstance(value, torch.Tensor) else cast("type[Any]", type(value))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Answers ``for item in value``."""
        value, node = self._value(obj), obj.node
        if node.op == "call_method" and node.target in _VIEWS_OF_DICTS:
            return self._iterate_view(self.proxy(cast("fx.Node", node.args[0])), str(node.target))
        if isinstance(value, Mapping):
            return iter(cast("list[Any]", self.guard(obj, "keys")))
        if not isinstance(value, (torch.Tensor, tuple, list)):
            raise fx_proxy.TraceError("symbolically traced variables cannot be iterated over")
        return self.unpack(obj, self.length(obj))

    def _iterate_view(self, obj: fx.Proxy, view: str) -> Iterator[Any]:
        keys = cast("list[Any]", self.guard(obj, "keys"))
        items = cast("Any", obj)
        if view == "keys":
            return iter(keys)
        return iter([items[key] if view == "values" else (key, items[key]) for key in keys])

    def keys(self, obj: fx.Proxy) -> Any:
        """Answers ``value.keys()``."""
        if isinstance(self._value(obj), Mapping):
            return self.guard(obj, "keys")
        return super().keys(obj)

    def unpack(self, obj: fx.Proxy, count: int) -> Iterator[Any]:
        """Answers ``a, b = value``; what has as many items as the shapes have it is held to them."""
        if getattr(obj.node.target, "__name__", obj.node.target) in _PIECES:
            self.length(obj)
        return iter([cast("Any", obj)[at] for at in range(count)])

    def assign(self, obj: fx.Proxy, index: Any, value: Any) -> None:
        """Records ``value[index] = ...``; who else may see it is known at the end of the trace.

        Raises:
            TraceError: if the tensor is no value of the program's own.
        """
        if not isinstance(self._value(obj), torch.Tensor):
            raise fx_proxy.TraceError("an item is assigned to something else than a tensor")
        for other in (obj.node, *self.example.sharing(obj.node, obj.node)):
            if other.op in {"placeholder", "get_attr"}:
                raise fx_proxy.TraceError(f"an item of {describe(other)} is assigned to")
        self.create_proxy("call_function", operator.setitem, (obj, index, value), {})

    def stale_read(self, program: fx.Graph) -> tuple[fx.Node, fx.Node] | None:
        """Returns an assignment, and another value that shares its memory and is read after it."""
        assignments = [node for node in program.nodes if node.target is operator.setitem]
        last = next(node for node in reversed(program.nodes) if node.op != "output")
        for assignment in assignments:
            for other in self.example.sharing(assignment.args[0], last):
                if other < assignment and any(assignment < reader for reader in other.users):
                    return assignment, other
        return None

    def forget_erased(self, left: set[fx.Node]) -> None:
        """Forgets the guards that the program lost.

        Args:
            left: The nodes that it still has.
        """
        self._peeks.clear()
        self._guards = {key: node for key, node in self._guards.items() if node in left}

    def drop_unread_sizes(self, program: fx.Graph) -> None:
        """Erases the sizes that were read for a question alone, which its guard reads in another way."""
        if self._guards:
            for node in reversed(program.nodes):
                if not node.users and is_size(node):
                    program.erase_node(node)

    def on_unknown(self, error: Unknown) -> None:
        """Is called before a question is refused."""

    def _value(self, obj: fx.Proxy) -> Any:
        try:
            return self.example.value(obj.node)
        except Unknown as error:
            self.on_unknown(error)
            raise fx_proxy.TraceError(
                f"symbolically traced variables cannot be used as inputs to control flow ({error})"
            ) from error

    def _settle_peeks(self, node: fx.Node) -> None:
        """Takes back the guards on numbers that the running instruction recorded after all."""
        if not self._peeks or node.target is guard:
            return
        for peek in self._peeks:
            if peek.guard.args[0] in node.all_input_nodes and peek.is_running:
                self._guards = {key: made for key, made in self._guards.items() if made is not peek.guard}
                node.graph.erase_node(peek.guard)
        self._peeks = [peek for peek in self._peeks if peek.is_running]
