"""Names that a graph uses itself, and that therefore no part of a model can have.

A graph is a module that holds the model's parts under the model's own names, so that the ``state_dict`` keys
stay what they are.
"""

from __future__ import annotations

from torch import fx, nn

from morphir.errors import TraceError


def check_names(root: nn.Module, graph_type: type[fx.GraphModule]) -> None:
    """Checks that no part of a model has a name that a graph uses itself, as ``code`` or ``history``.

    Args:
        root: The model.
        graph_type: The class of graphs; its attributes, and those that its instances are given.

    Raises:
        TraceError: for the first such part.
    """
    own = {*dir(graph_type), *graph_type.__annotations__, *vars(fx.GraphModule(nn.Module(), fx.Graph()))}
    taken = own - {*dir(nn.Module), *vars(nn.Module())}
    parts = [name for kind in ("_modules", "_parameters", "_buffers") for name in vars(root)[kind]]
    clash = next((name for name in parts if name in taken), None)
    if clash is not None:
        raise TraceError(
            f"{type(root).__name__} has a part named {clash!r}, a name that graphs use themselves",
            hint="rename it, or trace the model as a part of another: "
            "a module whose forward calls self.model(...)",
        )
