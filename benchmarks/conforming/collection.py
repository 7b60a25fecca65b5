"""Where models come from: torchvision's list of classifiers, or a Python file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

from torch import nn
from torchvision import models

Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class Collection:
    """Models by name.

    Attributes:
        label: Names the folder of results.
        builders: Name to what makes the model; called without arguments, or with an image size.
    """

    label: str
    builders: Mapping[str, Builder]

    @staticmethod
    def of(spec: str) -> Collection:
        """Reads ``torchvision``, ``path/to/file.py`` or ``path/to/file.py:factory``."""
        if spec == "torchvision":
            return Collection(spec, {name: _torchvision(name) for name in _smallest_first()})
        file, _, factory = spec.partition(".py:")
        path = Path(f"{file}.py" if factory else spec)
        module = _import(path)
        names = [factory] if factory else _makers(module)
        return Collection(path.stem, {name: getattr(module, name) for name in names})

    @property
    def names(self) -> list[str]:
        """The models in the order in which they are examined."""
        return list(self.builders)

    def builder(self, name: str) -> Builder:
        """What makes one model."""
        return self.builders[name]


def _torchvision(name: str) -> Builder:
    return partial(models.get_model, name, weights=None)


def _smallest_first() -> list[str]:
    def parameters(name: str) -> int:
        return models.get_model_weights(name)["DEFAULT"].meta["num_params"]

    return sorted(models.list_models(module=models), key=parameters)


def _import(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


def _makers(module: ModuleType) -> list[str]:
    """Every public function of a file that says it returns a module and needs no argument."""
    found = []
    for name, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
            signature = inspect.signature(value)
            required = [p for p in signature.parameters.values() if p.default is p.empty]
            if not required and signature.return_annotation in (nn.Module, "nn.Module"):
                found.append(name)
    return found
