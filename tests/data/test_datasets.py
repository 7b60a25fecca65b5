"""Every row of the table of datasets, on tiny files in the layout that torchvision writes."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import datasets as sklearn_datasets

from morphir.data import Loader, TensorSplit, eval_loader, load
from morphir.errors import MorphirError


def tensors(split: object) -> TensorSplit:
    assert isinstance(split, TensorSplit)
    return split


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("t10k", 5)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


def test_digits_are_all_there_once() -> None:
    digits = load("digits")
    train, test = tensors(digits.train), tensors(digits.test)
    assert (len(train), len(test)) == (1437, 360)
    assert (digits.name, digits.channels, digits.classes, digits.image_size) == ("digits", 1, 10, 8)
    images, targets = sklearn_datasets.load_digits(return_X_y=True)
    ours = np.c_[torch.cat([train.images, test.images]).flatten(1), torch.cat([train.targets, test.targets])]
    theirs = np.c_[images, targets]
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_digits_are_split_alike_every_time_and_normalised() -> None:
    first, second = load("digits"), load("digits")
    assert torch.equal(tensors(first.test).targets, tensors(second.test).targets)
    inputs = torch.cat([batch for batch, _ in Loader(first.train, first.normalisation, batch_size=64)])
    assert abs(inputs.mean().item()) < 1e-2
    assert inputs.std().item() == pytest.approx(1, abs=1e-2)


def test_fashion_mnist_is_padded_to_32(fashion: Path) -> None:
    dataset = load("fashion-mnist", fashion)
    assert (dataset.channels, dataset.classes, dataset.image_size) == (1, 10, 32)
    raw = (fashion / "FashionMNIST/raw/train-images-idx3-ubyte").read_bytes()[16:]
    stored = torch.tensor(list(raw), dtype=torch.uint8).reshape(12, 1, 28, 28)
    train = tensors(dataset.train)
    assert torch.equal(train.images[:, :, 2:30, 2:30], stored)
    assert train.images.long().sum() == stored.long().sum()
    assert train.targets.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert len(dataset.test) == 5


def test_image_size_pads_and_never_shrinks(fashion: Path) -> None:
    assert load("fashion-mnist", fashion, image_size=28).image_size == 28
    odd = tensors(load("digits", image_size=11).train).images
    assert torch.equal(odd[:, :, 1:9, 1:9], tensors(load("digits").train).images)
    with pytest.raises(MorphirError, match="images of 28 pixels, 16 is too small"):
        load("fashion-mnist", fashion, image_size=16)


def test_limit_takes_the_first_training_images(fashion: Path) -> None:
    dataset = load("fashion-mnist", fashion, limit=3)
    assert tensors(dataset.train).targets.tolist() == [0, 1, 2]
    assert len(dataset.test) == 5
    assert len(load("fashion-mnist", fashion, limit=1000).train) == 12
    with pytest.raises(MorphirError, match="limit must be at least 2"):
        load("digits", limit=1)


@pytest.mark.parametrize(
    ("name", "folder", "files", "label", "classes"),
    [
        (
            "cifar10",
            "cifar-10-batches-py",
            [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"],
            "labels",
            10,
        ),
        ("cifar100", "cifar-100-python", ["train", "test"], "fine_labels", 100),
    ],
)
def test_cifar(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    folder: str,
    files: list[str],
    label: str,
    classes: int,
) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    (tmp_path / folder).mkdir()
    pixels = np.arange(2 * 3072, dtype=np.uint32).reshape(2, 3072) % 251
    for file in files:
        content = {"data": pixels.astype(np.uint8), label: [3, classes - 1]}
        (tmp_path / folder / file).write_bytes(pickle.dumps(content))
    meta = {"label_names": ["?"] * classes, "fine_label_names": ["?"] * classes}
    for file in ("batches.meta", "meta"):
        (tmp_path / folder / file).write_bytes(pickle.dumps(meta))
    dataset = load(name, tmp_path)
    assert (dataset.channels, dataset.classes, dataset.image_size) == (3, classes, 32)
    train = tensors(dataset.train)
    assert train.targets.tolist() == [3, classes - 1] * (len(files) - 1)
    assert torch.equal(train.images[1].flatten(), torch.as_tensor(pixels[1]).to(torch.uint8))


def test_missing_data_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(MorphirError, match="needs a data directory\n  hint: name one .* to download into$"):
        load("fashion-mnist", download=True)
    with pytest.raises(MorphirError, match=r"fashion-mnist needs a data directory\n  hint: .*--data-dir"):
        load("fashion-mnist")
    with pytest.raises(MorphirError, match=r"absent' does not exist\n  hint: .*FashionMNIST/raw.*--download"):
        load("fashion-mnist", tmp_path / "absent")
    with pytest.raises(MorphirError, match=r"cifar10 is not in .*\n  hint: it holds no cifar-10-batches-py/"):
        load("cifar10", tmp_path)


def test_damaged_data_is_one_clear_error(fashion: Path) -> None:
    file = fashion / "FashionMNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(
        MorphirError, match=r"FashionMNIST/raw' is incomplete or damaged .*\n  hint: remove it"
    ):
        load("fashion-mnist", fashion)


def test_unknown_dataset_lists_what_exists() -> None:
    with pytest.raises(
        MorphirError, match=r"unknown dataset 'cifar'\n  hint: did you mean cifar1.*imagefolder:DIR"
    ):
        load("cifar")
    with pytest.raises(MorphirError, match="image size must be at least 1"):
        load("digits", image_size=0)


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 5), ("val", 2)):
        for number in range(count):
            paint(tmp_path / part / "cat" / f"{number}.png", (255, 0, 0))
            paint(tmp_path / part / "dog" / f"{number}.png", (0, 0, 255), (40, 25))
    return tmp_path


def test_image_folders_are_resized_and_mixed(folder: Path) -> None:
    dataset = load(f"imagefolder:{folder}", image_size=16)
    assert (dataset.channels, dataset.classes, dataset.image_size) == (3, 2, 16)
    assert (len(dataset.train), len(dataset.test)) == (10, 4)
    images, targets = dataset.train.fetch(torch.arange(10))
    assert images.shape == (10, 3, 16, 16)
    colours = torch.tensor([[255, 0, 0], [0, 0, 255]], dtype=torch.uint8)
    assert torch.equal(images, colours[targets][:, :, None, None].expand(-1, -1, 16, 16))
    assert sorted(targets.tolist()) == [0] * 5 + [1] * 5
    first = load(f"imagefolder:{folder}", limit=5).train
    assert set(first.fetch(torch.arange(5))[1].tolist()) == {0, 1}
    inputs, labels = next(iter(eval_loader(dataset)))
    assert (inputs.shape, labels.shape) == ((4, 3, 16, 16), (4,))


def test_image_folders_are_cropped_around_the_centre(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 8))
    image.paste((255, 255, 255), (12, 0, 20, 8))
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        image.save(tmp_path / part / "only" / "0.png")
    images, _ = load(f"imagefolder:{tmp_path}", image_size=8).test.fetch(torch.tensor([0]))
    assert (images == 255).all()


def test_wrong_image_folders(folder: Path) -> None:
    with pytest.raises(MorphirError, match="does not exist"):
        load(f"imagefolder:{folder}/absent")
    with pytest.raises(MorphirError, match=r"has no train folder\n  hint: the layout is"):
        load(f"imagefolder:{folder}/train")
    (folder / "train" / "cow").mkdir()
    with pytest.raises(MorphirError, match="no images by class"):
        load(f"imagefolder:{folder}")
    paint(folder / "train" / "cow" / "0.png", (0, 255, 0))
    with pytest.raises(MorphirError, match="train and val .* different classes: cow"):
        load(f"imagefolder:{folder}")


def test_a_broken_image_is_named(folder: Path) -> None:
    for file in (folder / "train" / "cat").iterdir():
        file.write_bytes(b"not an image")
    dataset = load(f"imagefolder:{folder}")
    with pytest.raises(MorphirError, match=r"image '.*cat.*\.png' cannot be read"):
        dataset.train.fetch(torch.arange(10))
