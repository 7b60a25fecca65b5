"""The end of a phase: from the learner's scores to a rewritten graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any

from torch import optim

from morphir.analysis.cost import Cost, cost, delta_cost_of_copies
from morphir.ir.graph import Graph
from morphir.ir.index_map import IndexMap, composed, copies_of
from morphir.ir.remarks import Remark
from morphir.morphisms.base import Morphism
from morphir.morphisms.plan import index_maps
from morphir.runtime.growing.backtracking import Appraisal, planned
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.events import GraphRewritten
from morphir.runtime.growing.following import leave_out_refused
from morphir.runtime.growing.line_search import scaled
from morphir.runtime.growing.run_state import Job
from morphir.runtime.growing.selection import Measure, Selection, select, within_budgets
from morphir.runtime.growing.training import evaluate
from morphir.runtime.learning.learner import Learner, Score
from passes.batch_norm import ReexpressBatchNorm
from passes.instruments import active, tell_all
from passes.manager import PassManager
from passes.transform import transform


def rewrite_graph(job: Job, learner: Learner, optimizer: optim.Optimizer, phase: int) -> GraphRewritten:
    """Selects morphisms, applies them to graph and optimizer, and re-expresses batch norm on data."""
    graph, scores = job.graph, learner.scores()
    judged, last = appraisal(graph, job.config, _trial_loss(job)), phase == job.config.phases
    plan = planned(graph, scores, job.config, judged, last=last)
    left_out = (*learner.refused.values(), *plan.selection.remarks)
    selection = replace(plan.selection, remarks=left_out)
    _tell(selection)
    if not selection.taken:
        return GraphRewritten(graph, phase, selection, None, plan.trials, left_out, tuple(scores))
    result = transform(graph, scaled(selection.morphisms, plan.factor), optimizer)
    remarks = (*result.remarks, *_reexpress(job, result.index_maps, optimizer), *left_out)
    return GraphRewritten(graph, phase, selection, result, plan.trials, remarks, tuple(scores))


def _tell(selection: Selection) -> None:
    tell_all(lambda instrument: instrument.on_remarks("selection", selection.remarks), active())


def appraisal(graph: Graph, config: GrowthConfig, loss_of: Callable[[Graph], float]) -> Appraisal:
    """Returns what a configuration judges plans for a graph by."""
    measure = _measure_of(graph)
    least = {name: space.least for name, space in graph.spaces.items()}

    def price_of(morphisms: Sequence[Morphism]) -> float:
        taken = _amounts(_delta(graph, morphisms))
        return sum(each * taken[name] for name, each in config.prices.items())

    def fit(selection: Selection) -> Selection:
        return leave_out_refused(graph, within_budgets(selection, config, measure))

    def chosen(scores: Sequence[Score], shares: Mapping[str, float]) -> Selection:
        return select(scores, widths(graph), config, least=least, shares=shares)

    return Appraisal(loss_of, price_of, chosen, fit)


def _trial_loss(job: Job) -> Callable[[Graph], float]:
    """Returns what evaluates a graph on a few training batches, which are read when it is first called."""

    @cache
    def batches() -> Sequence[tuple[Any, Any]]:
        return list(islice(job.train_data, job.config.trial_batches))

    return lambda graph: evaluate(graph, batches(), job.loss, job.placement).loss


def widths(graph: Graph) -> dict[str, int]:
    """Returns space name to number of groups, in program order."""
    return {name: space.width for name, space in graph.spaces.items()}


def _measure_of(graph: Graph) -> Measure:
    """Returns what measures the resources that a graph uses once morphisms are applied."""
    now = cost(graph)
    return lambda morphisms: _amounts(now + _delta(graph, morphisms))


def _amounts(amount: Cost) -> Mapping[str, float]:
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
