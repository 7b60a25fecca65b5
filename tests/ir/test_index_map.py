"""Index maps as data: composition, lineage, a round trip through JSON."""

from __future__ import annotations

import json

import torch

from morphir.ir.index_map import IndexMap, Rewrite, composed

SPLIT = IndexMap(
    "a", 3, (0, 1, 1, 2), (1.0, 0.5, 0.5, 1.0), (0, 1, -1, 0), {1: {"a.weight": torch.arange(4.0)}}
)
PRUNE = IndexMap("a", 4, (1, 2, 3), (1.0, 1.0, 1.0), (0, 0, 0))


def test_text_names_every_groups_origin() -> None:
    assert str(SPLIT) == "a: 3 -> 4 [0 1+ 1- 2]"
    assert SPLIT.copies() == ((0,), (1, 2), (3,))


def test_composition_gathers_as_both_steps_do() -> None:
    (both,) = composed([SPLIT, PRUNE])
    values = torch.tensor([10.0, 11.0, 12.0])
    stepwise = values[list(SPLIT.sources)][list(PRUNE.sources)]
    assert torch.equal(values[list(both.sources)], stepwise)
    assert both.scales == (0.5, 0.5, 1.0) and both.signs == (1, -1, 0) and both.old_width == 3


def test_json_and_tensors_make_the_rewrite_again() -> None:
    rewrite = Rewrite(7, "split-channels", ("split a[1]",), (SPLIT,), 12)
    again = Rewrite.from_json(json.loads(json.dumps(rewrite.to_json())), rewrite.tensors())
    assert again == rewrite
    assert torch.equal(again.maps[0].thetas[1]["a.weight"], torch.arange(4.0))
