"""What the commands' options say."""

from __future__ import annotations

import pytest
import typer

from exporters.registry import EXPORTERS
from morphir.cli.app import app
from morphir.data import DATASETS
from morphir.runtime.growing.config import PRESETS
from morphir.runtime.learning.curvature import CURVATURES
from morphir.seeds import SEEDS

COMMANDS = vars(typer.main.get_command(app))["commands"]


def help_of(command: str, parameter: str) -> str:
    (found,) = (p for p in COMMANDS[command].params if p.name == parameter)
    return vars(found)["help"]


@pytest.mark.parametrize(
    ("command", "parameter", "names"),
    [
        ("grow", "model", SEEDS),
        ("inspect", "subject", SEEDS),
        ("grow", "data", DATASETS),
        ("fidelity", "data", DATASETS),
        ("grow", "preset", PRESETS),
        ("fidelity", "learn", CURVATURES),
        ("export", "to", EXPORTERS),
    ],
)
def test_help_lists_what_the_registry_holds(command: str, parameter: str, names: dict[str, object]) -> None:
    text = help_of(command, parameter)
    assert [name for name in names if name not in text] == []


@pytest.mark.parametrize("parameter", ["data_dir", "download", "limit", "assignments", "device", "seed"])
def test_an_option_that_commands_share_says_the_same_in_each(parameter: str) -> None:
    assert help_of("grow", parameter) == help_of("fidelity", parameter)
