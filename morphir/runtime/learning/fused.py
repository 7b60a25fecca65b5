"""A space's estimate with its elementwise work compiled: q and q~ of splits and prunes, and back to delta.

Per channel and sample, q is a sum over what few values in memory tell: one kernel reads y, delta, a and g and
writes nothing but sums; a second reads them again, and writes the gradient by delta. What is no elementwise
operator, such as a depthwise convolution, runs between kernels (:mod:`morphir.runtime.learning.segments`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch.fx.node import map_arg

from morphir.ir.state import attribute
from morphir.runtime.learning.curvature import Curvature
from morphir.runtime.learning.estimate import EdgeValue, Projection, RegionInputs, SplitEstimate
from morphir.runtime.learning.group_index import GroupIndex, sum_dtype
from morphir.runtime.learning.lowering import SplitProgram
from morphir.runtime.learning.model_pass import Pass
from morphir.runtime.learning.perturbation import may_stack
from morphir.runtime.learning.region import Region
from morphir.runtime.learning.segments import Evaluation, Segmented


class FusedSplits:
    """One space's splits and prunes, estimated by compiled kernels.

    Args:
        split: The space's program.
    """

    def __init__(self, split: SplitProgram) -> None:
        self.split = split
        self._programs: dict[tuple[bool, bool], Segmented] = {}

    def estimate(
        self,
        thetas: Mapping[str, torch.Tensor],
        edges: Sequence[EdgeValue],
        run: Pass,
        curvature: Curvature,
    ) -> tuple[Projection, SplitEstimate]:
        """Returns the prunes' projection and the splits' estimate.

        Args:
            thetas: Producer parameter to theta; each requires grad.
            edges: The edges' values.
            run: The batch.
            curvature: The term that theta is learned with.
        """
        given = RegionInputs.of(self.split, thetas, run)
        evaluation = self._run(given, edges, sampled=run.sampled is not None)
        count, samples = len(edges), run.samples
        indices = [edge.groups for edge in edges]
        split_q, prune_q, *sampled = (
            _gathered(indices, evaluation.outputs[at : at + count], samples)
            for at in range(0, len(evaluation.outputs), count)
        )
        split_sampled, prune_sampled = sampled or (None, None)
        slopes = [curvature.slope(split_q, run.losses)]
        if curvature.sampled and split_sampled is not None:
            slopes.append(curvature.sampled_slope(split_sampled))
        back = evaluation.vjp(self._cotangents(slopes, indices, evaluation.outputs, samples))
        splits = SplitEstimate(Projection(split_q, split_sampled), given.theta_gradients(thetas, back))
        return Projection(prune_q, prune_sampled), splits

    def _cotangents(
        self,
        slopes: Sequence[torch.Tensor | float],
        indices: Sequence[GroupIndex],
        sums: Sequence[torch.Tensor],
        samples: int,
    ) -> list[torch.Tensor | None]:
        """Lays the slopes out as the program's outputs are: two of every four sums are prunes'."""
        found: list[torch.Tensor | None] = [None] * len(sums)
        for number, slope in enumerate(slopes):
            first = 2 * number * len(indices)
            for position, index in enumerate(indices, first):
                like = sums[position]
                if isinstance(slope, torch.Tensor):
                    found[position] = index.rows(slope / samples, like.shape[0]).to(like.dtype).contiguous()
                else:
                    found[position] = torch.full_like(like, slope / samples)
        return found

    def _run(self, given: RegionInputs, edges: Sequence[EdgeValue], *, sampled: bool) -> Evaluation:
        region, stacked = self.split.region, may_stack(self.split.region, given.ys)
        values = [
            *given.ys,
            *given.detached(),
            *given.externals,
            *(attribute(region.module, name) for name in _attributes(region)),
            *(edge.a for edge in edges),
            *(edge.g for edge in edges),
        ]
        if sampled:
            values += [torch.zeros_like(edge.g) if edge.sampled is None else edge.sampled for edge in edges]
        key = (stacked, sampled)
        if key not in self._programs:
            building = _Building(region, len(given.ys), stacked=stacked, sampled=sampled)
            program = building.run(edges)
            self._programs[key] = Segmented(program, region.module, building.deltas, values)
        return self._programs[key](*values)


def _gathered(indices: Sequence[GroupIndex], sums: Sequence[torch.Tensor], samples: int) -> torch.Tensor:
    found = [index.gather(own, samples) for index, own in zip(indices, sums, strict=True)]
    return sum(found[1:], start=found[0])


class _Building:
    """Builds ``program(*ys, *deltas, *externals, *attributes, *as, *gs, *g~s)``.

    It returns, edge by edge, the sums of the splits' u g, of the prunes', and both with g~ in g's place.
    """

    def __init__(self, region: Region, producers: int, *, stacked: bool, sampled: bool) -> None:
        self.region = region
        self.stacked = stacked
        self.sampled = sampled
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
        for own in gradients:
            for factor, us in ((0.5, changes), (-1.0, bases)):
                sums = zip(us, own, edges, strict=True)
                outputs += [self._sum(u, g, factor, edge) for u, g, edge in sums]
        self.program.output(tuple(outputs))
        return self.program

    def _placeholders(self, name: str, count: int) -> list[fx.Node]:
        return [self.program.placeholder(f"{name}_{number}") for number in range(count)]

    def _changes(self, bases: Sequence[fx.Node]) -> list[fx.Node]:
        """Returns 2u at each edge."""
        if self.region.kind == "relu":
            return [self._excess(self.ys[0], self.deltas[0])]
        pairs = list(zip(self.ys, self.deltas, strict=True))
        ups = [self._call(torch.add, y, delta) for y, delta in pairs]
        downs = [self._call(torch.sub, y, delta) for y, delta in pairs]
        if self.stacked:
            both = [self._call(torch.cat, pair) for pair in zip(ups, downs, strict=True)]
            halves = [self._call(torch.unflatten, out, 0, (2, -1)) for out in self._region(both)]
            results = [[self._call(torch.select, half, 0, at) for half in halves] for at in (0, 1)]
        else:
            results = [self._region(ups), self._region(downs)]
        sums = [self._call(torch.add, up, down) for up, down in zip(*results, strict=True)]
        return [self._call(torch.sub, total, a, alpha=2) for total, a in zip(sums, bases, strict=True)]

    def _excess(self, y: fx.Node, delta: fx.Node) -> fx.Node:
        """For a single ReLU, 2u is delta's excess over the interval [-|y|, |y|], without its sign."""
        bound = self._call(torch.abs, y)
        inside = self._call(torch.clamp, delta, self._call(torch.neg, bound), bound)
        return self._call(torch.abs, self._call(torch.sub, delta, inside))

    def _region(self, inputs: Sequence[fx.Node]) -> list[fx.Node]:
        """Copies the region; its modules keep their names."""
        nodes = list(self.region.module.graph.nodes)
        placeholders = [node for node in nodes if node.op == "placeholder"]
        copied = dict(zip(placeholders, (*inputs, *self.externals), strict=True))
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
        dtype = sum_dtype(torch.promote_types(edge.a.dtype, edge.g.dtype))
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
