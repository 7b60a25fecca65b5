"""theta: one tensor for each producer of a space, of its kernel's rows in that space.

Rows of groups that cannot be split stay 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from morphir.errors import MorphirWarning
from morphir.ir.channels import ChannelSpace, Producer
from morphir.ir.graph import Graph
from morphir.ir.state import named_state
from morphir.runtime.learning.precision import HALF, at_least_single
from morphir.runtime.learning.programs import SpaceProgram
from morphir.runtime.learning.selection import Selection


@dataclass(frozen=True)
class Theta:
    """One producer's theta.

    Attributes:
        space: The space.
        parameter: ``state_dict`` key of the kernel.
        out_axis: The kernel's axis of output channels.
        rows: For every group, its rows of ``value`` along ``out_axis``.
        value: theta, of the shape of the kernel's own rows, in float32 at least; requires grad.
        mask: 1 on the rows that can be split, broadcastable; None where all can.
        unit: Root mean square of the kernel's own rows; of a kernel of zeros, what initialisation gives one
            with as many inputs; 1 where they have no values.
    """

    space: str
    parameter: str
    out_axis: int
    rows: tuple[tuple[int, ...], ...]
    value: torch.Tensor
    mask: torch.Tensor | None
    unit: float

    @cached_property
    def key(self) -> str:
        """Its name among a learner's thetas."""
        return f"{self.space}/{self.parameter}"

    @staticmethod
    def initial(
        kernel: torch.Tensor,
        space: ChannelSpace,
        producer: Producer,
        own: Selection | None,
        scale: float,
        generator: torch.Generator,
    ) -> Theta:
        """Draws theta with ``scale`` times the kernel's root mean square.

        Args:
            kernel: The kernel.
            space: The space.
            producer: Whose kernel it is.
            own: The kernel's rows that theta has; all where None.
            scale: Relative size.
            generator: Source of the draw.
        """
        kernel = kernel.detach()
        rows = _rows(
            space, producer, range(kernel.shape[producer.out_axis]) if own is None else own.positions
        )
        kernel = kernel if own is None else own.take(kernel)
        mask = _mask(space, rows, kernel, producer.out_axis)
        dtype = at_least_single(kernel.dtype)
        noise = torch.randn(kernel.shape, generator=generator, dtype=torch.float64).to(kernel.device, dtype)
        size = kernel.to(dtype).square().mean().sqrt()
        inputs = kernel.numel() // max(kernel.shape[producer.out_axis], 1)
        size = torch.where(size > 0, size, max(inputs, 1) ** -0.5)
        value = noise * (scale * size)
        value = value if mask is None else value * mask
        # The kernel's memory format, which theta's convolutions then share.
        value = torch.empty_like(kernel, dtype=dtype).copy_(value).requires_grad_()
        unit = 1.0 if size.is_meta else float(size)
        return Theta(space.name, producer.parameter, producer.out_axis, rows, value, mask, unit)

    def set_gradient(self, gradient: torch.Tensor) -> None:
        """Hands the optimizer its gradient."""
        self.value.grad = self.laid_out(gradient if self.mask is None else gradient * self.mask)

    def laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of theta's shape with theta's strides.

        Fused Adam on a CPU pairs the entries of theta, gradient and moments by their place in memory,
        whatever their strides; a convolution's weight gradient often comes in channels-last.
        """
        if tensor.stride() == self.value.stride():
            return tensor
        return torch.empty_like(self.value, requires_grad=False).copy_(tensor)

    def of_group(self, group: int) -> torch.Tensor:
        """Returns one group's theta: the kernel of its one output channel, or ``[m, ...]`` in row order."""
        rows = self.rows[group]
        kernels = [self.value.detach().select(self.out_axis, row) for row in rows]
        return kernels[0].clone() if len(kernels) == 1 else torch.stack(kernels)

    def moved(self) -> torch.Tensor:
        """Returns for every group whether its theta is anything but 0, ``[groups]``; not read here."""
        own = self.value.detach().movedim(self.out_axis, 0).flatten(1).abs().amax(1)
        sums = own.new_zeros(len(self.rows) + 1).index_add_(0, self._owners, own)
        return sums[: len(self.rows)] > 0

    @cached_property
    def _owners(self) -> torch.Tensor:
        """The group of every row, one past the last for a row of none."""
        owner = {row: group for group, own in enumerate(self.rows) for row in own}
        count = self.value.shape[self.out_axis]
        return torch.tensor(
            [owner.get(row, len(self.rows)) for row in range(count)], device=self.value.device
        )

    @torch.no_grad()
    def put(self, group: int, kernels: torch.Tensor) -> None:
        """Sets one group's theta, in the form in which :meth:`of_group` returns it."""
        rows = self.rows[group]
        for row, kernel in zip(rows, [kernels] if len(rows) == 1 else kernels, strict=True):
            self.value.select(self.out_axis, row).copy_(kernel)


def initial_thetas(
    graph: Graph, programs: Sequence[SpaceProgram], scale: float, seed: int
) -> dict[str, dict[str, Theta]]:
    """Returns, for every space whose splits are learned, theta by producer parameter."""
    generator = torch.Generator().manual_seed(seed)
    state = named_state(graph)
    thetas: dict[str, dict[str, Theta]] = {}
    for program in programs:
        if program.split is not None:
            space, own = graph.space(program.name), dict[str, Theta]()
            rows = {producer.parameter: producer.rows for producer in program.split.producers}
            for producer in space.producers:
                key = producer.parameter
                if key not in own:
                    own[key] = Theta.initial(state[key], space, producer, rows[key], scale, generator)
            thetas[program.name] = own
    return thetas


def group_kernels(thetas: Mapping[str, Theta], group: int) -> dict[str, torch.Tensor]:
    """Returns the theta of one split, by producer parameter."""
    return {parameter: theta.of_group(group) for parameter, theta in thetas.items()}


def warn_of_half(thetas: Sequence[Theta], graph: Graph) -> None:
    """Warns the caller of the function that calls this where kernels are of half precision."""
    half = [theta.parameter for theta in thetas if graph.get_parameter(theta.parameter).dtype in HALF]
    if half:
        warnings.warn(
            f"{half[0]} and {len(half) - 1} more kernels are of half precision: what a split changes is less "
            "than its rounding, and estimates of splits mean little; keep parameters in float32, and learn "
            "under torch.autocast",
            MorphirWarning,
            stacklevel=3,
        )


def _rows(space: ChannelSpace, producer: Producer, own: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    binding = space.binding(producer.parameter, producer.out_axis)
    assert binding is not None
    rows: list[list[int]] = [[] for _ in range(space.width)]
    for place, row in enumerate(own):
        group = binding.groups[row]
        if group >= 0:
            rows[group].append(place)
    return tuple(map(tuple, rows))


def _mask(
    space: ChannelSpace, rows: Sequence[Sequence[int]], kernel: torch.Tensor, out_axis: int
) -> torch.Tensor | None:
    groups = zip(space.verdicts, rows, strict=True)
    splittable = {row for verdict, own in groups if verdict.kind == "exact" for row in own}
    keep = [float(row in splittable) for row in range(kernel.shape[out_axis])]
    if all(keep):
        return None
    shape = [1] * kernel.dim()
    shape[out_axis] = -1
    return torch.tensor(keep, device=kernel.device).view(shape)
