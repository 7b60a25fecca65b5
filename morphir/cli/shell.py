"""The shell of ``morphir debug``: one method for each command, over a session of the library's."""

from __future__ import annotations

import cmd
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from exporters.registry import EXPORTERS
from morphir.analysis.explain import explain
from morphir.analysis.locality import locality
from morphir.errors import MorphirError
from morphir.ir.printer import print_graph, print_node
from morphir.morphisms.base import Morphism
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.history.bisection import Oracle, bisect, maximum_difference, user_oracle, verifier
from morphir.runtime.history.forward import Inputs
from morphir.runtime.history.session import Session
from morphir.seeds.user_file import user_function

_ORACLES = ("verifier", "difference")
_END, _DATA = "end", "data"


class Shell(cmd.Cmd):
    """Reads commands; what is wrong with one is said, and the session stays as it was.

    Args:
        session: What it walks.
        data: Loads the inputs of ``run data``; None where there are none.

    Attributes:
        failures: How many commands were wrong.
    """

    prompt = "(morphir) "
    intro = "help lists the commands, help COMMAND explains one; quit ends."
    doc_header = "Commands (help COMMAND explains one):"

    def __init__(self, session: Session, data: Callable[[], Inputs] | None = None) -> None:
        super().__init__()
        self.session, self.failures = session, 0
        self._data = data

    def onecmd(self, line: str) -> bool:
        """Runs a command, and says what is wrong with it."""
        try:
            return bool(super().onecmd("" if line.lstrip().startswith("#") else line))
        except MorphirError as error:
            self._fail(str(error))
        except KeyboardInterrupt:
            self._fail("interrupted")
        except Exception as error:  # the session is worth more than the command
            self._fail(f"{type(error).__name__}: {error}")
        return False

    def _fail(self, message: str) -> None:
        self.failures += 1
        typer.echo(f"error: {message}", err=True)

    def emptyline(self) -> bool:
        """Does nothing; cmd would do the last command again."""
        return False

    def default(self, line: str) -> None:
        """Refuses a command that there is not."""
        raise MorphirError(f"there is no command {line.split()[0]!r}", hint="help lists them")

    def do_where(self, line: str) -> None:
        """``where``: the current point, and the action that led to it."""
        _arguments(line, "where")
        typer.echo(f"point {self.session.position} of {self.session.last}: {self.session.action}")

    def do_list(self, line: str) -> None:
        """``list``: every action; > marks the one that led to the current point."""
        _arguments(line, "list")
        for action in self.session.actions:
            typer.echo(f"{'>' if action.number == self.session.position else ' '} {action}")

    def do_next(self, line: str) -> None:
        """``next``: one point forward."""
        _arguments(line, "next")
        self.session.next()
        self.do_where("")

    def do_back(self, line: str) -> None:
        """``back``: one point back."""
        _arguments(line, "back")
        self.session.back()
        self.do_where("")

    def do_goto(self, line: str) -> None:
        """``goto POINT``: any point, by its number; 'end' is the last."""
        (point,) = _arguments(line, "goto POINT")
        self.session.goto(self._point(point))
        self.do_where("")

    def do_diff(self, line: str) -> None:
        """``diff A B``: what differs between two points: program, widths, tensors."""
        before, after = _arguments(line, "diff A B")
        typer.echo(str(self.session.diff(self._point(before), self._point(after))))

    def do_print(self, line: str) -> None:
        """``print [NODE]``: the textual IR, or one node's line of it."""
        names = _arguments(line, "print [NODE]")
        graph = self.session.graph
        if not names:
            typer.echo(print_graph(graph).rstrip())
            return
        name = names[0].removeprefix("%")
        if name not in (nodes := self._nodes()):
            raise MorphirError(f"there is no node %{name}", hint=f"the nodes are: {', '.join(nodes)}")
        typer.echo(print_node(graph, name))

    def do_space(self, line: str) -> None:
        """``space NAME``: who makes and reads its channels, and what may be done to each group."""
        (name,) = _arguments(line, "space NAME")
        space = self.session.graph.space(name)
        typer.echo(repr(space))
        for index, verdict in enumerate(space.verdicts):
            typer.echo(f"  {name}[{index}]: {verdict}")

    def do_locality(self, line: str) -> None:
        """``locality NAME``: the tensors that a rewrite of the space touches."""
        (name,) = _arguments(line, "locality NAME")
        typer.echo(str(locality(self.session.graph, name)))

    def do_explain(self, line: str) -> None:
        """``explain NAME [INDEX]``: what ties and what restricts a group, step by step."""
        name, *index = _arguments(line, "explain NAME [INDEX]")
        typer.echo(str(explain(self.session.graph, name, *map(_number, index))))

    def do_lineage(self, line: str) -> None:
        """``lineage NAME INDEX``: which splits a channel comes from, back to the start."""
        name, index = _arguments(line, "lineage NAME INDEX")
        found = self.session.lineage(name, _number(index))
        changes = [ancestor for ancestor in found if ancestor.is_change]
        for ancestor in changes:
            typer.echo(str(ancestor))
        first = found[-1].parent if found else _number(index)
        typer.echo(f"channel {changes[-1].parent if changes else index}: channel {first} of the start")

    def do_remarks(self, line: str) -> None:
        """``remarks``: what the pass that led to the current point says about it."""
        _arguments(line, "remarks")
        remarks = self.session.action.remarks
        typer.echo("\n".join(map(str, remarks)) or "no remarks")

    def do_run(self, line: str) -> None:
        """``run [data]``: outputs against the previous point's, on random inputs or the run's data."""
        what = _arguments(line, "run [data]")
        if what and what != [_DATA]:
            raise MorphirError(f"cannot run on {what[0]!r}", hint="run, or run data")
        inputs = self._inputs() if what else None
        here = self.session.position
        before = max(here - 1, 0)
        found = self.session.compare(before, here, inputs)
        typer.echo(f"point {here} against point {before}: {found}")

    def do_bisect(self, line: str) -> None:
        """``bisect ORACLE [TOLERANCE]``: the first action after which an oracle fails.

        The oracle is verifier; difference, of the outputs to the start's, by more than the tolerance; or
        path/to/file.py:function, which gets the graph and returns True or None where all is well, and else
        False or a text.
        """
        oracle = self._oracle(_arguments(line, "bisect ORACLE [TOLERANCE]"))
        typer.echo(str(bisect(self.session, oracle)))

    def do_split(self, line: str) -> None:
        """``split NAME INDEX``: split a channel group at the last point, with theta = 0."""
        self._rewrite(Split, line, "split NAME INDEX")

    def do_prune(self, line: str) -> None:
        """``prune NAME INDEX``: remove a channel group at the last point."""
        self._rewrite(Prune, line, "prune NAME INDEX")

    def do_export(self, line: str) -> None:
        """``export FILE.py | FILE.onnx``: the network as it is at the current point, verified."""
        (file,) = _arguments(line, "export FILE")
        path = Path(file)
        found = [exporter for exporter in EXPORTERS.values() if exporter.suffix == path.suffix]
        if not found:
            suffixes = " or ".join(exporter.suffix for exporter in EXPORTERS.values())
            raise MorphirError(f"{file} is no file to export to", hint=f"name a {suffixes} file")
        training = self.session.graph.training
        try:
            found[0].export(self.session.graph.eval(), path)
        finally:
            self.session.graph.train(training)
        typer.echo(f"wrote {path}, verified")

    def do_quit(self, line: str) -> bool:
        """``quit``: ends the shell; so does the end of the input."""
        _arguments(line, "quit")
        return True

    def do_EOF(self, line: str) -> bool:
        """Ends the shell."""
        del line
        return True

    def get_names(self) -> list[str]:
        """Returns what help and completion know; the end of the input is no command to type."""
        return [name for name in super().get_names() if name != "do_EOF"]

    def completenames(self, text: str, *place: Any) -> list[str]:
        """Completes a command, and leaves a space before its arguments."""
        return [f"{name} " for name in super().completenames(text, *place)]

    def _rewrite(self, kind: Callable[[str, int], Morphism], line: str, usage: str) -> None:
        name, index = _arguments(line, usage)
        self.session.transform([kind(name, _number(index))])
        self.do_where("")

    def _point(self, text: str) -> int:
        return self.session.last if text == _END else _number(text)

    def _oracle(self, words: Sequence[str]) -> Oracle:
        name, *rest = words
        if name == "difference":
            return maximum_difference(self.session, _tolerance(rest[0]) if rest else None)
        if rest:
            raise MorphirError(f"{name} takes no tolerance", hint="bisect difference TOLERANCE")
        if name == "verifier":
            return verifier
        if ".py" not in name:
            raise MorphirError(
                f"there is no oracle {name!r}", hint=f"{', '.join(_ORACLES)}, or path/to/file.py:function"
            )
        _, function = user_function(name, "oracle", "function")
        return user_oracle(name.rpartition(":")[2], function)

    def _inputs(self) -> Inputs:
        if self._data is None:
            raise MorphirError(
                "there is no data here", hint="run directories have data; run alone takes random inputs"
            )
        return self._data()

    def _nodes(self) -> list[str]:
        return [node.name for node in self.session.graph.graph.nodes]

    def _complete_space(self, text: str, *place: Any) -> list[str]:
        del place
        return [name for name in self.session.graph.spaces if name.startswith(text)]

    complete_space = complete_locality = complete_explain = complete_lineage = _complete_space
    complete_split = complete_prune = _complete_space

    def complete_print(self, text: str, *place: Any) -> list[str]:
        """Completes a node's name."""
        del place
        return [name for name in self._nodes() if name.startswith(text)]

    def complete_goto(self, text: str, *place: Any) -> list[str]:
        """Completes the name of the last point."""
        del place
        return [name for name in (_END,) if name.startswith(text)]

    complete_diff = complete_goto

    def complete_run(self, text: str, *place: Any) -> list[str]:
        """Completes what to run on."""
        del place
        return [name for name in (_DATA,) if name.startswith(text)]

    def complete_bisect(self, text: str, *place: Any) -> list[str]:
        """Completes an oracle's name."""
        del place
        return [name for name in _ORACLES if name.startswith(text)]


def _arguments(line: str, usage: str) -> list[str]:
    """Splits a command's arguments, as many as its usage names; those in brackets may be left out.

    Raises:
        MorphirError: if there are too few or too many.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise MorphirError(f"cannot read {line!r}: {error}", hint=usage) from error
    wanted = usage.split()[1:]
    least = sum(not name.startswith("[") for name in wanted)
    if not least <= len(words) <= len(wanted):
        given = f"{len(words)} given" if words else "none given"
        raise MorphirError(f"{usage.split()[0]} takes other arguments: {given}", hint=usage)
    return words


def _number(text: str) -> int:
    if not text.isdecimal():
        raise MorphirError(f"{text!r} is no number", hint="count from 0")
    return int(text)


def _tolerance(text: str) -> float:
    try:
        found = float(text)
    except ValueError as error:
        raise MorphirError(f"{text!r} is no tolerance", hint="a number, as 1e-4") from error
    if not found >= 0:
        raise MorphirError(f"{text!r} is no tolerance", hint="a number from 0 on, as 1e-4")
    return found
