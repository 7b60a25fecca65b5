"""The page of the command line has a section for every command, and each option that the command has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from morphir.cli.app import app
from morphir.cli.instruments import InspectableCommand

DOCS = Path(__file__).resolve().parent.parent / "docs"
INTRODUCTION, *_ = (DOCS / "cli.md").read_text().partition("\n## ")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", (DOCS / "cli.md").read_text(), re.M | re.S))
OF_PASSES = (DOCS / "debugging.md").read_text().partition("## In a program")[0]
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]


def named(text: str) -> set[str]:
    """The options that stand in code, on their own or with a value; not those of an example's lines."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return set(re.findall(r"`(--[a-z-]+)[^`]*`", prose))


def shared() -> Iterator[tuple[str, str]]:
    """Command and option, of each row of the table of options that several commands have."""
    for row in re.findall(r"^\| (`--.*)$", INTRODUCTION, re.M):
        options, of, *_ = row.split(" | ")
        for command in re.findall(r"`(\w+)`", of):
            yield from ((command, option) for option in named(options))


def options_of(command: str) -> set[str]:
    real = [p for p in COMMANDS[command].params if p.opts[0].startswith("--")]
    return {option for p in real for option in (*p.opts, *p.secondary_opts)}


def test_the_page_has_the_commands_and_no_others() -> None:
    assert set(SECTIONS) == set(COMMANDS)
    assert re.findall(r"^\| `morphir (\w+)` \|", INTRODUCTION, re.M) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_on_the_page(command: str) -> None:
    written = named(SECTIONS[command]) | {option for of, option in shared() if of == command}
    if isinstance(COMMANDS[command], InspectableCommand):
        written |= named(OF_PASSES)
    assert options_of(command) - written == set()


def test_the_tables_name_no_option_that_there_is_not() -> None:
    assert [(command, option) for command, option in shared() if option not in options_of(command)] == []
    rows = [
        (name, row) for name, text in SECTIONS.items() for row in re.findall(r"^\| (`--.*?) \|", text, re.M)
    ]
    assert [(name, row) for name, row in rows if named(row) - options_of(name)] == []


def test_the_page_says_which_commands_run_passes() -> None:
    (line,) = re.findall(r"^(`grow`.*?) can print, time and verify passes", INTRODUCTION, re.M)
    real = {name for name, command in COMMANDS.items() if isinstance(command, InspectableCommand)}
    assert set(re.findall(r"`(\w+)`", line)) == real
