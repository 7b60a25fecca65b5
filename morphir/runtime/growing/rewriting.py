"""The end of a phase: from the learner's scores to a rewritten graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

from torch import optim

from morphir.analysis.cost import Cost, cost, delta_cost_of_copies
from morphir.ir.graph import Graph
from morphir.ir.index_map import IndexMap, composed, copies_of
from morphir.ir.remarks import Remark
from morphir.morphisms.base import Morphism
from morphir.morphisms.plan import index_maps
from morphir.runtime.growing.events import GraphRewritten
from morphir.runtime.growing.following import leave_out_refused
from morphir.runtime.growing.line_search import Trial, best, scaled, search
from morphir.runtime.growing.run_state import Job
from morphir.runtime.growing.selection import SelectionRules, select
from morphir.runtime.growing.training import evaluate
from morphir.runtime.learning.learner import Learner
from passes.batch_norm import ReexpressBatchNorm
from passes.instruments import active, tell_all
from passes.manager import PassManager
from passes.transform import transform


def rewrite_graph(job: Job, learner: Learner, optimizer: optim.Optimizer, phase: int) -> GraphRewritten:
    """Selects morphisms, applies them to graph and optimizer, and re-expresses batch norm on data."""
    graph, scores = job.graph, learner.scores()
    selection = select(
        scores,
        widths(graph),
        SelectionRules.of(job.config),
        least={name: space.least for name, space in graph.spaces.items()},
        used=_resources(cost(graph)),
        measure=lambda morphisms: _resources(cost(graph) + _delta(graph, morphisms)),
    )
    selection = leave_out_refused(graph, selection)
    selection = replace(selection, remarks=(*learner.refused.values(), *selection.remarks))
    tell_all(lambda instrument: instrument.on_remarks("selection", selection.remarks), active())
    if not selection.taken:
        return GraphRewritten(graph, phase, selection, None, (), selection.remarks, tuple(scores))
    trials = _try_factors(job, selection.morphisms)
    result = transform(graph, scaled(selection.morphisms, best(trials)), optimizer)
    remarks = result.remarks + _reexpress(job, result.index_maps, optimizer)
    remarks = (*remarks, *selection.remarks)
    return GraphRewritten(graph, phase, selection, result, trials, remarks, tuple(scores))


def _try_factors(job: Job, morphisms: Sequence[Morphism]) -> tuple[Trial, ...]:
    """Tries the configured factors on a few training batches; a single one needs no trial."""
    factors = job.config.theta_factors
    if len(factors) == 1 or all(morphism.kind != "split" for morphism in morphisms):
        return (Trial(factors[0], math.nan),)
    batches = list(islice(job.train_data, job.config.trial_batches))

    def loss_of(graph: Graph) -> float:
        return evaluate(graph, batches, job.loss, job.placement).loss

    return search(job.graph, morphisms, factors, loss_of)


def widths(graph: Graph) -> dict[str, int]:
    """Returns space name to number of groups, in program order."""
    return {name: space.width for name, space in graph.spaces.items()}


def _resources(amount: Cost) -> Mapping[str, float]:
    return {"parameters": amount.parameters, "macs": amount.macs}


def _delta(graph: Graph, morphisms: Sequence[Morphism]) -> Cost:
    return delta_cost_of_copies(graph, copies_of(index_maps(graph, morphisms)))


def _reexpress(job: Job, maps: Sequence[IndexMap], optimizer: optim.Optimizer) -> tuple[Remark, ...]:
    """Estimates the split children's batch statistics; the groups are those after the prunes."""
    batches = [
        job.placement.move(inputs) for inputs, _ in islice(job.train_data, job.config.batch_norm_batches)
    ]
    step = ReexpressBatchNorm(batches, composed(maps))
    return PassManager((step,)).run(job.graph, optimizer).remarks
