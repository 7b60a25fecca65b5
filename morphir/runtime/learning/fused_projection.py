"""A space's estimate with its elementwise work compiled: q and q~ of splits and prunes, and back to delta.

Per channel and sample, q is a sum over what few values in memory tell. The estimate's slope by q is one
number for each channel and sample, and channels do not mix, so that the gradient by delta is that slope times
q's own: one kernel reads y, delta, a and g, and writes sums and q's gradient. What is no elementwise
operator, such as a depthwise convolution, runs between kernels (:mod:`morphir.runtime.learning.segmented`);
there, one kernel writes the sums, and another reads all again for the gradient.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch.fx.node import map_arg

from morphir.ir.state import attribute
from morphir.runtime.learning.group_index import GroupIndex
from morphir.runtime.learning.precision import (
    at_least_single,
    is_half_by_autocast,
    single,
    without_autocast,
)
from morphir.runtime.learning.projection import (
    EdgeValue,
    PlainProjection,
    Projected,
    Projection,
    RegionValues,
)
from morphir.runtime.learning.region import Region
from morphir.runtime.learning.segmented import Evaluation, Segmented
from morphir.runtime.learning.segments import NotSegmentedError
from morphir.runtime.learning.window_max import fuse_pools


class FusedProjection:
    """How a region is projected by compiled kernels.

    Args:
        region: The region.
        owners: For each producer's y, the group of each of its channels; None where that is not known.
    """

    # Kernels hold little between them, and each call costs time.
    cpu_slice_bytes = 3 << 20

    def __init__(self, region: Region, owners: Sequence[GroupIndex | None]) -> None:
        self.region = region
        self._owners = [owner for owner in owners if owner is not None]
        self._all_owned = len(self._owners) == len(owners)
        self._plain = PlainProjection(region)
        self._attributes = _attributes(region)
        self._programs: dict[Hashable, Segmented | None] = {}

    def __call__(self, values: RegionValues) -> Projected:
        """Returns the projections, and the way back."""
        edges = [edge for edge in values.edges if edge is not None]
        if len(edges) < len(values.edges):
            return self._plain(values)
        in_single = is_half_by_autocast(values.ys)
        with without_autocast(values.ys[0].device.type):
            evaluation = self._run(values, edges, in_single=in_single)
        if evaluation is None:
            return self._plain(values)
        indices, sums = [edge.groups for edge in edges], evaluation.outputs
        split_q, prune_q, *sampled = (
            _gathered(indices, sums[at : at + len(edges)], values.samples)
            for at in range(0, len(sums), len(edges))
        )
        split_sampled, prune_sampled = sampled or (None, None)

        def pull(slope: torch.Tensor | float, sampled_slope: torch.Tensor | None) -> Sequence[torch.Tensor]:
            if evaluation.slopes:
                return self._scaled(values.deltas, evaluation.slopes, (slope, sampled_slope))
            found: list[torch.Tensor | None] = [None] * len(sums)
            # Two of every four sums are prunes'.
            for first, own in ((0, slope), (2 * len(edges), sampled_slope)):
                for at, index in enumerate(indices if own is not None else (), first):
                    found[at] = _laid_out(cast("torch.Tensor | float", own), index, sums[at])
            return evaluation.vjp(found)

        return Projected(Projection(prune_q, prune_sampled), Projection(split_q, split_sampled), pull)

    def _scaled(
        self,
        deltas: Sequence[torch.Tensor],
        gradients: Sequence[Sequence[torch.Tensor]],
        slopes: Sequence[torch.Tensor | float | None],
    ) -> Sequence[torch.Tensor]:
        """Writes the sum of slope times gradient, of q and q~, into the deltas."""
        for position, (owner, delta) in enumerate(zip(self._owners, deltas, strict=True)):
            for number, (own, slope) in enumerate(zip(gradients, slopes, strict=False)):
                factor: Any = owner.along(slope, delta) if isinstance(slope, torch.Tensor) else slope
                if number == 0:
                    torch.mul(own[position], factor, out=delta)
                elif factor is not None:
                    delta.addcmul_(own[position], factor)
        return deltas

    def _run(self, values: RegionValues, edges: Sequence[EdgeValue], *, in_single: bool) -> Evaluation | None:
        module = self.region.module
        given = [
            *values.ys,
            *values.deltas,
            *values.externals,
            *(attribute(module, name) for name in self._attributes),
            *(edge.a for edge in edges),
            *(edge.g for edge in edges),
        ]
        if values.sampled:
            given += [torch.zeros_like(edge.g) if edge.sampled is None else edge.sampled for edge in edges]
        kinds = tuple((edge.a.dtype, edge.a.dim(), edge.g.dtype) for edge in edges)
        key = (values.sampled, kinds, in_single)
        if key not in self._programs:
            building = _Building(self.region, len(values.ys), sampled=values.sampled, in_single=in_single)
            try:
                program = building.run(edges)
                # Where samples mix, q's gradient for one sample is no multiple of the one for all.
                sets = building.splits if self._all_owned and self.region.samples_apart else ()
                self._programs[key] = Segmented(program, module, building.deltas, sets, given)
            except NotSegmentedError:
                self._programs[key] = None
        program = self._programs[key]
        return None if program is None else program(*given)


def _laid_out(slope: torch.Tensor | float, index: GroupIndex, like: torch.Tensor) -> torch.Tensor:
    if isinstance(slope, torch.Tensor):
        return index.rows(slope, like.shape[0]).to(like.dtype).contiguous()
    return torch.full_like(like, slope)


def _gathered(indices: Sequence[GroupIndex], sums: Sequence[torch.Tensor], samples: int) -> torch.Tensor:
    found = [index.gather(own, samples) for index, own in zip(indices, sums, strict=True)]
    return sum(found[1:], start=found[0])


class _Building:
    """Builds ``program(*ys, *deltas, *externals, *attributes, *as, *gs, *g~s)``.

    It returns, edge by edge, the sums of the splits' u g, of the prunes', and both with g~ in g's place.

    Attributes:
        deltas: The placeholders of the deltas.
        splits: Positions of the splits' sums with g; with g~.
    """

    def __init__(self, region: Region, producers: int, *, sampled: bool, in_single: bool) -> None:
        self.region = region
        self.sampled = sampled
        self.in_single = in_single
        self.program = fx.Graph()
        self.ys = self._placeholders("y", producers)
        self.deltas = self._placeholders("delta", producers)
        self.externals = self._placeholders("external", len(region.externals))
        names = _attributes(region)
        self.attributes = dict(zip(names, self._placeholders("attribute", len(names)), strict=True))

    def run(self, edges: Sequence[EdgeValue]) -> fx.Graph:
        bases, gradients = self._placeholders("a", len(edges)), [self._placeholders("g", len(edges))]
        if self.sampled:
            gradients.append(self._placeholders("sampled_g", len(edges)))
        changes = self._changes(bases)
        outputs: list[fx.Node] = []
        self.splits: list[Sequence[int]] = []
        for own in gradients:
            self.splits.append(range(len(outputs), len(outputs) + len(edges)))
            for factor, us in ((0.5, changes), (-1.0, bases)):
                sums = zip(us, own, edges, strict=True)
                outputs += [self._sum(u, g, factor, edge) for u, g, edge in sums]
        self.program.output(tuple(outputs))
        fuse_pools(self.program, self.region.module)
        return self.program

    def _placeholders(self, name: str, count: int) -> list[fx.Node]:
        return [self.program.placeholder(f"{name}_{number}") for number in range(count)]

    def _changes(self, bases: Sequence[fx.Node]) -> list[fx.Node]:
        """Returns 2u at each edge."""
        ys, deltas = (list(map(self._precise, values)) for values in (self.ys, self.deltas))
        if self.region.kind == "relu":
            return [self._excess(ys[0], deltas[0])]
        if self.in_single:
            # Those in memory are rounded to half precision.
            bases = self._region(ys)
        pairs = list(zip(ys, deltas, strict=True))
        ups = [self._call(torch.add, y, delta) for y, delta in pairs]
        downs = [self._call(torch.sub, y, delta) for y, delta in pairs]
        # Not stacked, as uncompiled ones are: PyTorch's compiler makes slow kernels of concatenations.
        results = (self._region(ups), self._region(downs))
        sums = [self._call(torch.add, up, down) for up, down in zip(*results, strict=True)]
        return [self._call(torch.sub, total, a, alpha=2) for total, a in zip(sums, bases, strict=True)]

    def _precise(self, value: fx.Node) -> fx.Node:
        return self.program.call_function(single, (value,)) if self.in_single else value

    def _excess(self, y: fx.Node, delta: fx.Node) -> fx.Node:
        """For a single ReLU, 2u is delta's excess over the interval [-|y|, |y|], without its sign."""
        bound = self._call(torch.abs, y)
        inside = self._call(torch.clamp, delta, self._call(torch.neg, bound), bound)
        return self._call(torch.abs, self._call(torch.sub, delta, inside))

    def _region(self, inputs: Sequence[fx.Node]) -> list[fx.Node]:
        """Copies the region; its modules keep their names."""
        nodes = list(self.region.module.graph.nodes)
        placeholders = [node for node in nodes if node.op == "placeholder"]
        copied = dict(zip(placeholders, (*inputs, *map(self._precise, self.externals)), strict=True))
        for node in nodes:
            if node.op == "get_attr":
                copied[node] = self.attributes[cast(str, node.target)]
            elif node.op == "output":
                return list(cast("Sequence[fx.Node]", map_arg(node.args[0], copied.__getitem__)))
            elif node.op != "placeholder":
                copied[node] = self.program.node_copy(node, copied.__getitem__)
        raise AssertionError("a program has an output")

    def _sum(self, u: fx.Node, g: fx.Node, factor: float, edge: EdgeValue) -> fx.Node:
        product = self._call(torch.mul, u, g)
        dtype = at_least_single(torch.promote_types(edge.a.dtype, edge.g.dtype))
        others = edge.groups.others(edge.a.dim())
        if others:
            sums = self._call(torch.sum, product, others, dtype=dtype)
        else:
            sums = self.program.call_method("to", (product, dtype))
        return self._call(torch.mul, sums, factor)

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.program.call_function(target, args, kwargs)


def _attributes(region: Region) -> list[str]:
    """Returns the names of the parameters and buffers that a region reads."""
    nodes = region.module.graph.nodes
    return list(dict.fromkeys(cast(str, node.target) for node in nodes if node.op == "get_attr"))
