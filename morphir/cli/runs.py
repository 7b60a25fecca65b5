"""``run.json``: where a run's model and data come from; and the network that is in a run directory."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from morphir.cli.models import ModelSpec
from morphir.data import load
from morphir.data.dataset import Dataset
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite
from morphir.runtime.history.store import HistoryStore
from morphir.runtime.storage.checkpoint import newest_checkpoint
from morphir.runtime.storage.files import read_json, to_json, write_atomic
from morphir.runtime.storage.rundir import RUN_FILE, RunDirectory
from passes.transform import replay


class DataSpec(BaseModel):
    """Data as it is named on the command line.

    Attributes:
        data: A dataset's name, or ``imagefolder:DIR``.
        data_dir: Where its files lie.
        limit: Only so many training images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    data_dir: str | None = None
    limit: int | None = None

    def absolute(self) -> DataSpec:
        """The same with absolute paths, to be found again from elsewhere."""
        prefix, separator, folder = self.data.partition(":")
        data = f"{prefix}:{_absolute(folder)}" if separator else self.data
        directory = None if self.data_dir is None else _absolute(self.data_dir)
        return self.model_copy(update={"data": data, "data_dir": directory})

    def load(self, *, download: bool = False) -> Dataset:
        """Loads the dataset."""
        return load(self.data, self.data_dir, download, limit=self.limit)


def sizes_of(dataset: Dataset) -> dict[str, int]:
    """Returns what the data says of a fresh model's sizes."""
    return {"channels": dataset.channels, "classes": dataset.classes, "image_size": dataset.image_size}


class RunSpec(BaseModel):
    """What ``run.json`` holds.

    Attributes:
        model: The seed network.
        data: What it is trained on.
        threads: CPU threads of the run; the last bits of a sum depend on them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSpec
    data: DataSpec
    threads: int | None = None

    def write(self, directory: Path) -> None:
        """Writes the file."""
        write_atomic(directory / RUN_FILE, to_json(self.model_dump(mode="json")))


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def is_run(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a run directory, finished or not."""
    return (Path(name) / RUN_FILE).is_file()


def has_history(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a history, or of a run directory; ``morphir.grow`` writes these too."""
    return is_run(name) or HistoryStore.is_one(HistoryStore.of(Path(name)))


def read_run(directory: Path) -> RunSpec:
    """Reads ``run.json``.

    Raises:
        MorphirError: if the directory holds none, or it is damaged.
    """
    if not is_run(directory):
        raise MorphirError(
            f"there is no run in {directory}: it has no {RUN_FILE}",
            hint="name a directory that 'morphir grow --out' made",
        )
    try:
        return RunSpec.model_validate(read_json(directory / RUN_FILE))
    except ValidationError as error:
        raise MorphirError(f"{directory / RUN_FILE} is damaged: {error}") from error


def seed_network(directory: Path) -> Graph:
    """Traces the network that a run was started from again.

    Raises:
        MorphirError: if there is no run, or the model cannot be built any more, or is another one by now.
    """
    model = read_run(directory).model
    file = model.file
    if file is not None and not file.is_file():
        raise MorphirError(
            f"the model file of the run in {directory} is gone: {file}",
            hint=f"put it back, or write its new place into {directory / RUN_FILE}, under model",
        )
    graph = model.trace()
    RunDirectory(directory).check_network(graph, model.model)
    return graph


def load_network(directory: Path) -> Graph:
    """Rebuilds the network of a run as its newest checkpoint has it: seed, rewrites, weights.

    Raises:
        MorphirError: if there is no run, no checkpoint, or the model cannot be built any more, or is another
            one by now.
    """
    graph = seed_network(directory)
    checkpoint, _ = newest_checkpoint(RunDirectory(directory).checkpoints)
    if checkpoint is None:
        raise MorphirError(f"the run in {directory} has no checkpoint yet")
    items = checkpoint.sections["rewrites"]
    replay(graph, [Rewrite.from_json(item["record"], item["tensors"]) for item in items])
    graph.load_state_dict(checkpoint.sections["weights"])
    return graph.eval()


def load_subject(
    name: str,
    *,
    width: int | None = None,
    channels: int = 3,
    classes: int = 10,
    image_size: int | None = None,
) -> Graph:
    """Returns the network that a name stands for: a run directory's, or a fresh model's.

    Args:
        name: A run directory, or what ``--model`` takes.
        width: For a fresh model; as the other sizes.
        channels: Of the images.
        classes: Number of classes.
        image_size: Side of the images; 224 for torchvision's models and 32 for others where None.
    """
    if is_run(name):
        return load_network(Path(name))
    if Path(name).is_dir():
        read_run(Path(name))
    spec = ModelSpec.of(name, width=width, channels=channels, classes=classes, image_size=image_size)
    return spec.trace()
