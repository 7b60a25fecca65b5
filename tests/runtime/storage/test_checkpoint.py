from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from morphir.runtime.storage import checkpoint as module
from morphir.runtime.storage.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoints,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from morphir.runtime.storage.files import StorageError, cannot_write
from morphir.runtime.storage.metrics import MetricsFile, read_metrics
from morphir.runtime.storage.packing import pack, unpack


def make(position: int) -> Checkpoint:
    weights = {"conv.weight": torch.randn(3, 2), "count": torch.tensor(position)}
    optimizer = {
        "state": {0: {"step": 4, "moment": torch.randn(3, 2)}},
        "param_groups": [{"betas": (0.9, 0.99)}],
    }
    return Checkpoint(position, {"weights": weights, "optimizer": optimizer, "learner": None}, {"note": "x"})


def assert_same(a: object, b: object) -> None:
    left, right = pack(a), pack(b)
    assert left[0] == right[0]
    assert left[1].keys() == right[1].keys()
    assert all(torch.equal(left[1][key], right[1][key]) for key in left[1])


def test_packing_keeps_structure_and_types() -> None:
    tree = {
        "a": torch.arange(3),
        "b": [1, None, True, 0.1],
        "c": (torch.zeros(()), {"$x": 1, 3: torch.ones(2, dtype=torch.bfloat16)}),
        "d": {},
    }
    skeleton, tensors = pack(tree)
    back = unpack(json.loads(json.dumps(skeleton)), tensors)
    assert_same(back, tree)
    assert isinstance(back["c"], tuple)
    assert list(back["c"][1]) == ["$x", 3]


def test_packing_copies() -> None:
    tensor = torch.zeros(2)
    _, tensors = pack({"a": tensor})
    tensor.add_(1)
    assert torch.equal(tensors["a"], torch.zeros(2))


def test_round_trip(tmp_path: Path) -> None:
    written = make(3)
    place = write_checkpoint(tmp_path / "checkpoints", written)
    assert place.name == "000003"
    read = read_checkpoint(place)
    assert (read.position, read.run) == (3, {"note": "x"})
    assert_same(read.sections, written.sections)
    assert not list(place.glob("*.p*"))


def test_keeps_the_last_ones(tmp_path: Path) -> None:
    for position in range(5):
        write_checkpoint(tmp_path, make(position), keep=2)
    assert [place.name for place in checkpoints(tmp_path)] == ["000003", "000004"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["000003", "000004"]


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "manifest.json"])
def test_truncated_checkpoint_falls_back_and_says_so(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, make(1))
    damaged = write_checkpoint(tmp_path, make(2)) / name
    damaged.write_bytes(damaged.read_bytes()[:-20])
    found, warnings = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.position == 1
    assert len(warnings) == 1
    assert "000002 is damaged" in warnings[0]
    assert name in warnings[0]
    assert [place.name for place in checkpoints(tmp_path)] == ["000001"]
    assert (tmp_path / "damaged-000002").is_dir()


def test_changed_and_missing_files_are_found(tmp_path: Path) -> None:
    place = write_checkpoint(tmp_path, make(1))
    weights = place / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is truncated or was changed"):
        read_checkpoint(place)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: No such file"):
        read_checkpoint(place)


def test_all_damaged_is_an_error_and_none_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nothing") == (None, ())
    (write_checkpoint(tmp_path, make(1)) / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="every checkpoint"):
        newest_checkpoint(tmp_path)


def test_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(1)
    write_checkpoint(tmp_path, first)

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_bytes", full)
    with pytest.raises(
        StorageError, match=r"cannot write .*000002: No space left on device\n.*free some space"
    ):
        write_checkpoint(tmp_path, make(2))
    assert [item.name for item in tmp_path.iterdir()] == ["000001"]
    found, warnings = newest_checkpoint(tmp_path)
    assert found is not None
    assert not warnings
    assert_same(found.sections, first.sections)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "free some space, or choose another place"),
        (errno.EACCES, "choose a place that you may write to, or change its permissions"),
        (errno.ENOTDIR, "choose another place"),
    ],
)
def test_the_hint_of_a_failed_write_fits_its_cause(number: int, hint: str) -> None:
    error = cannot_write(Path("there"), OSError(number, os.strerror(number)))
    assert str(error) == f"cannot write there: {os.strerror(number)}\n  hint: {hint}"


def test_leftovers_of_a_killed_writer_are_ignored_and_removed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, make(1))
    (tmp_path / ".new-000002").mkdir()
    (tmp_path / ".new-000002" / "weights.safetensors").write_bytes(b"half")
    found, warnings = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.position, warnings) == (1, ())
    write_checkpoint(tmp_path, make(2))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["000001", "000002"]


def test_metrics_go_back_to_a_checkpoints_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    for epoch in range(3):
        metrics.append("epoch", {"epoch": epoch, "loss": 0.1 * epoch})
    with path.open("a") as file:
        file.write('{"kind": "epo')
    resumed = MetricsFile(path, 2)
    resumed.append("phase", {"phase": 1})
    assert resumed.lines == 3
    assert [line["kind"] for line in read_metrics(path)] == ["epoch", "epoch", "phase"]
    assert read_metrics(path, "phase") == [{"kind": "phase", "phase": 1}]
