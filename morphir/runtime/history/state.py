"""Digests of what a graph is, and new values for its tensors that leave the old ones as they are."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping

import torch
from torch import nn

from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.ir.printer import print_graph
from morphir.ir.state import named_state, own_state


class HistoryError(MorphirError):
    """A history cannot be read, or one of its points cannot be restored."""


def program_digest(graph: Graph) -> str:
    """Returns a digest of the textual IR."""
    return text_digest(print_graph(graph))


def text_digest(text: str) -> str:
    """Returns a digest of a textual IR."""
    return hashlib.sha256(text.encode()).hexdigest()


def tensor_digests(graph: Graph) -> dict[str, str]:
    """Returns a digest of each parameter and buffer: its shape, type, and bits."""
    return {key: _digest(tensor) for key, tensor in named_state(graph).items()}


class RememberedDigests:
    """Digests of a graph's tensors; those that nobody wrote to since are not read again.

    torch counts the writes to a tensor, but not those to its ``.data``: after code that may do that, all
    tensors have to be looked at.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[weakref.ref[torch.Tensor], int, str]] = {}

    def of(self, graph: Graph, *, look_at_all: bool) -> dict[str, str]:
        """Returns a digest of each parameter and buffer."""
        found: dict[str, tuple[weakref.ref[torch.Tensor], int, str]] = {}
        for key, tensor in named_state(graph).items():
            known = None if look_at_all else self._known.get(key)
            if known is None or known[0]() is not tensor or known[1] != tensor._version:
                known = weakref.ref(tensor), tensor._version, _digest(tensor)
            found[key] = known
        self._known = found
        return {key: digest for key, (_, _, digest) in found.items()}


def _digest(tensor: torch.Tensor) -> str:
    found = hashlib.blake2b(f"{tuple(tensor.shape)} {tensor.dtype}".encode(), digest_size=16)
    values = tensor.detach().cpu().contiguous()
    if values.numel():
        found.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def joint_digest(digests: Mapping[str, str]) -> str:
    """Returns one digest of all."""
    lines = "\n".join(f"{key} {digest}" for key, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def replace_values(graph: Graph, values: Mapping[str, torch.Tensor]) -> None:
    """Puts new tensors in the place of old ones, wherever these are registered.

    Args:
        graph: The graph.
        values: ``state_dict`` key to values of the same shape.

    Raises:
        HistoryError: if a key or a shape does not fit; nothing is changed then.
    """
    held = named_state(graph)
    for key, value in values.items():
        if key not in held or held[key].shape != value.shape:
            found = "none" if key not in held else str(tuple(held[key].shape))
            raise HistoryError(
                f"the values of {key} do not fit: shape {tuple(value.shape)} stored, {found} in the graph",
                hint="open a history with a fresh trace of the model that it was recorded of",
            )
    new_of = {id(held[key]): _like(held[key], value) for key, value in values.items()}
    for module in graph.modules():
        for name, tensor in own_state(module).items():
            if id(tensor) in new_of:
                setattr(module, name, new_of[id(tensor)])


def _like(old: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    new = value.to(old.device, old.dtype, copy=True)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
