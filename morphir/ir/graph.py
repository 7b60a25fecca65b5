"""``Graph``: an fx program that owns its parameters under the model's own ``state_dict`` keys.

It is an ``nn.Module``: train it, move it, compile it. The channel layer stands beside the program and is
replaced as a whole whenever a rewrite changes the program.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType, MappingProxyType
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.graph import PythonCode

from morphir.errors import MorphirError, did_you_mean
from morphir.ir.channels import ChannelLayer, ChannelSpace, Limits
from morphir.ir.forward_file import comments, forward_text, is_watched, keeping_locals, place
from morphir.ir.index_map import Rewrite
from morphir.ir.inputs import ExampleInputs
from morphir.ir.names import check_names
from morphir.ir.opaque import OpaqueCall
from morphir.ir.state import copied, is_persistent, make_temporary, own_state, submodules

_HELD = ("_modules", "_parameters", "_buffers")
"""What a module keeps its submodules and tensors in."""


class Graph(fx.GraphModule):
    """A traced model with its channel spaces.

    Make one with :func:`morphir.trace`. The parameters are copies of the model's: the model itself is never
    changed.

    Attributes:
        inputs: What the example inputs looked like.
        module_types: Module path to the class name in the user's model; ``""`` is the model itself.
        opaque_calls: Node name to the call of a module that could not be traced and is kept whole.
        history: Every rewrite that was applied, oldest first.
        limits: What trial rewrites found that the labels do not tell.
    """

    inputs: ExampleInputs
    module_types: Mapping[str, str]
    opaque_calls: Mapping[str, OpaqueCall]
    history: tuple[Rewrite, ...]
    limits: Limits
    _channels: ChannelLayer | None
    _keeps_locals: bool

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        *,
        inputs: ExampleInputs,
        module_types: Mapping[str, str],
        opaque_calls: Mapping[str, OpaqueCall] = MappingProxyType({}),
        history: Sequence[Rewrite] = (),
        channels: ChannelLayer | None = None,
        limits: Limits | None = None,
    ) -> None:
        check_names(root, Graph)
        # before fx's own, which generates the code: its comments name the rewrites
        self.history = tuple(history)
        self._channels = channels
        super().__init__(root, graph, class_name="Graph")
        _adopt_unused_state(self, root)
        _keep_persistence(self, root)
        self.inputs = inputs
        self.module_types = MappingProxyType(dict(module_types))
        self.opaque_calls = MappingProxyType(dict(opaque_calls))
        self.limits = Limits() if limits is None else limits
        self.train(root.training)

    @property
    def channels(self) -> ChannelLayer:
        """What the analysis found; raises :class:`MorphirError` on a graph that was never analysed."""
        if self._channels is None:
            raise MorphirError("this graph was not analysed", hint="make graphs with morphir.trace")
        return self._channels

    @property
    def spaces(self) -> Mapping[str, ChannelSpace]:
        """Every channel space by name, in program order."""
        return self.channels.spaces

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        tensor = next(iter((*self.parameters(), *self.buffers())), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype | None:
        """The first floating parameter's dtype; None where there is none."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), None)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Graph:
        """Moves or casts the graph, and what it knows of its example inputs with it."""
        before = self.dtype
        super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]
        if self.dtype is not None and self.dtype != before:
            dtype = self.dtype
            self.inputs = self.inputs.in_dtype(dtype)
            self.opaque_calls = MappingProxyType(
                {name: c.in_dtype(dtype) for name, c in self.opaque_calls.items()}
            )
            self._channels = None if self._channels is None else self._channels.in_dtype(dtype)
        return self

    @property
    def forward_file(self) -> Path | None:
        """The file that holds the generated forward, for breakpoints; None where it could not be written."""
        path = Path(_forward(self).__code__.co_filename)
        return path if path.is_absolute() else None

    def recompile(self) -> PythonCode:
        """Generates the forward anew, as a file on disk that debuggers step through."""
        generated = super().recompile()
        said = comments(self.graph, self._channels, self.history)
        self._code = forward_text(self._code, list(self.graph.nodes), self._lineno_map or {}, said)
        self._keeps_locals = False
        place(_forward(self), self._code)
        return generated

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the graph; under a debugger, with every value kept as a local."""
        if not torch.compiler.is_compiling() and not self._keeps_locals and is_watched():
            type(self).forward = keeping_locals(_forward(self), self._code)
            self._keeps_locals = True
        return super().__call__(*args, **kwargs)

    def space(self, name: str) -> ChannelSpace:
        """Returns one space.

        Raises:
            MorphirError: if there is no such space; the message lists the closest names.
        """
        if name not in self.spaces:
            raise MorphirError(
                f"there is no channel space {name!r}",
                hint=f"{did_you_mean(name, self.spaces)}the spaces are: {', '.join(self.spaces)}",
            )
        return self.spaces[name]

    def node(self, name: str) -> fx.Node:
        """Returns the node of that name.

        Raises:
            MorphirError: if there is no such node; the message lists the closest names.
        """
        found = next((node for node in self.graph.nodes if node.name == name), None)
        if found is None:
            names = [node.name for node in self.graph.nodes]
            raise MorphirError(
                f"there is no node {name!r}",
                hint=f"{did_you_mean(name, names)}morphir.print_graph(graph) shows all {len(names)} nodes",
            )
        return found

    def attach(self, channels: ChannelLayer) -> None:
        """Replaces the channel layer; for :mod:`morphir.analysis` and the rewriter alone."""
        self._channels = channels

    def record(self, rewrite: Rewrite) -> None:
        """Appends to the history; for the rewriter alone."""
        self.history = (*self.history, rewrite)

    def __reduce__(self) -> Any:
        """Refuses to be pickled, as ``torch.save(graph)`` would do it; copies need no pickle.

        Raises:
            MorphirError: always.
        """
        raise MorphirError(
            "a morphir.Graph cannot be pickled",
            hint='morphir.export_pytorch(graph, "net.py") writes it as source and weights; to go on growing, '
            "keep graph.state_dict() and graph.history, and replay the history on a new trace of the model",
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        root = nn.Module()
        root.__dict__.update({k: v for k, v in self.__dict__.items() if k not in {"_modules", "_graph"}})
        held = nn.Module()
        held.__dict__.update({table: self.__dict__[table] for table in _HELD})
        held = copied(held, memo)
        root.__dict__.update({table: held.__dict__[table] for table in _HELD})
        return Graph(
            root,
            copy.deepcopy(self.graph),
            inputs=self.inputs,
            module_types=self.module_types,
            opaque_calls=self.opaque_calls,
            history=self.history,
            channels=self._channels,
            limits=self.limits,
        )


def _forward(graph: Graph) -> FunctionType:
    """Returns the generated function; fx makes a class for each graph, which holds it."""
    return cast("FunctionType", type(graph).forward)


def require_graph(graph: object) -> None:
    """Raises :class:`MorphirError` for a model where a graph is wanted."""
    if not isinstance(graph, Graph):
        raise MorphirError(
            f"expected a morphir.Graph, got {type(graph).__name__}",
            hint="make one with graph = morphir.trace(model, example_inputs)",
        )


def _adopt_unused_state(graph: Graph, root: nn.Module) -> None:
    """Registers what the traced program never reads, so that the ``state_dict`` keys stay the model's own."""
    for path, module in submodules(root, every_name=True):
        owned = own_state(module)
        if path and owned and not _has_module(graph, path):
            graph.add_submodule(path, module)
        target = graph.get_submodule(path) if _has_module(graph, path) else None
        if target is None or target is module:
            continue
        for name, tensor in owned.items():
            if hasattr(target, name):
                continue
            if isinstance(tensor, nn.Parameter):
                target.register_parameter(name, tensor)
            else:
                target.register_buffer(name, tensor, persistent=is_persistent(module, name))


def _keep_persistence(graph: Graph, root: nn.Module) -> None:
    """Keeps out of the ``state_dict`` what the model keeps out: fx makes every tensor a persistent buffer."""
    for path, module in submodules(graph):
        source = root.get_submodule(path) if _has_module(root, path) else None
        for name, _ in module.named_buffers(recurse=False):
            owned = source is not None and name in dict(source.named_buffers(recurse=False))
            if source is None or not owned or not is_persistent(source, name):
                make_temporary(module, name)


def _has_module(graph: nn.Module, path: str) -> bool:
    try:
        graph.get_submodule(path)
    except AttributeError:
        return False
    return True
