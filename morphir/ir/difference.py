"""How two programs' textual IR differs: a unified diff with each line that changed beside what it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher


def difference(
    before: Sequence[str], after: Sequence[str], names: tuple[str, str] | None = None, *, context: int = 1
) -> Iterator[str]:
    """Yields the lines of a unified diff, as ``patch`` takes it; none where nothing differs.

    ``diff`` puts all lines that go before all that come. Here, each line that says of something, a node or a
    space, another thing than before follows what it said before.

    Args:
        before: The lines of the one text, as :func:`morphir.print_graph` makes it.
        after: Those of the other.
        names: What to call them in a header of two lines; no header where None.
        context: Lines around each change that are the same in both.
    """
    for number, group in enumerate(_matched(before, after).get_grouped_opcodes(context)):
        if number == 0 and names is not None:
            yield f"--- {names[0]}"
            yield f"+++ {names[1]}"
        (_, i1, _, j1, _), (_, _, i2, _, j2) = group[0], group[-1]
        yield f"@@ -{_range(i1, i2)} +{_range(j1, j2)} @@"
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                yield from (f" {line}" for line in before[i1:i2])
            else:
                yield from _changed(before[i1:i2], after[j1:j2])


def _changed(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    named = _matched([_name(line) for line in old], [_name(line) for line in new])
    for tag, i1, i2, j1, j2 in named.get_opcodes():
        if tag == "equal":
            for was, is_now in zip(old[i1:i2], new[j1:j2], strict=True):
                yield from (f"-{was}", f"+{is_now}")
        else:
            yield from (f"-{line}" for line in old[i1:i2])
            yield from (f"+{line}" for line in new[j1:j2])


def _matched(old: Sequence[str], new: Sequence[str]) -> SequenceMatcher[str]:
    return SequenceMatcher(None, old, new, autojunk=False)


def _name(line: str) -> str:
    """Returns what a line speaks of: all before the colon."""
    return line.partition(":")[0]


def _range(start: int, stop: int) -> str:
    """Writes the lines from ``start``, counted from 0, up to ``stop`` as a hunk's header has them."""
    length = stop - start
    return str(stop) if length == 1 else f"{start + bool(length)},{length}"
