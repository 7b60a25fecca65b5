"""From modules to classes: equal modules share one, differing literals become constructor arguments."""

from __future__ import annotations

import keyword
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from exporters.source.bodies import Body
from exporters.source.template import (
    Argument,
    Call,
    Hole,
    Template,
    bind,
    holes,
    literal,
    skeleton,
)


@dataclass(frozen=True)
class Blueprint:
    """One module of the user's, as a class with its literals open.

    Attributes:
        name: The user's class name.
        base: The class that it derives from.
        setup: The statements of ``__init__``.
        members: The attributes that ``__init__`` makes; no constructor argument is stored under these names.
        parameters: The forward function's parameters, by variable number; with their defaults.
        body: The forward function; None if the class inherits its own, or is never called.
    """

    name: str
    base: str
    setup: tuple[Template, ...]
    members: frozenset[str]
    parameters: tuple[tuple[int, str], ...] = ()
    body: Body | None = None

    @property
    def forward(self) -> tuple[Template, ...]:
        """The expressions of the forward function."""
        if self.body is None:
            return ()
        result = () if self.body.result is None else (self.body.result,)
        return (*(statement.value for statement in self.body.statements), *result)

    def skeleton(self) -> object:
        """Returns what modules have in common that can share a class."""
        shape = () if self.body is None else tuple(replace(s, value=()) for s in self.body.statements)
        templates = tuple(skeleton(template) for template in (*self.setup, *self.forward))
        return (self.name, self.base, self.members, self.parameters, self.body is None, shape, templates)


@dataclass(frozen=True)
class Option:
    """A constructor argument of an exported class."""

    name: str
    default: Hole | None


@dataclass(frozen=True)
class ClassDefinition:
    """A class to print.

    Attributes:
        name: Unique in the file.
        options: The constructor's arguments.
        stored: The options that the forward function reads, kept as attributes.
        blueprint: The class, its open literals replaced by options where they differ between modules.
    """

    name: str
    options: tuple[Option, ...]
    stored: tuple[str, ...]
    blueprint: Blueprint


@dataclass(frozen=True)
class _Column:
    """One open literal over all modules of a class."""

    hint: str
    values: tuple[object, ...]
    default: Hole | None
    in_forward: bool

    @property
    def key(self) -> tuple[str, ...]:
        """Columns with the same key are one option."""
        return tuple(literal(value) for value in self.values)


def share(
    blueprints: Mapping[str, Blueprint], taken: Counter[str]
) -> tuple[list[ClassDefinition], dict[str, Call]]:
    """Returns the classes for these modules, and for each module the call that makes it.

    Args:
        blueprints: Module path to its class.
        taken: How often each class name was used in the file so far; updated.
    """
    families: dict[object, list[str]] = {}
    for path, blueprint in blueprints.items():
        families.setdefault(blueprint.skeleton(), []).append(path)
    definitions: list[ClassDefinition] = []
    calls: dict[str, Call] = {}
    for paths in families.values():
        family = [blueprints[path] for path in paths]
        definition, arguments = _unify(family, _unique(family[0].name, taken))
        definitions.append(definition)
        calls |= {path: Call((definition.name,), found) for path, found in zip(paths, arguments, strict=True)}
    return definitions, calls


def _unique(name: str, taken: Counter[str]) -> str:
    number, taken[name] = taken[name], taken[name] + 1
    candidate = f"{name}_{number}" if number else name
    if number and candidate in taken:
        return _unique(name, taken)
    taken[candidate] += 0 if candidate == name else 1
    return candidate


def _unify(family: Sequence[Blueprint], name: str) -> tuple[ClassDefinition, list[tuple[Argument, ...]]]:
    columns = list(_columns(family))
    varying = [column for column in columns if len(set(column.key)) > 1]
    merged = _merge(varying)
    names = _option_names(list(merged.values()), family[0].members)
    by_key = dict(zip(merged, names, strict=True))
    options = [Option(by_key[key], column.default) for key, column in merged.items()]
    stored = tuple(by_key[key] for key in merged if any(c.in_forward and c.key == key for c in varying))
    blueprint = _bind_blueprint(family[0], [(by_key.get(c.key), c.in_forward) for c in columns])
    arguments = [_arguments(merged.values(), names, at) for at in range(len(family))]
    options.sort(key=lambda option: option.default is not None)
    return ClassDefinition(name, tuple(options), stored, blueprint), arguments


def _columns(family: Sequence[Blueprint]) -> Iterator[_Column]:
    def found(blueprint: Blueprint) -> Iterator[tuple[Hole, Hole | None, bool]]:
        for template in blueprint.setup:
            yield from ((hole, default, False) for hole, default in holes(template))
        for template in blueprint.forward:
            yield from ((hole, None, True) for hole, _ in holes(template))

    for row in zip(*(found(blueprint) for blueprint in family), strict=True):
        hole, default, in_forward = row[0]
        yield _Column(hole.hint, tuple(h.value for h, _, _ in row), default, in_forward)


def _merge(columns: Sequence[_Column]) -> dict[tuple[str, ...], _Column]:
    merged: dict[tuple[str, ...], _Column] = {}
    for column in columns:
        first = merged.setdefault(column.key, column)
        if first.default is not None and first.default != column.default:
            merged[column.key] = replace(first, default=None)
    return merged


def _option_names(columns: Sequence[_Column], members: frozenset[str]) -> list[str]:
    """Returns a name for each option: its hint, shortened where that is still unique."""
    short = Counter(column.hint.rsplit(".", 1)[-1] for column in columns)
    names: list[str] = []
    for column in columns:
        last = column.hint.rsplit(".", 1)[-1]
        name = last if short[last] == 1 else column.hint.replace(".", "_")
        name = name if name.isidentifier() and not keyword.iskeyword(name) else f"{last}_value"
        number = 2
        stem = name = f"{name}_value" if name in members else name
        while name in names or name in members:
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names


def _bind_blueprint(blueprint: Blueprint, found: Sequence[tuple[str | None, bool]]) -> Blueprint:
    names = iter([f"self.{name}" if name and in_forward else name for name, in_forward in found])
    setup = tuple(bind(template, names) for template in blueprint.setup)
    if blueprint.body is None:
        return replace(blueprint, setup=setup)
    statements = tuple(replace(s, value=bind(s.value, names)) for s in blueprint.body.statements)
    result = blueprint.body.result
    body = Body(blueprint.body.inputs, statements, None if result is None else bind(result, names))
    return replace(blueprint, setup=setup, body=body)


def _arguments(columns: Iterable[_Column], names: Sequence[str], at: int) -> tuple[Argument, ...]:
    arguments: list[Argument] = []
    for column, name in zip(columns, names, strict=True):
        keyword_name = name if column.default is not None else None
        arguments.append(Argument((Hole(column.values[at], name),), keyword_name, column.default))
    return tuple(sorted(arguments, key=lambda argument: argument.name is not None))
