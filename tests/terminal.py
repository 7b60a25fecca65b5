"""A program in a pseudo-terminal of its own."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import morphir

PROMPT = "(Pdb) "
_PATIENCE = 120
"""Seconds until a program that says nothing more is given up."""
_MOMENT = 10
"""Seconds after which an interrupt is tried again."""


_PLAIN = {"OMP_NUM_THREADS": "1", "TERM": "dumb"}


def paths(*first: Path) -> str:
    """Returns a ``PYTHONPATH`` on which programs find what this process finds."""
    return os.pathsep.join([*map(str, first), str(Path(morphir.__file__).parent.parent), *sys.path])


class Terminal:
    """Types into a Python program, and reads what it shows.

    Args:
        arguments: Of the interpreter.
        prompt: What the program shows when it waits for a line.
        environment: Variables to set.
    """

    def __init__(self, *arguments: object, prompt: str = PROMPT, **environment: str) -> None:
        pexpect = pytest.importorskip("pexpect", reason="pexpect is not installed")
        self._prompt, self._late = prompt, pexpect.TIMEOUT
        self.process: Any = pexpect.spawn(
            sys.executable,
            [str(argument) for argument in arguments],
            env={**os.environ, "PYTHONPATH": paths(), **_PLAIN, **environment},
            encoding="utf-8",
            timeout=_PATIENCE,
            dimensions=(50, 300),
            # Tests that run in the background are deaf to Ctrl-C, and would have deaf children.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self.process.delaybeforesend = None

    def answer(self) -> str:
        """Waits for the prompt, and returns what came before it."""
        self.process.expect_exact(self._prompt)
        return self.process.before.replace("\r", "")

    def ask(self, line: str) -> str:
        """Types a line, and returns what the program answers."""
        self.process.sendline(line)
        return self.answer().removeprefix(line).strip()

    def interrupt(self) -> None:
        """Presses Ctrl-C until there is a prompt, or several.

        readline sees a signal that comes just before it waits for a key with the next key, or signal, alone.
        """
        for _ in range(_PATIENCE // _MOMENT):
            self.process.sendintr()
            with suppress(self._late):
                self.process.expect_exact(self._prompt, timeout=_MOMENT)
                return
        raise AssertionError("no prompt after an interrupt")

    def close(self) -> None:
        """Ends the program, if it runs still."""
        self.process.close(force=True)

    def end(self, line: str) -> str:
        """Types the last line, and returns what the program says until it ends."""
        self.process.sendline(line)
        shown = self.process.read().replace("\r", "")
        self.process.close()
        assert self.process.exitstatus == 0, shown
        return shown
