"""What a model has to be before it is traced: the module itself, with parameters of known sizes; it runs."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from morphir.errors import TraceError, reason
from morphir.ir.source import failing_user_line
from morphir.ir.state import submodules


def check_traceable(model: object) -> None:
    """Raises :class:`TraceError` for what is no model of known parameters.

    Args:
        model: What the user gave.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"expected an nn.Module, got {type(model).__name__}")
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise TraceError(
            "the model is what torch.compile made of it",
            hint="trace the model itself, and compile the graph where you like: torch.compile(graph)",
        )
    if lazy := _uninitialised(model):
        raise TraceError(
            f"the model has parameters that are not initialised yet: {', '.join(lazy)}",
            hint="run the model once on the example inputs before it is traced, so that lazy modules know "
            "their sizes",
        )


def model_failure(error: Exception) -> TraceError:
    """Returns what to say of a model that itself fails on the example inputs."""
    return TraceError(
        f"the model fails on the example inputs: {reason(error)}",
        source=failing_user_line(error.__traceback__),
        hint="model.eval()(...) fails in the same way: check the example inputs' shapes, dtypes and device, "
        "and the line named here",
    )


def _uninitialised(model: nn.Module) -> list[str]:
    return [
        f"{path}.{name}" if path else name
        for path, module in submodules(model)
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if is_lazy(tensor)
    ]
