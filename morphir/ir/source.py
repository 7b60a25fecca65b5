"""Where a graph node comes from: the user's file and line."""

from __future__ import annotations

import collections
import os
import site
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import fx

_PACKAGE = Path(__file__).parent.parent
_OWN = tuple(f"{_PACKAGE / part}{os.sep}" for part in ("ir", "analysis", "runtime", "cli"))
_STANDARD_LIBRARY = frozenset({Path(os.__file__).parent, Path(collections.__file__).parent})
_PLACES = map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib", "scripts"))
_INSTALLED = tuple(f"{place}{os.sep}" for place in (*_PLACES, *site.getsitepackages()))
_TRACER = str(_PACKAGE / "ir" / "tracer.py")
FORWARD_PREFIX = "morphir_forward_"
"""How the files begin that hold the generated forwards of graphs."""
_INTERNAL = (f"{Path(torch.__file__).parent}{os.sep}", *_OWN, str(_PACKAGE / "__main__.py"))


@dataclass(frozen=True)
class SourceLocation:
    """A line of the user's program; prints as ``net.py:12``."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line}"

    @staticmethod
    def parse(text: str) -> SourceLocation:
        """Reads ``net.py:12``."""
        file, _, line = text.rpartition(":")
        return SourceLocation(file, int(line))


def located(node: str | None, source: object | None) -> str:
    """Returns where something is, as `` at %conv (net.py:12)``; empty where there is no node."""
    line = f" ({source})" if source else ""
    return f" at %{node}{line}" if node else ""


@cache
def is_user_file(filename: str, *, standard_library: bool = True) -> bool:
    """Whether a file is neither torch's, nor the tracer's, nor generated.

    Args:
        filename: The file.
        standard_library: What to say of a file of Python's own.
    """
    if not standard_library and Path(filename).parent in _STANDARD_LIBRARY:
        return False
    generated = Path(filename).name.startswith(FORWARD_PREFIX)
    return not generated and not filename.startswith((*_INTERNAL, "<"))


def calling_user_line() -> SourceLocation | None:
    """Returns the innermost line on the stack that is neither torch's nor the tracer's.

    A model may be an installed package's, so its lines count. Outside the model, where no line of it is on
    the stack, only a program of the user's counts: not the command line's own machinery.
    """
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    in_model = True
    while frame is not None:
        file = frame.f_code.co_filename
        if is_user_file(file) and (in_model or not _is_installed(file)):
            return SourceLocation(file, frame.f_lineno)
        in_model = in_model and not (file == _TRACER and frame.f_code.co_name == "trace")
        frame = frame.f_back
    return None


@cache
def _is_installed(filename: str) -> bool:
    """Whether a file is Python's own, an installed package's, or an installed command."""
    return filename.startswith(_INSTALLED)


def failing_user_line(traceback: TracebackType | None) -> SourceLocation | None:
    """Returns the innermost user line of a traceback."""
    found: SourceLocation | None = None
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if is_user_file(filename):
            found = SourceLocation(filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def source_of(node: fx.Node) -> SourceLocation | None:
    """Returns the user's line that made ``node``, or None for nodes that MorphIR made."""
    found = node.meta.get("source")
    return found if isinstance(found, SourceLocation) else None
