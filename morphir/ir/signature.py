"""A model's forward function, bound to the example inputs: which placeholders its program has.

``*args`` and ``**kwargs`` become as many named inputs as the example inputs give.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from morphir.errors import TraceError
from morphir.ir.values import cloned

_Parameter = inspect.Parameter


@dataclass(frozen=True)
class Signature:
    """The inputs of one program.

    Attributes:
        parameters: The forward function's own parameters, without ``self``.
        placeholders: Name to its default in a tuple, or to an empty one; in the program's order.
        values: Name to the example value.
        extra: Names that stand for what ``*args`` takes, and for what ``**kwargs`` takes.
    """

    parameters: Mapping[str, inspect.Parameter]
    placeholders: Mapping[str, tuple[Any, ...]]
    values: Mapping[str, Any]
    extra: Mapping[str, tuple[str, ...]]

    @staticmethod
    def bind(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Signature:
        """Binds the example inputs.

        Raises:
            TraceError: if the model does not take them.
        """
        parameters = _own_parameters(model)
        try:
            bound = inspect.Signature(list(parameters.values())).bind(*args, **kwargs)
        except TypeError as error:
            given = ", ".join((*("a tensor" for _ in args), *kwargs))
            raise TraceError(
                f"the model takes ({', '.join(parameters)}), the example inputs are ({given}): {error}",
                hint="pass a tensor, a tuple of positional arguments, or a dict of keyword arguments",
            ) from error
        return _expanded(parameters, bound.arguments)

    def arguments(self, found: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Returns the forward function's positional and keyword arguments, from what each name stands for."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        skipped = False
        for name, parameter in self.parameters.items():
            if parameter.kind is _Parameter.VAR_POSITIONAL:
                args += [found[extra] for extra in self.extra[name]]
            elif parameter.kind is _Parameter.VAR_KEYWORD:
                kwargs |= {extra: found[extra] for extra in self.extra[name]}
            elif name not in found:
                skipped = True
            elif skipped or parameter.kind is _Parameter.KEYWORD_ONLY:
                kwargs[name] = found[name]
            else:
                args.append(found[name])
        return args, kwargs

    def caller(self, root: nn.Module) -> Callable[[], Any]:
        """Returns a function that runs the model on copies of the example inputs."""

        def call() -> Any:
            args, kwargs = self.arguments(self.values)
            return root(*cloned(args), **cloned(kwargs))

        return call


def _own_parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """Returns the forward parameters without ``self``, which a wrapper may take among ``*args``."""
    try:
        parameters = dict(inspect.signature(type(model).forward).parameters)
    except (AttributeError, TypeError, ValueError) as error:
        raise TraceError(
            f"{type(model).__name__} has no forward function in Python: {error}",
            hint="trace the Python model that it was made from",
        ) from error
    first = next(iter(parameters), None)
    if first is not None and parameters[first].kind is not _Parameter.VAR_POSITIONAL:
        del parameters[first]
    return parameters


def _expanded(parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> Signature:
    """Gives every input a name; a default goes where an input without one has to come after it."""
    placeholders: dict[str, tuple[Any, ...]] = {}
    values: dict[str, Any] = {}
    extra: dict[str, tuple[str, ...]] = {}
    for name, parameter in parameters.items():
        if parameter.kind is _Parameter.VAR_POSITIONAL:
            items = {f"{name}_{at}": value for at, value in enumerate(given.get(name, ()))}
        elif parameter.kind is _Parameter.VAR_KEYWORD:
            items = dict(given.get(name, {}))
        else:
            default = () if parameter.default is _Parameter.empty else (parameter.default,)
            placeholders[name] = default
            values[name] = given.get(name, parameter.default)
            continue
        extra[name] = tuple(items)
        placeholders |= dict.fromkeys(items, ())
        values |= items
    ordered = _ordered(placeholders, given)
    return Signature(parameters, ordered, {name: values[name] for name in ordered}, extra)


def _ordered(
    placeholders: Mapping[str, tuple[Any, ...]], given: Mapping[str, Any]
) -> dict[str, tuple[Any, ...]]:
    """Drops defaults, and inputs left at theirs, where an input without one comes later."""
    names = list(placeholders)
    last = max((at for at, name in enumerate(names) if not placeholders[name]), default=-1)
    early = set(names[: last + 1])
    return {
        name: () if name in early else default
        for name, default in placeholders.items()
        if name not in early or not default or name in given
    }
