"""A graph's generated forward as a file on disk, for debuggers to set breakpoints in and to step through.

The file's name is a hash of its text: the same program is the same file, in every process. What runs has the
file's lines. It lets go of each value after its last use, as fx's code does, so that nobody pays for what
nobody looks at; under a debugger the file's own text runs, which keeps every value.
"""

from __future__ import annotations

import hashlib
import linecache
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType

from filelock import FileLock
from torch import fx

from morphir.errors import MorphirWarning
from morphir.ir.channels import ChannelLayer
from morphir.ir.index_map import Rewrite
from morphir.ir.source import FORWARD_PREFIX, source_of

CACHE_VARIABLE = "MORPHIR_CACHE_DIR"
KEEP_VARIABLE = "MORPHIR_KEEP_LOCALS"
_MOST_FILES = 1000
_HEADER = (
    "# The forward of a MorphIR graph, generated: set breakpoints and step; edits do nothing.",
    "# For each node: its name, your line, the last rewrite that changed what it makes, holds or reads.",
)
_COMMENT_COLUMN = 60
_RELEASE = re.compile(r";  (?:\w+ = )+None$")


def comments(
    program: fx.Graph, layer: ChannelLayer | None, history: Sequence[Rewrite]
) -> Mapping[fx.Node, str]:
    """Returns what is said of each node: its name, the user's line, the last rewrite that changed it."""
    last = {index_map.space: rewrite for rewrite in history for index_map in rewrite.maps}
    touched: Mapping[str, frozenset[str]] = {}
    if last and layer is not None:
        touched = layer.touched_spaces()
    return {node: _comment(node, touched.get(node.name, frozenset()), last) for node in program.nodes}


def _comment(node: fx.Node, spaces: frozenset[str], last: Mapping[str, Rewrite]) -> str:
    source = source_of(node)
    rewrites = [last[space] for space in spaces if space in last]
    parts = [f"%{node.name}", *([str(source)] if source else [])]
    if rewrites:
        rewrite = max(rewrites, key=lambda rewrite: rewrite.number)
        parts.append(f"rewrite {rewrite.number}, {rewrite.name}")
    return "; ".join(parts)


def forward_text(
    generated: str, nodes: Sequence[fx.Node], node_at: Mapping[int, int | None], said: Mapping[fx.Node, str]
) -> str:
    """Returns the text of the file: fx's code, line for line, with comments and without ``x = None``.

    Args:
        generated: What fx generated.
        nodes: The program's nodes.
        node_at: Line of the body, counted from the ``def``, to the number of its node.
        said: Node to its comment.
    """
    lines = [_RELEASE.sub("", line.rstrip()) for line in generated.split("\n")]
    start = next(at for at, line in enumerate(lines) if line.startswith("def "))
    blank = [at for at in range(start) if not lines[at]]
    for at, text in zip(blank, _HEADER, strict=False):
        lines[at] = text
    inputs = [said[node] for node in nodes if node.op == "placeholder"]
    lines[start] = _commented(lines[start], ", ".join(inputs) or "no inputs")
    for at, number in node_at.items():
        line = start + at
        if number is not None and line < len(lines) and lines[line]:
            lines[line] = _commented(lines[line], said[nodes[number]])
    return "\n".join(lines).rstrip() + "\n"


def _commented(line: str, comment: str) -> str:
    return f"{line.ljust(_COMMENT_COLUMN)}  # {comment}"


def forward_folder() -> Path:
    """Returns where the files go: ``forward`` in ``MORPHIR_CACHE_DIR``, or else in the user's cache.

    Raises:
        OSError: if there is no home directory to have a cache in.
    """
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).absolute() / "forward"
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache).absolute() / "morphir" / "forward"
    try:
        return Path.home() / ".cache" / "morphir" / "forward"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def write_forward(text: str) -> Path | None:
    """Writes a file, unless it is there, and returns it; None, after one warning, where it cannot be written.

    Safe with several processes: a file appears whole or not at all. Of a thousand, the oldest tenth goes.
    """
    try:
        folder = forward_folder()
        path = folder / f"{FORWARD_PREFIX}{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}.py"
        if not _holds(path, text):
            _write(path, text)
    except OSError as error:
        warnings.warn(
            f"the generated forward cannot be written ({error}), so that debuggers cannot step through it; "
            f"name another folder in {CACHE_VARIABLE}",
            MorphirWarning,
            stacklevel=2,
        )
        return None
    return path


def _holds(path: Path, text: str) -> bool:
    try:
        found = path.read_text(encoding="utf-8") == text
        if found:
            os.utime(path)
    except (FileNotFoundError, UnicodeDecodeError):
        # Not there, dropped by another process meanwhile, or damaged.
        return False
    return found


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, new = tempfile.mkstemp(dir=path.parent, suffix=".new")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(new).replace(path)
    except BaseException:
        Path(new).unlink(missing_ok=True)
        raise
    _drop_oldest(path.parent)


def _drop_oldest(folder: Path) -> None:
    """Drops files until nine tenths are left; one writer at a time, so that they do not drop a tenth each."""
    if len(_files(folder)) <= _MOST_FILES:
        return
    with FileLock(folder.parent / f"{folder.name}.lock"):
        files = _files(folder)
        if len(files) > _MOST_FILES:
            files.sort(key=lambda file: file.stat().st_mtime)
            for file in files[: len(files) - _MOST_FILES * 9 // 10]:
                file.unlink()


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.name.startswith(FORWARD_PREFIX)]


def place(forward: FunctionType, text: str) -> None:
    """Gives a function its file; where that cannot be written, tracebacks and pdb still show its text."""
    path, code = write_forward(text), forward.__code__
    if path is not None:
        forward.__code__ = code.replace(co_filename=str(path))
    else:
        linecache.cache[code.co_filename] = (len(text), None, text.splitlines(True), code.co_filename)


def keeping_locals(forward: FunctionType, text: str) -> FunctionType:
    """Returns the function that the file's own text makes: it lets go of no value before it returns."""
    namespace = dict(forward.__globals__)
    exec(compile(text, forward.__code__.co_filename, "exec", dont_inherit=True), namespace)
    return namespace[forward.__name__]


def is_watched() -> bool:
    """Whether a debugger is at work, or ``MORPHIR_KEEP_LOCALS`` asks for what one would see."""
    if sys.gettrace() is not None or os.environ.get(KEEP_VARIABLE):
        return True
    monitoring = getattr(sys, "monitoring", None)  # Python 3.12
    return monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None
