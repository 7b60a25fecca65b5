"""Optional dependencies, installed into the running environment where they are missing."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

_PROJECT = Path(__file__).resolve().parent.parent.parent / "pyproject.toml"


def install_missing(group: str, names: Collection[str]) -> None:
    """Installs with pip what an optional-dependency group of the project lists and this environment lacks.

    Args:
        group: Name of the group in ``pyproject.toml``.
        names: The distributions of the group that are wanted.
    """
    missing = list(_missing(group, names))
    if not missing:
        return
    print(f"installing {', '.join(missing)} into {sys.prefix} (the optional group {group!r})", flush=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *missing]
    if subprocess.run(pip).returncode:
        sys.exit(f"pip could not install {', '.join(missing)}; without it, name the other parts with --parts")
    importlib.invalidate_caches()


def _missing(group: str, names: Collection[str]) -> Iterator[str]:
    project = tomllib.loads(_PROJECT.read_text())["project"]
    for text in project["optional-dependencies"][group]:
        requirement = Requirement(text)
        if requirement.name in names and not _installed(requirement):
            yield text


def _installed(requirement: Requirement) -> bool:
    try:
        return metadata.version(requirement.name) in requirement.specifier
    except metadata.PackageNotFoundError:
        return False
