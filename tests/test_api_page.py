"""The page of public names has each of them, with its parameters and their defaults."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import morphir
from morphir.runtime.growing import events

DOCS = Path(__file__).resolve().parent.parent / "docs"
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", (DOCS / "api.md").read_text(), re.M | re.S))
WITHOUT_PARAMETERS = {"Graph", "GrowthConfig", "MorphirError"}


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


@pytest.mark.parametrize("event", events.Event.__args__, ids=lambda event: event.__name__)
def test_the_page_of_configuration_has_every_event_with_its_fields(event: type) -> None:
    fields = ", ".join(f"`{name}`" for name in event.__dataclass_fields__)
    page = (DOCS / "configuration.md").read_text()
    assert f"\n- `{event.__name__}` ({fields}): " in page
