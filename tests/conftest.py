"""What every test shares: fixed seeds, one thread, golden files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from terminal import Terminal

torch.set_num_threads(1)
os.environ["MORPHIR_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / "morphir-tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files from this run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A group of tests is one worker's, which makes its kernels once; it takes long, and starts first."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    """``open_terminal(...)`` is a :class:`Terminal` that ends with the test, however that does."""
    opened: list[Terminal] = []

    def start(*arguments: object, **options: str) -> Terminal:
        opened.append(Terminal(*arguments, **options))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)`` compares with ``golden/<name>.txt`` beside the test file."""
    folder = Path(request.path).parent / "golden"

    def check(name: str, text: str) -> None:
        path = folder / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            folder.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no golden file {path}; run pytest --update-golden"
        assert text == path.read_text()

    return check
