"""The fx tracer: what it makes of inputs, modules, wrapped functions and constants.

A module that cannot be traced is kept whole, as an *opaque* leaf: the innermost one, since each module's call
is tried on its own. A function under ``torch.fx.wrap`` is kept whole unless the analysis asks for its inside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx import proxy as fx_proxy

from morphir.errors import MorphirError, TraceError
from morphir.ir.example_run import ExampleRun, Unknown
from morphir.ir.gradients import detach_ungraded, refused_custom_gradients
from morphir.ir.guards import describe
from morphir.ir.opaque import Failure, innermost_module, values_reason
from morphir.ir.questions import Questions
from morphir.ir.signature import Signature
from morphir.ir.source import SourceLocation, calling_user_line, failing_user_line, source_of
from morphir.ir.state import is_plain
from morphir.ir.wrapped import is_users

_FACTORIES: tuple[Callable[..., Any], ...] = (
    *(torch.zeros, torch.ones, torch.empty, torch.full, torch.rand, torch.randn, torch.randint),
    *(torch.randperm, torch.arange, torch.linspace, torch.logspace, torch.eye, torch.tensor),
)
"""Functions that take sizes and no tensor: fx cannot see their calls by the tensors that they get."""


_OUT_OF_PLACE = "build the tensor with cat, stack or where in the place of writing into it"


class StartAgain(Exception):
    """A module that was traced has to be kept whole after all."""


class Tracer(Questions):
    """Traces one model in the mode that it is in.

    Args:
        signature: The model's forward function, bound to the example inputs.
        opaque: Paths of modules to keep whole.
        opened: Functions to trace into although ``torch.fx.wrap`` keeps them whole. Those that take a kernel
            of the model's are traced into as well: their mixing would be out of sight.
        closed: Functions to keep whole all the same; those that cannot be traced are added.

    Attributes:
        failures: Module path to why it could not be traced and was kept whole.
        constants: Types of modules that the model holds where ``nn.Module`` does not see them.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        signature: Signature,
        opaque: Collection[str] = (),
        opened: Collection[Callable[..., Any]] = (),
        closed: set[Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__()
        self._autowrap_search.append(torch)
        self._autowrap_function_ids.update(map(id, _FACTORIES))
        self.signature = signature
        self.opaque = set(opaque)
        self.opened = frozenset(opened)
        self.closed = set[Callable[..., Any]]() if closed is None else closed
        self.failures: dict[str, Failure] = {}
        self.constants: dict[str, SourceLocation | None] = {}
        self._returned: list[fx.Node] = []
        self._inside: list[Callable[..., Any]] = []
        self._ungraded: list[fx.Node] = []
        self._detached: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._parameter_proxies: dict[str, fx.Proxy] = {}
        self._kernels: set[str] = set()

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        """Traces a model; whatever its own ``no_grad`` blocks compute is detached."""
        assert isinstance(root, nn.Module)
        call = self.signature.caller(root)
        held = root.named_parameters(remove_duplicate=False)
        self._kernels = {name for name, parameter in held if parameter.dim() > 1}
        self.example = ExampleRun(root, self.signature.values, call, self.opaque)
        with torch.enable_grad(), refused_custom_gradients():
            program = super().trace(root, concrete_args)
        self._refuse_stale_reads(program)
        for node in program.nodes:
            if node.target in _FACTORIES or node in self._returned:
                # fx would have the generated code wrap a name with a dot, which poisons every later trace.
                node.meta.pop("is_wrapped", None)
        detach_ungraded(program, self._ungraded, self._is_tensor)
        self.drop_unread_sizes(program)
        return program

    def _refuse_stale_reads(self, program: fx.Graph) -> None:
        """Keeps the function or module whole whose assignment another value sees.

        Raises:
            StartAgain: if there is one.
            TraceError: if it is the model itself.
        """
        found = self.stale_read(program)
        if found is None:
            return
        assignment, other = found
        if "opened" in assignment.meta:
            self.closed.add(assignment.meta["opened"])
            raise StartAgain
        reason, path = f"{describe(other)} sees an assignment to an item", innermost_module(assignment)
        if not path or path in self.opaque:
            raise TraceError(reason, node=assignment.name, source=source_of(assignment), hint=_OUT_OF_PLACE)
        self.failures[path] = Failure(reason, source_of(assignment))
        raise StartAgain

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[[], Any], list[Any]]:
        """Makes one placeholder for each input; what is None in the example inputs is None in the trace."""
        proxies: dict[str, Any] = {
            name: self.create_proxy("placeholder", name, default, {})
            for name, default in self.signature.placeholders.items()
        }
        for name, value in self.signature.values.items():
            if value is None:
                self.guard(proxies[name], "none", located=False)
                proxies[name] = None
        args, kwargs = self.signature.arguments(proxies)
        return lambda: root_fn(self.root, *args, **kwargs), []

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Makes a node as fx does, and notes where it comes from."""
        node = super().create_node(*args, **kwargs)
        if node.op != "output":
            node.meta.setdefault("source", calling_user_line())
        if self._inside:
            node.meta["opened"] = self._inside[0]
        if not torch.is_grad_enabled():
            self._ungraded.append(node)
        return node

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *rest: Any,
        **options: Any,
    ) -> fx.Proxy:
        """Makes a node and its proxy, or traces into a wrapped function that is to be opened."""
        if kind == "call_function" and self._is_open(target, args, kwargs):
            result = self._trace_into(target, args, kwargs)
            if result is not None:
                return result
        return super().create_proxy(kind, target, args, kwargs, *rest, **options)

    def _is_open(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a function that is recorded as one call is to be traced into."""
        if not is_users(function) or function in self.closed:
            return False
        if function in self.opened:
            return True
        given = (value.node for value in (*args, *kwargs.values()) if isinstance(value, fx.Proxy))
        return any(node.op == "get_attr" and node.target in self._kernels for node in given)

    def _trace_into(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> fx.Proxy | None:
        """Returns what a function's inside yields; None where it cannot be traced or is no one value."""
        stack, last = dict(self.module_stack), next(iter(reversed(self.graph.nodes)), None)
        self._inside.append(function)
        try:
            result = function(*args, **kwargs)
        except Exception:
            # It stays whole, as its author asked; the analysis freezes what it reads.
            result = None
        finally:
            self._inside.pop()
        if isinstance(result, fx.Proxy):
            # fx marks it as the call of a wrapped function.
            self._returned.append(result.node)
            return result
        self.closed.add(function)
        self._roll_back(stack, last)
        return None

    def create_arg(self, a: Any) -> Any:
        """Returns an argument; a parameter that is not the model's is a constant."""
        if isinstance(a, torch.Tensor) and a.requires_grad and not self._is_own(a):
            # One constant for one tensor; the tensor is kept, so that its id stays its own.
            _, a = self._detached.setdefault(id(a), (a, a.detach()))
        if is_dataclass(a) and isinstance(a, dict):
            # fx makes a plain dict of a dataclass that is a dict too, as outputs with attributes are.
            values = {field.name: self.create_arg(getattr(a, field.name)) for field in fields(a)}
            return self.create_node("call_function", type(a), (), values)
        return super().create_arg(a)

    def _is_own(self, tensor: torch.Tensor) -> bool:
        return any(tensor is parameter for parameter in self.root.parameters())

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Returns a proxy for a parameter or buffer, but for modules that run."""
        self._parameter_proxies = parameter_proxy_cache
        return attr_val if self.example.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is kept whole; one of PyTorch's that does more than its class says is not."""
        if module_qualified_name in self.opaque:
            return True
        return super().is_leaf_module(m, module_qualified_name) and is_plain(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Traces into a module, or keeps it whole where that fails."""
        if self.example.running:
            result = forward(*args, **kwargs)
            self.example.note(m, result)
            return result
        if m not in cast("dict[nn.Module, str]", self.submodule_paths):
            if any(True for _ in m.parameters()):
                self.constants.setdefault(type(m).__name__, calling_user_line())
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        stack, last = dict(self.module_stack), next(iter(reversed(self.graph.nodes)), None)
        try:
            if isinstance(m, torch.jit.ScriptModule):
                raise fx_proxy.TraceError("a ScriptModule has no Python code to trace")
            return super().call_module(m, forward, args, kwargs)
        except (StartAgain, MorphirError):
            raise
        except Exception as error:
            self.failures[path] = Failure(_first_line(error), failing_user_line(error.__traceback__))
            self.opaque.add(path)
            self._roll_back(stack, last)
            return super().call_module(m, forward, args, kwargs)

    def on_unknown(self, error: Unknown) -> None:
        """Keeps a module whole that was traced, and whose result shapes alone do not tell.

        Raises:
            StartAgain: if there is such a module, since the program holds its inside.
        """
        path = innermost_module(error.node)
        running = {path for path, _ in self.module_stack.values()}
        if path and path not in running | self.opaque:
            self.failures[path] = Failure(values_reason(error), source_of(error.node))
            raise StartAgain

    def _roll_back(self, stack: Mapping[str, Any], last: fx.Node | None) -> None:
        """Forgets what was traced since ``last``."""
        self.module_stack.clear()
        self.module_stack.update(stack)
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            self.graph.erase_node(node)
        left = set(self.graph.nodes)
        self.forget_erased(left)
        self.example.rewind(left, last)
        for name in [name for name, found in self._parameter_proxies.items() if found.node not in left]:
            del self._parameter_proxies[name]

    def _is_tensor(self, node: fx.Node) -> bool:
        try:
            return isinstance(self.example.value(node), torch.Tensor)
        except Unknown:
            return node.op == "call_module"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
