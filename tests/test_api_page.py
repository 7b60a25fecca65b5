"""The page of public names has each of them, with its parameters and their defaults."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import morphir
from morphir.runtime.growing import events

DOCS = Path(__file__).resolve().parent.parent / "docs"
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", (DOCS / "api.md").read_text(), re.M | re.S))
DEBUGGING = (DOCS / "debugging.md").read_text()
VALUES = {
    morphir.ChannelSpace,
    morphir.GrowthResult,
    morphir.Morphism,
    morphir.Remark,
    morphir.Score,
    morphir.StepResult,
    morphir.TransformResult,
    morphir.Verdict,
}
WITHOUT_PARAMETERS = {"Graph", "GrowthConfig", "MorphirError", *(value.__name__ for value in VALUES)}


def test_the_page_has_the_public_names_and_no_others() -> None:
    assert set(SECTIONS) == {*morphir.__all__, "debug"}


@pytest.mark.parametrize("name", sorted({*morphir.__all__} - WITHOUT_PARAMETERS))
def test_a_signature_on_the_page_is_the_real_one(name: str) -> None:
    real = inspect.signature(getattr(morphir, name))
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in real.parameters.values()]
    written = re.search(rf"`{name}\((.*)\)(?: -> [^`]+)?`", SECTIONS[name])
    assert written is not None
    expected = str(inspect.Signature(plain)).replace("'", '"')
    assert f"({written[1]})" == expected


def public(kind: type) -> set[str]:
    """Fields, properties and methods of a class's own."""
    of_fields = {field.name for field in fields(kind)} if is_dataclass(kind) else set[str]()
    return {name for name in (*of_fields, *vars(kind)) if not name.startswith("_")}


@pytest.mark.parametrize("kind", sorted(VALUES, key=lambda kind: kind.__name__))
def test_what_users_hold_is_described_name_by_name(kind: type) -> None:
    internal = {
        morphir.Morphism: {"check", "parameters"},
        morphir.Remark: {"from_json"},
    }
    written = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", SECTIONS[kind.__name__]))
    assert public(kind) - written == internal.get(kind, set())


def test_what_a_learner_offers_is_on_the_page() -> None:
    written = set(re.findall(r"`learner\.(\w+)", SECTIONS["Learner"]))
    attributes = {"lr", "ema", "refused"}
    assert written == attributes | {name for name in public(morphir.Learner) if name not in attributes}


def test_every_name_of_debug_is_on_a_page() -> None:
    code = "".join(re.findall(r"```.*?```|`[^`]*`", SECTIONS["debug"] + DEBUGGING, re.S))
    assert [name for name in morphir.debug.__all__ if not re.search(rf"\b{name}\b", code)] == []


def test_the_page_of_debugging_has_every_hook_of_an_instrument() -> None:
    (listed,) = re.findall(r"subclass of `morphir.debug.Instrument` with any of (.*?)\.\s", DEBUGGING, re.S)
    hooks = [name for name in vars(morphir.debug.Instrument) if not name.startswith("_")]
    assert re.findall(r"`(\w+)`", listed) == hooks


@pytest.mark.parametrize("event", events.Event.__args__, ids=lambda event: event.__name__)
def test_the_page_of_configuration_has_every_event_with_its_fields(event: type) -> None:
    fields = ", ".join(f"`{name}`" for name in event.__dataclass_fields__)
    page = re.sub(r"\n +", " ", (DOCS / "configuration.md").read_text())
    assert f"\n- `{event.__name__}` ({fields}): " in page


def test_importing_the_package_loads_none_of_its_parts() -> None:
    code = "import sys, morphir; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = {name for name in found.split() if name.partition(".")[0] in {"morphir", "torch", "passes"}}
    assert loaded == {"morphir", "morphir.errors"}


@pytest.mark.parametrize("name", morphir.__all__)
def test_a_public_name_is_the_one_of_its_home(name: str) -> None:
    assert getattr(morphir, name).__name__ == name
