"""Where the tests of debuggers set their breakpoints: a pass, a generated forward, exported source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import passes.morph_channels
from debug import stepped

SCRIPT = Path(stepped.__file__)


@dataclass(frozen=True)
class Place:
    """A line of a file."""

    file: Path
    line: int

    @staticmethod
    def of(file: Path, text: str) -> Place:
        """Returns the one line that begins with a text, but for spaces."""
        lines = enumerate(file.read_text().splitlines(), 1)
        (found,) = (number for number, line in lines if line.lstrip().startswith(text))
        return Place(file, found)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Places:
    """The three breakpoints of ``stepped.py``, in the order in which it comes to them."""

    rewrite: Place
    forward: Place
    source: Place

    @staticmethod
    def make(folder: Path) -> Places:
        """Runs the script's rewrites here: the files are those that it will run, also in its own process."""
        graph = stepped.rewritten()
        assert graph.forward_file is not None
        return Places(
            Place.of(Path(passes.morph_channels.__file__), "maps = index_maps("),
            Place.of(graph.forward_file, "relu ="),
            Place.of(stepped.exported(graph, folder), "x = self.conv1(x)"),
        )

    @property
    def all(self) -> tuple[Place, Place, Place]:
        """The three, in that order."""
        return self.rewrite, self.forward, self.source
