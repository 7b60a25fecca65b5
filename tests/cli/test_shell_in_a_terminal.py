"""``morphir debug`` in a real terminal: completion by Tab, help, what is typed, and how it ends."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from terminal import Terminal

PROMPT = "(morphir) "


@pytest.fixture
def shell(model_file: Path, open_terminal: Callable[..., Terminal]) -> Terminal:
    place = ("--channels", 1, "--image-size", 8)
    shell = open_terminal(
        "-m", "morphir", "debug", f"{model_file}:build", *place, prompt=PROMPT, INPUTRC="/dev/null"
    )
    opened = shell.answer()
    assert "point 0 of 0: #0 start: the start" in opened and "help lists the commands" in opened
    return shell


def test_typing_completing_and_asking_for_help(shell: Terminal) -> None:
    assert {"bisect", "lineage", "goto"} <= set(shell.ask("help").split())
    assert "the textual IR, or one node's line of it" in shell.ask("help print")
    assert shell.ask("lin\tconv1 0").startswith("lineage conv1 0\nchannel 0: channel 0 of the start")
    assert "point 1 of 1: #1 split-channels: rewrite 1" in shell.ask("spl\tconv1 2")
    assert shell.ask("space conv1\t").splitlines()[1].startswith("ChannelSpace('conv1': 5 exact")
    assert re.search(r"conv1\s+conv2", shell.ask("space conv\t\t1")), "both are listed, the line stays"
    assert "ChannelSpace('conv1'" in shell.answer()
    assert "%norm1: " in shell.ask("print no\t")
    assert "point 0 of 1" in shell.ask("back") and "point 1 of 1" in shell.ask("goto e\t")
    assert "error: the oracle passes at the last point, 1" in shell.ask("bisect ver\t")
    assert "error: there is no command 'dance'" in shell.ask("dance")
    shell.end("quit")


def test_the_end_of_the_input_and_an_interrupt(shell: Terminal) -> None:
    shell.interrupt()
    shell.process.sendline("where")
    shell.process.expect_exact("point 0 of 0: #0 start")  # an interrupt ends no session
    shell.answer()
    shell.process.sendeof()
    shell.process.read()
    shell.process.close()
    assert shell.process.exitstatus == 0
