"""Every example runs, and does what it says."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script as ``python examples/NAME.py`` would find it."""
    monkeypatch.syspath_prepend(ROOT / "examples")

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("custom_model", None)


def owns_all(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> bool:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return held == {id(p) for p in model.parameters()}


def test_own_loop(example: Callable[[str], ModuleType]) -> None:
    graph, optimizer = example("examples/grow_api.py").main(phases=2, epochs=1, limit=128)
    # A third of 8 splits, then of 10, wherever they pay most.
    assert graph.spaces["stem.0"].width + graph.spaces["conv1"].width == 4 + 4 + 2 + 3
    assert owns_all(optimizer, graph)
    assert all("momentum_buffer" in optimizer.state[p] for p in graph.parameters())


def test_somebody_elses_loop(example: Callable[[str], ModuleType]) -> None:
    trainer = example("examples/huggingface_style_loop.py").main(epochs=4, limit=128)
    assert len(trainer.callbacks[0].history) == 2
    assert trainer.callbacks[0].history[-1] == {n: s.width for n, s in trainer.model.spaces.items()}
    assert trainer.scheduler.optimizer is trainer.optimizer
    assert owns_all(trainer.optimizer, trainer.model)


def test_custom_model(example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    example("examples/custom_model.py").main()
    assert "locality of conv1" in capsys.readouterr().out


def test_benchmark_goes_on_where_it_was_stopped(
    example: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = example("benchmarks/fashion_mnist.py")
    settings = [
        "phases=1",
        "train_epochs=1",
        "learn_epochs=1",
        "final_epochs=1",
        "min_width=3",
        "batch_size=32",
    ]
    options = ["--data", "digits", "--limit", "64", "--preset", "demo", "--width", "4", "--threads", "1"]
    options += ["--budget", "final", "total", "--out", str(tmp_path), "--set", *settings]
    benchmark.main(options)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    arms = {row["arm"]: row for row in rows}
    assert list(arms) == [
        "grown",
        *("seed-final", "wide-final", "same-macs-final"),
        *("seed-total", "wide-total", "same-macs-total"),
    ]
    assert arms["wide-final"]["parameters"] >= arms["grown"]["parameters"]
    assert arms["same-macs-final"]["macs"] >= arms["grown"]["macs"]
    assert [arms[name]["epochs"] for name in ("grown", "seed-final", "seed-total")] == [3, 1, 3]
    monkeypatch.setattr(benchmark.morphir, "grow", None, raising=False)
    (tmp_path / "results.json").unlink()
    benchmark.main(options)
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
