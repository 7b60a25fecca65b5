"""How a step is run: memory format, precision, and what is done about the time between kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Mode:
    """One way to run a step, the same for training and learning.

    Attributes:
        name: What tables call it.
        channels_last: Whether images and kernels lie channels last.
        half: Whether the model and the loss run under bf16 autocast.
        graph: Whether a step is captured as a CUDA graph and replayed.
        compiled: Whether the training step's model is compiled. A learning step compiles its own kernels.
    """

    name: str
    channels_last: bool = False
    half: bool = False
    graph: bool = False
    compiled: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """The format of images and kernels."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: str) -> AbstractContextManager[object]:
        """Returns what a forward pass runs under."""
        if not self.half:
            return contextlib.nullcontext()
        # A weight's half copy cannot be kept from one replay of a graph to the next.
        return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=not self.graph)


_CPU = (
    Mode("channels-last", channels_last=True),
    Mode("contiguous"),
    Mode("contiguous, compiled", compiled=True),
    Mode("channels-last, compiled", channels_last=True, compiled=True),
)
_CUDA = (
    Mode("bf16", channels_last=True, half=True),
    Mode("bf16, graph", channels_last=True, half=True, graph=True),
    Mode("bf16, compiled", channels_last=True, half=True, compiled=True),
)


def modes(device: str) -> Sequence[Mode]:
    """Returns the modes that a device is tried in; the first is always there, and mostly the fastest."""
    return _CUDA if device == "cuda" else _CPU
