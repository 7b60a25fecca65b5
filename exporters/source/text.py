"""Prints a program as a Python file."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from exporters.source.bodies import Statement
from exporters.source.classes import ClassDefinition
from exporters.source.names import UNREAD, variable_names
from exporters.source.program import Program
from exporters.source.template import Ref, Template, literal, render
from exporters.source.wrap import wrap

_HEADER = '''"""{name}: {parameters:,} parameters, exported by MorphIR {version}.

Load it with its weights (needs the safetensors package):

    network = load()          # reads {weights} beside this file
    network = load("path/to/{weights}")
"""
'''
_LOAD = '''
def load(path=None):
    """Returns the network with its weights, ready for inference; ``.train()`` it to train on."""
    from safetensors.torch import load_file

    network = {name}()
    network.load_state_dict(load_file(path or __file__.removesuffix(".py") + ".safetensors"))
    return network.eval()
'''
_RESERVED = {"self", "torch", "nn", "F", "math", "operator"}


def morphir_version() -> str:
    """Returns the installed version."""
    try:
        return metadata.version("morphir")
    except metadata.PackageNotFoundError:
        return "(uninstalled)"


def print_program(program: Program, *, parameters: int, weights: str) -> str:
    """Returns the source file.

    Args:
        program: Its classes.
        parameters: Number of parameters, for the header.
        weights: File name of the weights, for the header.
    """
    name = program.classes[-1].name
    blocks = [*program.helpers, *("\n".join(_class(definition)) for definition in program.classes)]
    code = "\n\n\n".join(blocks)
    header = _HEADER.format(name=name, parameters=parameters, weights=weights, version=morphir_version())
    return f"{header}\n{_imports(code)}\n\n\n{code}\n\n{_LOAD.format(name=name)}"


def _imports(code: str) -> str:
    standard = [f"import {module}" for module in ("math", "operator") if f"{module}." in code]
    if "OrderedDict(" in code:
        standard.append("from collections import OrderedDict")
    if "@dataclass" in code:
        standard.append("from dataclasses import dataclass")
    if "(NamedTuple)" in code:
        standard.append("from typing import NamedTuple")
    torch = ["import torch"] if "torch." in code else []
    functional = ["import torch.nn.functional as F"] if "F." in code else []
    own = "\n".join([*torch, *functional, "from torch import nn"])
    return "\n".join([*standard, "", own]) if standard else own


def _class(definition: ClassDefinition) -> Iterator[str]:
    blueprint = definition.blueprint
    yield f"class {definition.name}({blueprint.base}):"
    options = "".join(
        f", {option.name}" + (f"={literal(option.default.value)}" if option.default else "")
        for option in definition.options
    )
    yield from wrap(f"def __init__(self{options}):", 4)
    for at, template in enumerate(blueprint.setup):
        yield from wrap(render(template), 8)
        if at == 0:
            yield from (f"        self.{name} = {name}" for name in definition.stored)
    if blueprint.body is not None:
        yield ""
        yield from _forward(definition)


def _forward(definition: ClassDefinition) -> Iterator[str]:
    blueprint = definition.blueprint
    body = blueprint.body
    assert body is not None
    result: Template = body.result or ()
    inputs = {number: name.split("=")[0].lstrip("*") for number, name in blueprint.parameters}
    names = variable_names(inputs, body.statements, result, _RESERVED)
    parameters = ["self", *(name for _, name in blueprint.parameters)]
    yield from wrap(f"def forward({', '.join(parameters)}):", 4)
    *earlier, last = body.statements or (None,)
    yield from (line for statement in earlier if statement for line in wrap(_statement(statement, names), 8))
    returned = tuple(Ref(target) for target in last.targets) if last is not None else ()
    if last is not None and returned and result == returned and not last.augmented:
        result, last = last.value, None
    if last is not None:
        yield from wrap(_statement(last, names), 8)
    if result:
        yield from wrap(f"return {render(result, names)}", 8)
    elif not body.statements:
        yield "        pass"


def _statement(statement: Statement, names: dict[int, str]) -> str:
    value = render(statement.value, names)
    targets = ", ".join(names[target] for target in statement.targets)
    if targets in {"", UNREAD}:
        return value
    return f"{targets} {statement.augmented or '='} {value}"
