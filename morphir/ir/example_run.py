"""What the values of a program under trace are on the example inputs: shapes, flags, numbers.

Nothing runs until a value is asked for; then the nodes traced so far run once, on fake tensors. A module that
cannot run on these (an opaque one) runs for real, within the model, and is known by what it returned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_arg

from morphir.errors import MorphirError
from morphir.ir.quiet import failing_quietly, fixed_randomness
from morphir.ir.state import attribute, evaluation_mode
from morphir.ir.traceable import model_failure
from morphir.ir.values import map_leaves, tensors


class Unknown(Exception):
    """The example inputs' shapes alone do not tell this value.

    Attributes:
        node: The node that shapes do not pass.
    """

    def __init__(self, message: str, node: fx.Node) -> None:
        super().__init__(message)
        self.node = node


class ExampleRun:
    """Runs a program as it is being traced.

    Args:
        root: The model.
        inputs: Placeholder to its example value.
        call: Runs the whole model on the example inputs.
        opaque: Paths of the modules that fake tensors do not pass.

    Attributes:
        running: Whether modules are called to find a value, and not to be traced.
    """

    def __init__(
        self, root: nn.Module, inputs: Mapping[str, Any], call: Callable[[], Any], opaque: Collection[str]
    ) -> None:
        self.root = root
        self.inputs = inputs
        self.call = call
        self.opaque = opaque
        self.running = False
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._values: dict[fx.Node, Any] = {}
        self._holders: dict[int, list[fx.Node]] = {}
        self._last: fx.Node | None = None
        self._returned: dict[str, list[Any]] = {}
        self._noted: list[tuple[nn.Module, Any]] | None = None

    def value(self, node: fx.Node) -> Any:
        """Returns a node's value; tensors are fake.

        Raises:
            Unknown: if shapes alone do not tell it.
        """
        if node not in self._values:
            self._advance(node)
        found = self._values[node]
        if isinstance(found, Unknown):
            raise found
        return found

    def sharing(self, node: fx.Node, last: fx.Node) -> list[fx.Node]:
        """Returns the other nodes, up to the last, whose values share their memory with this node's."""
        if last not in self._values:
            self._advance(last)
        found = {other: None for memory in _memory(self.value(node)) for other in self._holders[memory]}
        return sorted(other for other in found if other is not node)

    def rewind(self, left: Collection[fx.Node], last: fx.Node | None) -> None:
        """Forgets the nodes that the program lost.

        Args:
            left: The nodes that it still has.
            last: The last of these.
        """
        kept = {node: value for node, value in self._values.items() if node in left}
        self._values.clear()
        self._holders.clear()
        for node, value in kept.items():
            self._keep(node, value)
        if self._last is not None and self._last not in left:
            self._last = last

    def _advance(self, until: fx.Node) -> None:
        with self._evaluating(), torch.no_grad(), failing_quietly():
            while self._last is not until:
                node = next(iter(until.graph.nodes)) if self._last is None else self._last.next
                try:
                    self._keep(node, self._run(node))
                except MorphirError:
                    raise
                except Unknown as error:
                    self._keep(node, error)
                except Exception as error:
                    self._keep(node, Unknown(str(error), node))
                self._last = node

    def _keep(self, node: fx.Node, value: Any) -> None:
        self._values[node] = value
        for memory in _memory(value):
            self._holders.setdefault(memory, []).append(node)

    @contextmanager
    def _evaluating(self) -> Generator[None]:
        self.running = True
        try:
            yield
        finally:
            self.running = False

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._faked(self.inputs[str(node.target)])
        args, kwargs = cast("tuple[Any, Any]", map_arg((node.args, node.kwargs), self._known))
        if node.op == "get_attr":
            return self._faked(attribute(self.root, str(node.target)))
        if node.op == "call_module":
            return self._run_module(node, args, kwargs)
        with self._mode:
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return cast("Callable[..., Any]", node.target)(*args, **kwargs)

    def _known(self, node: fx.Node) -> Any:
        value = self._values[node]
        if isinstance(value, Unknown):
            raise value
        return value

    def _faked(self, value: Any) -> Any:
        return map_leaves(self._mode.from_tensor, value)

    def _run_module(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        path = str(node.target)
        if path in self.opaque:
            calls = [
                other for other in node.graph.nodes if other.op == "call_module" and other.target == path
            ]
            return self._faked(self._results(path)[calls.index(node)])
        module = self.root.get_submodule(path)
        with evaluation_mode(module), self._mode:
            return module(*args, **kwargs)

    def _results(self, path: str) -> list[Any]:
        """Returns what each call of an opaque module yields on the example inputs."""
        if path not in self._returned:
            self._returned[path] = self._run_model(path)
        return self._returned[path]

    def _run_model(self, path: str) -> list[Any]:
        noted: list[tuple[nn.Module, Any]] = []
        self._noted = noted
        try:
            with evaluation_mode(self.root), fixed_randomness():
                self.call()
        except Exception as error:
            raise model_failure(error) from error
        finally:
            self._noted = None
        module = self.root.get_submodule(path)
        return [result for called, result in noted if called is module]

    def note(self, module: nn.Module, result: Any) -> None:
        """Takes down what a module returned, while the model runs."""
        if self._noted is not None:
            self._noted.append((module, result))


def _memory(value: Any) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors(value)}  # pyright: ignore[reportPrivateUsage]
