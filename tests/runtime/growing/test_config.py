from __future__ import annotations

import re
from pathlib import Path

import pytest

from morphir.errors import MorphirError
from morphir.runtime.growing.config import PRESETS, GrowthConfig
from morphir.runtime.growing.schedule import learning_rate, plan, theta_rate


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name: str) -> None:
    assert GrowthConfig.preset(name, seed=3).seed == 3


def test_paper_preset_has_the_papers_values() -> None:
    config = GrowthConfig.preset("paper")
    growing = [slot for slot in plan(config) if slot.stage != "final"]
    assert len(growing) == 600
    assert {slot.epochs for slot in growing} == {20}
    assert len({(slot.phase, slot.stage) for slot in growing}) == 30
    assert (config.batch_size, config.momentum, config.nesterov, config.weight_decay) == (64, 0.9, True, 1e-4)
    assert (config.theta_lr, config.ema, config.best_fraction) == (1e-2, None, 0.3)
    assert config.theta_lr_absolute and config.theta_lr_schedule == "constant"
    assert (config.learn_curvature, config.score_curvature) == ("batch", "batch")
    assert (config.theta_factors, config.theta_halvings) == ((1.0,), 0)
    rates = {slot.index: learning_rate(config, slot, 0.0) for slot in growing}
    assert [rates[index] for index in (0, 299, 300, 449, 450, 599)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"phasess": 3}, "no option 'phasess'.*\n.*did you mean phases"),
        ({"phases": -1}, "phases: .*greater than or equal to 0, got -1"),
        ({"best_fraction": 1.5}, "best_fraction: .*less than or equal to 1"),
        ({"momentum": 0.0}, "nesterov needs a momentum"),
        ({"seed": 10**23}, "seed: .*less than or equal to 9223372036854775807"),
        ({"learn_curvature": "bach"}, "learn_curvature: there is no such .* auto, .*batch.*got 'bach'"),
        ({"score_curvature": "sampled"}, "score_curvature: there is no such curvature.*got 'sampled'"),
        (
            {"theta_factors": (-1.0, 0.0)},
            "theta_factors.0: .*greater than 0, got -1.0; theta_factors.1: .*got 0",
        ),
        ({"milestones": (-3,)}, "milestones.0: .*greater than 0, got -3"),
        ({"milestones": (0.5, 0)}, "milestones.1: .*greater than 0, got 0"),
        ({"milestones": (float("nan"),)}, "milestones.0: .*finite number, got nan"),
        ({"lr": float("inf")}, "lr: .*finite number, got inf"),
        ({"final_lr": float("nan")}, "final_lr: .*finite number, got nan"),
        ({"lambda_macs": float("inf")}, "lambda_macs: .*finite number, got inf"),
        ({"splits": False, "prunes": False}, "nothing to do where neither splits nor prunes .*phases=0"),
        ({"final": "again"}, "final: .*'retrain', 'fine-tune' or 'none'"),
    ],
)
def test_wrong_options_get_one_clear_error(options: dict[str, object], match: str) -> None:
    with pytest.raises(MorphirError, match=match):
        GrowthConfig.preset("demo", **options)
    with pytest.raises(MorphirError, match=match):
        GrowthConfig(**options)  # pyright: ignore[reportArgumentType]


def test_unknown_preset_lists_what_there_is() -> None:
    with pytest.raises(
        MorphirError, match="no preset 'labtop'\n.*did you mean laptop\\? there are: paper, laptop"
    ):
        GrowthConfig.preset("labtop")


def test_differences_leave_out_what_does_not_change_results() -> None:
    one = GrowthConfig(seed=1, device="cpu")
    assert one.differences(GrowthConfig(seed=2)) == {"seed": (1, 2)}


def test_config_survives_json() -> None:
    config = GrowthConfig.preset("paper", device="cpu")
    assert GrowthConfig(**config.model_dump(mode="json")) == config


def test_plan_is_phase_by_phase() -> None:
    slots = plan(GrowthConfig(phases=2, train_epochs=1, learn_epochs=2, final_epochs=1))
    assert [(s.index, s.stage, s.phase, s.epoch) for s in slots] == [
        (0, "train", 1, 0),
        (1, "learn", 1, 0),
        (2, "learn", 1, 1),
        (3, "train", 2, 0),
        (4, "learn", 2, 0),
        (5, "learn", 2, 1),
        (6, "final", 3, 0),
    ]
    assert [s.index for s in slots if s.opens] == [0, 1, 3, 4, 6]
    assert [s.index for s in slots if s.closes] == [0, 2, 3, 5, 6]


def test_learning_rates() -> None:
    config = GrowthConfig(
        phases=1,
        train_epochs=2,
        learn_epochs=2,
        lr=0.2,
        lr_schedule="steps",
        milestones=(0.5, 3),
        final_epochs=4,
        final_lr=0.4,
        final_lr_schedule="cosine",
    )
    slots = plan(config)
    rates = [learning_rate(config, slot, 0.0) for slot in slots]
    assert rates[:4] == pytest.approx([0.2, 0.2, 0.02, 0.002])
    assert rates[4:] == pytest.approx([0.4, 0.4 * (0.5 + 0.5 * 0.5**0.5), 0.2, 0.4 * (0.5 - 0.5 * 0.5**0.5)])
    assert learning_rate(config, slots[0], 0.0, base=1.0) == 1.0
    assert learning_rate(config, slots[4], 0.5, base=1.0) < 0.4


def test_a_milestone_of_one_is_the_end_and_not_the_first_epoch() -> None:
    config = GrowthConfig(phases=2, lr=0.2, lr_schedule="steps", milestones=(1,), final="none")
    assert [learning_rate(config, slot, 0.0) for slot in plan(config)] == [0.2] * 4
    shortly_after = config.model_copy(update={"milestones": (1.01,)})
    assert learning_rate(shortly_after, plan(config)[2], 0.0) == pytest.approx(0.02)


def test_without_phases_nothing_has_to_be_allowed() -> None:
    assert GrowthConfig(phases=0, splits=False, prunes=False).phases == 0


def test_thetas_rate_falls_to_nothing_over_a_phase_or_stays() -> None:
    assert [theta_rate(0.2, "cosine", p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.1, 0.0])
    assert theta_rate(0.2, "constant", 0.9) == 0.2


def cell(value: object) -> str:
    """A value as docs/configuration.md writes it."""
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(f"{item:g}" for item in value) if isinstance(value, tuple) else f"{value}"


def test_the_documentation_has_every_presets_values() -> None:
    page = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    rows = [
        [part.strip() for part in line.strip("| ").split(" | ")]
        for line in page.splitlines()
        if line[:3] == "| `"
    ]
    values = {row[0].strip("`"): row[2:] for row in rows}
    configs = [GrowthConfig(), *(GrowthConfig.preset(name) for name in ("paper", "laptop", "demo"))]
    assert values == {name: [cell(getattr(c, name)) for c in configs] for name in GrowthConfig.model_fields}


def test_the_documentation_has_every_option() -> None:
    page = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE))
    assert rows == {name: field.description for name, field in GrowthConfig.model_fields.items()}
