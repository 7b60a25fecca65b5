"""``--preset``, ``--config`` and ``--set``: the later wins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from morphir.cli.settings import growth_config, placed
from morphir.errors import MorphirError
from morphir.runtime.growing.config import GrowthConfig


def test_order(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"phases": 3, "lr": 0.2, "seed": 4}))
    config = growth_config("demo", file, ["lr=0.3", "final=fine-tune"], seed=5)
    assert config == GrowthConfig.preset("demo", phases=3, lr=0.3, final="fine-tune", seed=5)


def test_values_are_json_where_they_can_be() -> None:
    config = growth_config("demo", None, ["milestones=[1, 2]", "learn_steps=null", "amp=true"], seed=None)
    assert (config.milestones, config.learn_steps, config.amp) == ((1, 2), None, True)


def test_a_runs_configuration_is_a_file_of_options(finished_run: Path) -> None:
    saved = json.loads((finished_run / "config.json").read_text())["config"]
    assert growth_config("laptop", finished_run / "config.json", []) == GrowthConfig(**saved)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(MorphirError, match="cannot read"):
        growth_config("demo", tmp_path / "none.json", [])
    file = tmp_path / "list.json"
    file.write_text("[1]")
    with pytest.raises(MorphirError, match="holds no JSON object"):
        growth_config("demo", file, [])


def test_the_device_is_that_of_the_option_else_of_the_configuration() -> None:
    config = growth_config("demo", None, ["device=cpu"])
    assert placed(config, None).device == "cpu"
    assert placed(growth_config("demo", None, ["device=cuda:97"]), "cpu").device == "cpu"
    with pytest.raises(MorphirError, match="there is no device 'cuda:97' on this machine"):
        placed(growth_config("demo", None, ["device=cuda:97"]), None)
    with pytest.raises(MorphirError, match="'gpu' is not a device"):
        placed(config, "gpu")


def test_auto_is_a_device_that_is_there() -> None:
    for options in ([], ["device=auto"]):
        assert placed(growth_config("demo", None, options), None).device in {"cuda", "mps", "cpu"}
