"""Passes and index maps as plain data and tensors, so that a pipeline can be stored without pickle.

A pass is a frozen dataclass whose fields are its options: it is stored as the name of its class and its
fields. Morphisms and index maps are stored alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from typing import Any, ClassVar, cast

from morphir.errors import MorphirError
from morphir.ir.index_map import IndexMap
from passes.base import Pass, PassResult
from passes.rewriter import Rewriter

_CLASS = "class"


class ReproducerError(MorphirError):
    """A reproducer cannot be written or read."""


@dataclass(frozen=True)
class ApplyMaps(Pass):
    """Applies recorded index maps as one rewrite, whatever made them.

    Attributes:
        title: Name of the pass that made them.
        maps: The index maps.
        morphisms: The morphisms as text.
    """

    name: ClassVar[str] = "apply-maps"

    title: str
    maps: tuple[IndexMap, ...]
    morphisms: tuple[str, ...] = ()

    def apply(self, rewriter: Rewriter) -> PassResult:
        """Applies them."""
        rewriter.apply(self.title, self.maps, self.morphisms)
        return PassResult(self.maps)


def encode(value: Any) -> Any:
    """Returns nested dicts, lists, tuples, plain values and tensors for a value that may hold dataclasses.

    Raises:
        ReproducerError: for a class that another process cannot import.
    """
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
            raise ReproducerError(
                f"{kind.__qualname__} cannot be stored: another process cannot import it",
                hint="define it at the top level of a module of its own",
            )
        options = {f.name: encode(getattr(value, f.name)) for f in fields(value) if f.init}
        return {_CLASS: f"{kind.__module__}:{kind.__qualname__}", "fields": options}
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {key: encode(item) for key, item in items}
    if isinstance(value, (tuple, list)):
        made = [encode(item) for item in cast("list[Any]", value)]
        return tuple(made) if isinstance(value, tuple) else made
    return value


def decode(value: Any) -> Any:
    """Puts together what :func:`encode` took apart.

    Raises:
        ReproducerError: if a class is not there any more.
    """
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value)
        if set(items) == {_CLASS, "fields"}:
            return _class(items[_CLASS])(**{key: decode(item) for key, item in items["fields"].items()})
        return {key: decode(item) for key, item in items.items()}
    if isinstance(value, (tuple, list)):
        made = [decode(item) for item in cast("list[Any]", value)]
        return tuple(made) if isinstance(value, tuple) else made
    return value


def _class(name: str) -> Any:
    module, _, path = name.partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ReproducerError(
            f"{name} cannot be imported: {error}", hint="put its folder into PYTHONPATH"
        ) from error
    if not is_dataclass(found):
        raise ReproducerError(f"{name} is no dataclass")
    return found
