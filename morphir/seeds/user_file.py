"""``path/to/file.py:factory``: a model that the user's own file builds."""

from __future__ import annotations

import inspect
import itertools
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from torch import nn

from morphir.errors import MorphirError

Factory = Callable[..., object]
_fresh = itertools.count()


def matches(spec: str) -> bool:
    """Whether ``spec`` has the form of a Python file, with or without a factory."""
    return spec.endswith(".py") or ".py:" in spec


def seed(spec: str) -> partial[nn.Module]:
    """The builder that ``path/to/file.py:factory`` names; the file is imported here, once.

    Raises:
        MorphirError: No factory is named, the file or the factory does not exist, or importing fails.
    """
    return partial(_build, *user_function(spec))


def user_function(spec: str, kind: str = "model", noun: str = "factory") -> tuple[Path, Factory]:
    """Imports a function of the user's, and returns it with its file.

    Args:
        spec: ``path/to/file.py:name``.
        kind: What the file is called in messages.
        noun: What the function is called in them.

    Raises:
        MorphirError: No function is named, the file or the function does not exist, or importing fails.
    """
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name:
        raise MorphirError(f"'{spec}' names no {noun}", hint=f"write path/to/file.py:{noun}")
    path = Path(file)
    if not path.is_file():
        raise MorphirError(f"{kind} file '{file}' does not exist", hint=f"write path/to/file.py:{noun}")
    module = _import(path, kind)
    function = getattr(module, name, None)
    if not callable(function):
        raise MorphirError(f"'{file}' has no {noun} '{name}'", hint=_callables(module))
    return path, function


def _build(path: Path, factory: Factory, **sizes: int | None) -> nn.Module:
    arguments = _accepted(path, factory, sizes)
    name = _name(factory)
    with user_code(path, f"factory '{name}' failed"):
        model = factory(**arguments)
    if not isinstance(model, nn.Module):
        raise MorphirError(
            f"factory '{name}' returned {type(model).__name__}, not a torch.nn.Module", source=path
        )
    return model


def _accepted(path: Path, factory: Factory, sizes: dict[str, int | None]) -> dict[str, int]:
    """Those of ``sizes`` that the factory's signature takes; an error where a width would be lost."""
    signature = inspect.signature(factory)
    kinds = inspect.Parameter
    takes_all = any(p.kind is kinds.VAR_KEYWORD for p in signature.parameters.values())
    by_name = (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    names = {p.name for p in signature.parameters.values() if p.kind in by_name}
    given = {key: value for key, value in sizes.items() if value is not None}
    arguments = {key: value for key, value in given.items() if takes_all or key in names}
    name = _name(factory)
    if "width" in given and "width" not in arguments:
        raise MorphirError(f"factory '{name}' takes no width", source=path, hint="leave --width out")
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise MorphirError(
            f"factory '{name}{signature}' cannot be called: {error}",
            source=path,
            hint=f"it is called with those of {', '.join(sizes)} that it names; give the others defaults",
        ) from error
    return arguments


def _import(path: Path, kind: str) -> ModuleType:
    name, file = f"morphir_user_model_{next(_fresh)}_{path.stem}", str(path.resolve())
    loader = SourceFileLoader(name, file)
    module = ModuleType(name)
    module.__file__ = file
    sys.modules[name] = module  # dataclasses and inspect look a class's module up here
    try:
        with user_code(path, f"{kind} file cannot be imported"):
            # Not exec_module: its bytecode cache misses an edit made within the same second.
            exec(loader.source_to_code(loader.get_data(file), file), module.__dict__)
    except MorphirError:
        del sys.modules[name]
        raise
    return module


@contextmanager
def user_code(path: Path, what: str) -> Generator[None]:
    """Run code of the user's: its neighbours are importable, its exceptions name its line."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    except MorphirError:
        raise
    except (Exception, SystemExit) as error:
        message = f"{what}: {type(error).__name__}: {error}"
        raise MorphirError(
            message, source=_line(path, error), hint="run the file by itself to see it fail"
        ) from error
    finally:
        sys.path.remove(folder)


def _line(path: Path, error: Exception | SystemExit) -> str:
    """The innermost line of the user's file in ``error``'s traceback, as ``file.py:12``."""
    file = str(path.resolve())
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _name(factory: Factory) -> str:
    return getattr(factory, "__name__", type(factory).__name__)


def _callables(module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return f"it defines {', '.join(own)}" if own else "it defines no function or class"
