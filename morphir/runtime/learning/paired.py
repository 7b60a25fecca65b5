"""A program that is run on two sets of values at once, node by node, so that these can meet on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

Values = Mapping[int, Any]
"""From a captured slot to its value in one of the two sets."""
Moves = Mapping[int, Callable[[float, Values], torch.Tensor]]
"""From a slot to what its value is replaced by; it is told 1.0 for the one set and -1.0 for the other."""
Joins = Mapping[int, Callable[[torch.Tensor], torch.Tensor]]
"""From a slot at which the two sets meet to what their mean is replaced by."""


@dataclass(frozen=True)
class PairedProgram:
    """A program without what it captures, which is thus freed as soon as it was read.

    Attributes:
        module: Returns the outputs; it shares its modules with the program.
        slots: By node, the captured slot whose value it computes.
    """

    module: fx.GraphModule
    slots: Mapping[fx.Node, int]

    @staticmethod
    def of(program: fx.GraphModule, sources: Mapping[int, Sequence[int]], tap: object) -> PairedProgram:
        """Copies a program.

        Args:
            program: Returns ``(outputs, captured)``.
            sources: From a slot that may be moved to the slots that are read for it.
            tap: What a call of a tap calls.
        """
        output = next(node for node in reversed(program.graph.nodes) if node.op == "output")
        outputs, captured = cast("tuple[Any, Sequence[fx.Node]]", output.args[0])
        numbers = {node: slot for slot, node in enumerate(captured)}
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        slots: dict[fx.Node, int] = {}
        for node in program.graph.nodes:
            if node is output:
                continue
            copies[node] = graph.node_copy(node, copies.__getitem__)
            slot = numbers.get(node, -1)
            slots[copies[node]] = slot
            if slot in sources:
                read = {at: copies[_read_by(node, captured[at], tap)] for at in sources[slot]}
                values = {slot: copies[node], **read}
                copies[node] = graph.call_function(_move, (slot, [*values], [*values.values()]))
        graph.output(fx.map_arg(outputs, copies.__getitem__))
        return PairedProgram(fx.GraphModule(program, graph), slots)

    def __call__(self, inputs: Sequence[Any], moves: Moves, joins: Joins) -> Any:
        """Returns the outputs of the first set; the second's are the same, as all paths have met.

        Args:
            inputs: The program's arguments.
            moves: What happens to the values of some slots.
            joins: Where the two sets meet.
        """
        plus, minus = (_Run(self.module, moves, sign) for sign in (1.0, -1.0))
        plus.args_iter, minus.args_iter = iter(inputs), iter(inputs)
        outputs: Any = None
        for node in self.module.graph.nodes:
            outputs = plus.env[node] = plus.run_node(node)
            minus.env[node] = minus.run_node(node)
            join = joins.get(self.slots.get(node, -1))
            if join is not None:
                plus.env[node] = minus.env[node] = join((plus.env[node] + minus.env[node]) / 2)
            for last in plus.user_to_last_uses.get(node, ()):
                del plus.env[last], minus.env[last]
        return outputs


class _Run(fx.Interpreter):
    """One of the two sets of values."""

    def __init__(self, module: fx.GraphModule, moves: Moves, sign: float) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.moves = moves
        self.sign = sign

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a call, or a move."""
        if target is not _move:
            return super().call_function(target, args, kwargs)
        slot, values = args[0], dict(zip(*args[1:], strict=True))
        return self.moves[slot](self.sign, values) if slot in self.moves else values[slot]


def _move(slot: int, slots: Sequence[int], values: Sequence[Any]) -> Any:
    """Stands in the program where a value may be moved."""
    return values[slots.index(slot)]


def _read_by(reader: fx.Node, source: fx.Node, tap: object) -> fx.Node:
    """Returns the tap that a node reads in a value's place; the value itself where there is none."""
    taps = (user for user in source.users if user.target is tap and reader in user.users)
    return next(taps, source)
