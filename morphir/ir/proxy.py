"""Proxies that answer Python's questions about shapes (``int``, ``len``, unpacking), and take assignments.

fx's own raise on each. What the answer is, and what holds later inputs to it, is the tracer's business
(:mod:`morphir.ir.questions`).
"""

from __future__ import annotations

import dis
import functools
import operator
import sys
from abc import ABCMeta
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, Protocol, cast

from torch import fx
from torch.fx import proxy as fx_proxy

from morphir.ir.source import is_user_file

_ABC = ABCMeta.__instancecheck__.__code__.co_filename
_UNPACK = dis.opmap["UNPACK_SEQUENCE"]


class Answers(Protocol):
    """What a proxy asks its tracer."""

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Answers ``for item in value``."""
        ...

    def unpack(self, obj: fx.Proxy, count: int) -> Iterator[Any]:
        """Answers ``a, b = value``."""
        ...

    def length(self, obj: fx.Proxy) -> int:
        """Answers ``len(value)``."""
        ...

    def assign(self, obj: fx.Proxy, index: Any, value: Any) -> None:
        """Records ``value[index] = ...``."""
        ...

    def type_of(self, obj: fx.Proxy) -> type | None:
        """Answers ``isinstance(value, ...)``; None where the type is not known."""
        ...

    def number(self, obj: fx.Proxy, peeking: FrameType | None = None) -> float:
        """Answers ``int(value)`` and the like."""
        ...


class Proxy(fx.Proxy):
    """A traced value that answers what the example inputs tell about its shape."""

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        # What isinstance asks after the type itself. The user means the value, libraries mean the proxy.
        asking: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        while asking is not None and asking.f_code.co_filename == _ABC:
            asking = asking.f_back
        if asking is None or not is_user_file(asking.f_code.co_filename, standard_library=False):
            return type(self)
        # torch's argument parser asks as well, and would read the memory of what says that it is a tensor.
        if not _asks_for_type(asking.f_code, asking.f_lasti):
            return type(self)
        return self._answers.type_of(self) or type(self)

    @property
    def _answers(self) -> Answers:
        return cast("Answers", self.tracer)

    def __getattr__(self, k: str) -> fx_proxy.Attribute:
        return _Attribute(self, k)

    def __iter__(self) -> Iterator[Any]:
        count = _unpacked(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        return self._answers.iter(self) if count is None else self._answers.unpack(self, count)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._answers.assign(self, index, value)

    def __len__(self) -> int:
        return self._answers.length(self)

    def __int__(self) -> int:
        return int(self._answers.number(self))

    def __float__(self) -> float:
        return float(self._answers.number(self))

    def __round__(self, digits: int | None = None) -> float:
        return round(self._answers.number(self), digits)

    def __index__(self) -> int:
        # torch's argument parser asks too, and may well record the number instead.
        found = self._answers.number(self, sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        return operator.index(cast("int", found))


class _Attribute(Proxy, fx_proxy.Attribute):
    """An attribute of a traced value."""


@functools.cache
def _asks_for_type(function: CodeType, at: int) -> bool:
    """Whether the instruction at an offset is a call of ``isinstance``, or a pattern that matches a class."""
    instructions = list(dis.get_instructions(function))
    running = next((x for x in instructions if x.offset == at), None)
    if running is None or running.positions is None:
        return False
    if running.opname == "MATCH_CLASS":
        return True
    start = running.positions.lineno, running.positions.col_offset
    # A call begins where the name of what it calls does.
    return None not in start and any(
        x.argval == "isinstance"
        and x.positions is not None
        and (x.positions.lineno, x.positions.col_offset) == start
        for x in instructions
        if x.opname in {"LOAD_GLOBAL", "LOAD_NAME"}
    )


def _unpacked(frame: FrameType) -> int | None:
    """Returns how many names the running instruction unpacks a value into; None where it does not."""
    code, at = frame.f_code.co_code, frame.f_lasti
    return code[at + 1] if code[at] == _UNPACK else None
