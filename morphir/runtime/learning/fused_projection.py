"""A space's estimate with its elementwise work compiled: q and q~ of splits and prunes, and back to delta.

Per channel and sample, q is a sum over what few values in memory tell, and the splits' estimates are a scalar
that few numbers make of it: one kernel reads y, delta, a and g, and writes q and the gradient of that scalar.
What is no elementwise operator, such as a depthwise convolution, runs between kernels
(:mod:`morphir.runtime.learning.segmented`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from typing import Any, NamedTuple, cast

import torch
from torch import fx
from torch.fx.node import map_arg

from morphir.ir.state import attribute
from morphir.runtime.learning.compilation import signature
from morphir.runtime.learning.curvature import Slopes
from morphir.runtime.learning.group_index import each_sample, gathered
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
    """

    # Kernels hold little between them, and each call costs time.
    cpu_slice_bytes = 3 << 20

    def __init__(self, region: Region) -> None:
        self.region = region
        self._plain = PlainProjection(region)
        self._attributes = _attributes(region)
        self._programs: dict[_Form, Segmented | None] = {}
        self._served: dict[Hashable, Callable[[Sequence[Any]], Evaluation] | None] = {}

    def __call__(self, values: RegionValues, slopes: Slopes) -> Projected:
        """Returns the projections, and the way back."""
        edges = [edge for edge in values.edges if edge is not None]
        if len(edges) < len(values.edges):
            return self._plain(values, slopes)
        in_single = is_half_by_autocast(values.ys)
        with without_autocast(values.ys[0].device.type):
            evaluation = self._run(values, edges, slopes, in_single=in_single)
        if evaluation is None:
            return self._plain(values, slopes)
        split_q, prune_q, *sampled = evaluation.outputs
        split_sampled, prune_sampled = sampled or (None, None)
        return Projected(
            Projection(prune_q, prune_sampled), Projection(split_q, split_sampled), evaluation.gradients
        )

    def _run(
        self, values: RegionValues, edges: Sequence[EdgeValue], slopes: Slopes, *, in_single: bool
    ) -> Evaluation | None:
        module = self.region.module
        given = [
            *values.ys,
            *values.deltas,
            *values.externals,
            *[attribute(module, name) for name in self._attributes],
            *[edge.a for edge in edges],
            *[edge.g for edge in edges],
        ]
        if values.sampled:
            given += [torch.zeros_like(edge.g) if edge.sampled is None else edge.sampled for edge in edges]
        given += [edge.groups.index for edge in edges if edge.groups.index is not None]
        given += [slope for slope in (slopes.first, slopes.second, slopes.sampled) if slope is not None]
        options = (values.sampled, slopes.second is not None, slopes.sampled is not None, in_single)
        key = (values.samples, options, signature(given))
        if key not in self._served:
            form = _Form(tuple([_EdgeForm.of(edge, values.samples) for edge in edges]), *options)
            program = self._program(form, len(values.ys), given)
            self._served[key] = None if program is None else program.serving()
        serving = self._served[key]
        return None if serving is None else serving(given)

    def _program(self, form: _Form, producers: int, example: Sequence[Any]) -> Segmented | None:
        if form not in self._programs:
            building = _Building(self.region, producers, form)
            try:
                program = building.run()
                self._programs[form] = Segmented(program, self.region.module, building.deltas, example)
            except NotSegmentedError:
                self._programs[form] = None
        return self._programs[form]


class _EdgeForm(NamedTuple):
    """What a program has to know of an edge.

    Attributes:
        others: The dimensions of a that are neither samples' nor channels'.
        dtype: What sums over them are held in.
        each: How much of a's first dimension each sample has.
        size: How many positions each group has; how many groups there are, where there is an index.
        indexed: Whether there is one.
    """

    others: tuple[int, ...]
    dtype: torch.dtype
    each: int
    size: int
    indexed: bool

    @staticmethod
    def of(edge: EdgeValue, samples: int) -> _EdgeForm:
        a, groups = edge.a, edge.groups
        dtype = at_least_single(torch.promote_types(a.dtype, edge.g.dtype))
        indexed = groups.index is not None
        size = groups.width if indexed else groups.repeat
        return _EdgeForm(
            tuple(groups.others(a.dim())), dtype, each_sample(a.shape[0], samples), size, indexed
        )


class _Form(NamedTuple):
    """What a program is made for.

    Attributes:
        edges: The edges.
        sampled: Whether there is a gradient for the sampled Fisher.
        by_square: Whether the estimate has q^2.
        by_sampled: Whether it has q~^2.
        in_single: Whether the region computes in single precision what autocast made half.
    """

    edges: tuple[_EdgeForm, ...]
    sampled: bool
    by_square: bool
    by_sampled: bool
    in_single: bool


class _Building:
    """Builds ``program(*ys, *deltas, *externals, *attributes, *as, *gs, *g~s, *indices, *slopes)``.

    It returns q of the splits and of the prunes, both q~, and the splits' estimates summed to a scalar.

    Attributes:
        deltas: The placeholders of the deltas.
    """

    def __init__(self, region: Region, producers: int, form: _Form) -> None:
        self.region = region
        self.form = form
        self.program = fx.Graph()
        self.ys = self._placeholders("y", producers)
        self.deltas = self._placeholders("delta", producers)
        self.externals = self._placeholders("external", len(region.externals))
        names = _attributes(region)
        self.attributes = dict(zip(names, self._placeholders("attribute", len(names)), strict=True))

    def run(self) -> fx.Graph:
        count = len(self.form.edges)
        bases, gradients = self._placeholders("a", count), [self._placeholders("g", count)]
        if self.form.sampled:
            gradients.append(self._placeholders("sampled_g", count))
        self.indices = self._placeholders("index", sum(edge.indexed for edge in self.form.edges))
        (self.first,) = self._placeholders("first", 1)
        self.second = self._placeholders("second", self.form.by_square)
        self.by_sampled = self._placeholders("sampled", self.form.by_sampled)
        changes = self._changes(bases)
        outputs: list[fx.Node] = []
        for own in gradients:
            outputs += [self._projected(changes, own, 0.5), self._projected(bases, own, -1.0)]
        # Of q and of q~ of the splits; those of the prunes are not learned.
        self.program.output((*outputs, self._estimate(*outputs[::2])))
        fuse_pools(self.program, self.region.module)
        return self.program

    def _placeholders(self, name: str, count: int) -> list[fx.Node]:
        return [self.program.placeholder(f"{name}_{number}") for number in range(count)]

    def _changes(self, bases: Sequence[fx.Node]) -> list[fx.Node]:
        """Returns 2u at each edge."""
        ys, deltas = (list(map(self._precise, values)) for values in (self.ys, self.deltas))
        if self.region.kind == "relu":
            return [self._excess(ys[0], deltas[0])]
        if self.form.in_single:
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
        return self.program.call_function(single, (value,)) if self.form.in_single else value

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

    def _projected(self, us: Sequence[fx.Node], gradients: Sequence[fx.Node], factor: float) -> fx.Node:
        """Returns the sum over all edges of factor u g, ``[S, groups]``."""
        indices = iter(self.indices)
        found = [
            self._call(gathered, self._sum(u, g, factor, edge), edge.each, edge.size, index)
            for u, g, edge in zip(us, gradients, self.form.edges, strict=True)
            for index in [next(indices) if edge.indexed else None]
        ]
        return reduce(lambda one, other: self._call(torch.add, one, other), found)

    def _sum(self, u: fx.Node, g: fx.Node, factor: float, edge: _EdgeForm) -> fx.Node:
        product = self._call(torch.mul, u, g)
        if edge.others:
            sums = self._call(torch.sum, product, list(edge.others), dtype=edge.dtype)
        else:
            sums = self.program.call_method("to", (product, edge.dtype))
        return self._call(torch.mul, sums, factor)

    def _estimate(self, q: fx.Node, sampled_q: fx.Node | None = None) -> fx.Node:
        """Returns the sum of all first q + 1/2 second q^2 + 1/2 sampled q~^2."""
        found = self._call(torch.mul, q, self.first)
        for own, slopes in ((q, self.second), (sampled_q, self.by_sampled)):
            for slope in slopes if own is not None else ():
                square = self._call(torch.mul, self._call(torch.mul, own, own), slope)
                found = self._call(torch.add, found, square, alpha=0.5)
        return self._call(torch.sum, found, [0, 1])

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.program.call_function(target, args, kwargs)


def _attributes(region: Region) -> list[str]:
    """Returns the names of the parameters and buffers that a region reads."""
    nodes = region.module.graph.nodes
    return list(dict.fromkeys(cast(str, node.target) for node in nodes if node.op == "get_attr"))
