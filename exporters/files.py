"""Files appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from morphir.errors import ExportError


@contextmanager
def staged(*places: Path) -> Generator[list[Path]]:
    """Yields a temporary file name for each place, and renames them in order when the block ends well.

    The names are the places' own, in a folder beside them. When the block raises, what was written is removed
    and the places stay as they were.

    Raises:
        ExportError: if a file cannot be written, with the system's reason.
    """
    parent = places[0].parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=parent) as folder:
            temporary = [Path(folder) / place.name for place in places]
            yield temporary
            for source, place in zip(temporary, places, strict=True):
                os.replace(source, place)
    except OSError as error:
        raise ExportError(
            f"cannot write {places[0]}: {error.strerror or error}",
            hint="check the folder's permissions and the free space",
        ) from error


def checked_path(path: str | os.PathLike[str], suffix: str) -> Path:
    """Returns the path, which must end in ``suffix``.

    Raises:
        ExportError: if it does not, or is a folder.
    """
    if not isinstance(cast("object", path), (str, os.PathLike)):
        raise ExportError(
            f"the path is a {type(path).__name__}, not a file name", hint=f"give one, such as net{suffix}"
        )
    place = Path(path)
    if place.suffix != suffix or place.is_dir():
        raise ExportError(
            f"{place} is not the name of a {suffix} file", hint=f"give a file name, such as net{suffix}"
        )
    return place
