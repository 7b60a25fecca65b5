"""A client of the Debug Adapter Protocol: launches a program under debugpy as VS Code does."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import IO, Any

from debug.places import Place

Message = dict[str, Any]
_PATIENCE = 120
"""Seconds until an adapter that says nothing more is given up."""


class Client:
    """Talks to debugpy's adapter over its standard input and output.

    Args:
        program: The script to debug.
        arguments: Its arguments.
        environment: Its variables.
        breakpoints: Where to stop.
    """

    def __init__(
        self,
        program: Path,
        arguments: Iterable[object],
        environment: Mapping[str, str],
        breakpoints: Iterable[Place],
    ) -> None:
        self._adapter = subprocess.Popen(
            [sys.executable, "-m", "debugpy.adapter"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._numbers = count(1)
        self._inbox: queue.Queue[Message | None] = queue.Queue()
        self._heard: list[Message] = []
        threading.Thread(target=self._listen, daemon=True).start()
        self.request("initialize", adapterID="python", linesStartAt1=True, pathFormat="path")
        launched = self._send(
            "launch",
            program=str(program),
            args=[str(argument) for argument in arguments],
            env=dict(environment),
            python=[sys.executable],
            console="internalConsole",
        )
        self._wait(lambda m: m.get("event") == "initialized")
        for place in breakpoints:
            answer = self.request(
                "setBreakpoints", source={"path": str(place.file)}, breakpoints=[{"line": place.line}]
            )
            assert [one["verified"] for one in answer["breakpoints"]] == [True], answer
        self.request("configurationDone")
        self._answer(launched)

    def close(self) -> None:
        """Ends the adapter, and with it the program."""
        self._adapter.kill()
        self._adapter.wait()

    def request(self, command: str, **arguments: object) -> Message:
        """Asks the adapter, and returns the body of its answer."""
        return self._answer(self._send(command, **arguments))

    def stopped(self) -> Message:
        """Waits until the program stops, and returns its frames' innermost."""
        thread = self._wait(lambda m: m.get("event") == "stopped")["body"]["threadId"]
        frame: Message = self.request("stackTrace", threadId=thread)["stackFrames"][0]
        return {**frame, "thread": thread}

    def resume(self, how: str, frame: Message) -> None:
        """Goes on: ``next``, ``stepIn``, ``stepOut`` or ``continue``."""
        self.request(how, threadId=frame["thread"])

    def evaluate(self, expression: str, frame: Message) -> str:
        """Returns an expression's value in a frame, as text."""
        return str(self.request("evaluate", expression=expression, frameId=frame["id"])["result"])

    def local_variables(self, frame: Message) -> dict[str, str]:
        """Returns what the pane of variables shows of a frame's locals."""
        scopes = self.request("scopes", frameId=frame["id"])["scopes"]
        (reference,) = (scope["variablesReference"] for scope in scopes if scope["name"] == "Locals")
        found = self.request("variables", variablesReference=reference)["variables"]
        return {variable["name"]: variable["value"] for variable in found}

    def output(self) -> str:
        """Waits until the program ends, and returns what it has printed."""
        self._wait(lambda m: m.get("event") == "terminated")
        events = (m["body"] for m in self._heard if m.get("event") == "output")
        return "".join(body["output"] for body in events if body.get("category") == "stdout")

    def _send(self, command: str, **arguments: object) -> int:
        number = next(self._numbers)
        message = {"seq": number, "type": "request", "command": command, "arguments": arguments}
        body = json.dumps(message).encode()
        pipe = self._adapter.stdin
        assert pipe is not None
        pipe.write(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        pipe.flush()
        return number

    def _answer(self, number: int) -> Message:
        found = self._wait(lambda m: m.get("request_seq") == number)
        assert found["success"], found
        return dict(found.get("body") or {})

    def _wait(self, wanted: Callable[[Message], bool]) -> Message:
        """Returns the first message that is wanted and was not returned before."""
        end = time.monotonic() + _PATIENCE
        while True:
            for message in self._heard:
                if wanted(message) and not message.get("taken"):
                    message["taken"] = True
                    return message
            try:
                message = self._inbox.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"the adapter says nothing more; it said {self._heard[-5:]}") from None
            assert message is not None, f"the adapter has ended; it said {self._heard[-5:]}"
            self._heard.append(message)

    def _listen(self) -> None:
        pipe = self._adapter.stdout
        assert pipe is not None
        while (message := _read(pipe)) is not None:
            self._inbox.put(message)
        self._inbox.put(None)


def _read(pipe: IO[bytes]) -> Message | None:
    length = 0
    while (line := pipe.readline()) not in {b"\r\n", b""}:
        name, _, value = line.decode().partition(":")
        length = int(value) if name == "Content-Length" else length
    return json.loads(pipe.read(length)) if line else None
