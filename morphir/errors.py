"""The one error type that users meet: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns the start of a hint, ``"did you mean a or b? "``; empty where nothing known is close."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}? " if close else ""


class MorphirError(Exception):
    """Base of every error that a user can cause.

    Args:
        message: One sentence that says what is wrong.
        node: Name of the graph node that the error is about.
        source: The user's source line, as ``file.py:12``.
        hint: What the user can do.
        code: Machine-readable reason of a refusal; see docs/verdicts.md.
    """

    def __init__(
        self,
        message: str,
        *,
        node: str | None = None,
        source: object | None = None,
        hint: str | None = None,
        code: str | None = None,
    ) -> None:
        self.message = message
        self.node = node
        self.source = None if source is None else str(source)
        self.hint = hint
        self.code = code
        super().__init__(self._render())

    def _render(self) -> str:
        lines = [f"{self.message} [{self.code}]" if self.code else self.message]
        if self.node is not None:
            where = f" ({self.source})" if self.source else ""
            lines.append(f"  at: %{self.node}{where}")
        elif self.source is not None:
            lines.append(f"  at: {self.source}")
        if self.hint is not None:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


def reason(error: BaseException) -> str:
    """Returns what an error says, with its type where its text alone may say little (``KeyError: 'x'``)."""
    text = str(error)
    return text if isinstance(error, (MorphirError, RuntimeError)) else f"{type(error).__name__}: {text}"


class MorphirWarning(UserWarning):
    """Something that a user should know, and that goes on all the same."""


class TraceError(MorphirError):
    """The model cannot be traced by ``torch.fx``, or fails on the example inputs."""


class AnalysisError(TraceError):
    """The traced program fails where it is run on the shapes of its example inputs, or on rewritten ones."""


class GuardError(MorphirError):
    """An input takes another path through the model than the example inputs did."""


class VerificationError(MorphirError):
    """A graph breaks an invariant of the IR, or a rewrite was not what it promised to be."""


class RewriteError(MorphirError):
    """A requested rewrite is not legal on this graph; nothing was changed."""


class ExportError(MorphirError):
    """A graph cannot be exported, or an export does not compute what the graph computes."""


class TargetLimitError(ExportError):
    """The target has a limit that this graph exceeds; nothing is wrong with the graph."""
