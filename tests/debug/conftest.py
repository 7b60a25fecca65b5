"""What debuggers are pointed at."""

from __future__ import annotations

from pathlib import Path

import pytest

from debug.places import Places


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """The breakpoints of ``stepped.py``; processes that the test starts write into the same folder."""
    monkeypatch.setenv("MORPHIR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr("sys.breakpointhook", lambda: None)
        return Places.make(tmp_path)
