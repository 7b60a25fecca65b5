"""What an explanation of a channel space holds, and how it reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from morphir.ir.channels import Role, Verdict
from morphir.ir.codes import CODES
from morphir.ir.source import SourceLocation, located

_FEW = 3
"""So many evenly spaced numbers are written one by one."""


@dataclass(frozen=True)
class Site:
    """Entries along one axis of a parameter, buffer or model input; prints as the user would index it.

    Attributes:
        tensor: ``state_dict`` key, or ``%name`` of a model input.
        axis: Which axis.
        entries: Which entries along it.
        role: What the axis is to the operator that reads it; None for a model input.
        node: Name of the node that reads it.
        source: The user's line of that node.
    """

    tensor: str
    axis: int
    entries: tuple[int, ...]
    role: Role | None = None
    node: str | None = None
    source: SourceLocation | None = None

    @property
    def text(self) -> str:
        """As ``layer1.0.conv2[3]`` for an output channel of a layer, ``fc.weight[:, 48-63]`` otherwise."""
        entries = ranges(self.entries)
        if self.role == "producer" and self.tensor.endswith(".weight"):
            return f"{self.tensor.removesuffix('.weight')}[{entries}]"
        return f"{self.tensor}[{':, ' * self.axis}{entries}]"

    def __str__(self) -> str:
        return f"{self.text} ({self.source})" if self.source else self.text

    def to_json(self) -> dict[str, Any]:
        """Returns the site as plain data."""
        return {**asdict(self), "entries": list(self.entries), "source": _text(self.source)}

    @property
    def likeness(self) -> tuple[object, ...]:
        """What sites of like channels share."""
        return self.tensor, self.axis, len(self.entries), self.node


@dataclass(frozen=True)
class TieStep:
    """A tie: ``there`` belongs to the group because ``here`` does, entry by entry.

    Attributes:
        here: The known site.
        there: What is tied to it.
        code: Of the tie.
        node: Name of the node that demands it.
        source: The user's line of that node.
    """

    here: Site
    there: Site
    code: str
    node: str
    source: SourceLocation | None = None

    @property
    def reason(self) -> str:
        """The tie in words."""
        at = f"%{self.node} ({self.source})" if self.source else f"%{self.node}"
        return CODES[self.code].meaning.format(node=at)

    def __str__(self) -> str:
        return f"{self.there} is tied to {self.here.text}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """Returns the tie as plain data."""
        return {
            "here": self.here.to_json(),
            "there": self.there.to_json(),
            "code": self.code,
            "reason": self.reason,
            "node": self.node,
            "source": _text(self.source),
        }

    @property
    def likeness(self) -> tuple[object, ...]:
        """What the ties of like groups share."""
        return self.here.likeness, self.there.likeness, self.code, self.node


@dataclass(frozen=True)
class GroupExplanation:
    """Why some channel groups of a space, all alike, are what they are.

    Attributes:
        space: Name of the space.
        groups: Their indices; sites are those of the first.
        verdict: What may be done to each.
        start: The first producer's row from which ``path`` leads.
        path: The shortest chain of ties from the first producer to what is restricted; empty where that is
            its own output, or where nothing restricts the group.
        others: Further restrictions, which would hold if the one of the verdict were gone.
        ties: Why all rows of all the group's producers belong together.
        touches: Every parameter and buffer whose entries a split or a prune changes.
        consumers: What reads the channels: for each node, its kernel's columns.
    """

    space: str
    groups: tuple[int, ...]
    verdict: Verdict
    start: Site
    path: tuple[TieStep, ...]
    others: tuple[Verdict, ...]
    ties: tuple[TieStep, ...]
    touches: tuple[Site, ...]
    consumers: tuple[Site, ...]

    def __str__(self) -> str:
        tag = f" [{self.verdict.code}]" if self.verdict.code else ""
        more = f" (sites are those of group {self.groups[0]})" if len(self.groups) > 1 else ""
        lines = [f"{self.space}[{ranges(self.groups)}]: {self.verdict.kind}{tag}{more}"]
        if self.verdict.code:
            lines += self._why_restricted()
        return "\n".join([*lines, *self._what_belongs()])

    def _why_restricted(self) -> list[str]:
        verdict = self.verdict
        return [
            f"  {self.start}",
            *(f"  -> {step.there}: {step.reason}" for step in self.path),
            f"  => {verdict.reason}{located(verdict.node, verdict.source)}: {verdict.kind}",
            *(f"  also {v.kind}: {v.reason} [{v.code}]{located(v.node, v.source)}" for v in self.others),
            *([f"  hint: {verdict.suggestion}"] if verdict.suggestion else []),
        ]

    def _what_belongs(self) -> list[str]:
        """The producers and what ties them; for a group that can be rewritten, all that this touches."""
        parts = [
            ("made by", [str(site) for site in self.touches if site.role == "producer"]),
            ("since", [str(step) for step in self.ties]),
        ]
        if self.verdict.kind != "frozen":
            parts += [
                ("kept by", _by_module([site for site in self.touches if site.role == "region"])),
                ("read by", [str(site) for site in self.consumers]),
            ]
        return [
            f"  {name if at == 0 else '':7}  {text}" for name, texts in parts for at, text in enumerate(texts)
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns the explanation as plain data."""
        return {
            "space": self.space,
            "groups": list(self.groups),
            "verdict": self.verdict.to_json(),
            "start": self.start.to_json(),
            "path": [step.to_json() for step in self.path],
            "others": [verdict.to_json() for verdict in self.others],
            "ties": [step.to_json() for step in self.ties],
            "touches": [site.to_json() for site in self.touches],
            "consumers": [site.to_json() for site in self.consumers],
        }

    @property
    def likeness(self) -> tuple[object, ...]:
        """What like groups share: all but the entries."""
        return (
            *(self.verdict, self.start.likeness, self.others),
            tuple(step.likeness for step in self.path),
            tuple(step.likeness for step in self.ties),
            tuple(site.likeness for site in (*self.touches, *self.consumers)),
        )


@dataclass(frozen=True)
class Explanation:
    """Why the channel groups of a space, or one of them, are what they are.

    Attributes:
        space: Name of the space.
        width: Number of its groups.
        groups: Like groups together, in order of their first.
    """

    space: str
    width: int
    groups: tuple[GroupExplanation, ...]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.groups))

    def to_json(self) -> dict[str, Any]:
        """Returns the explanation as plain data."""
        return {
            "space": self.space,
            "width": self.width,
            "groups": [group.to_json() for group in self.groups],
        }


def _by_module(sites: Iterable[Site]) -> list[str]:
    """Returns one line for what a module holds, as ``bn1[3]: weight, bias, running_mean, running_var``."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for site in sites:
        module, _, name = site.tensor.rpartition(".")
        subscript = f"[{':, ' * site.axis}{ranges(site.entries)}]"
        names.setdefault((module, subscript, f" ({site.source})" if site.source else ""), []).append(name)
    return [
        f"{module}{subscript}: {', '.join(own)}{where}" if module else f"{', '.join(own)}{subscript}{where}"
        for (module, subscript, where), own in names.items()
    ]


def ranges(numbers: Sequence[int]) -> str:
    """Returns ascending integers as text, as ``0-3, 7``, or ``0-96 by 32``."""
    steps = {after - before for before, after in pairwise(numbers)}
    if len(numbers) > _FEW and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]}-{numbers[-1]} by {steps.pop()}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)
