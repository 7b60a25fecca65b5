"""Images to grow on: a table of datasets, and loaders with the paper's augmentation."""

from morphir.data.augment import Augmentation
from morphir.data.dataset import Dataset, Normalisation, Split, TensorSplit
from morphir.data.loader import Loader, eval_loader, train_loader
from morphir.data.registry import DATASET_NAMES, DATASETS, load

__all__ = [
    "DATASETS",
    "DATASET_NAMES",
    "Augmentation",
    "Dataset",
    "Loader",
    "Normalisation",
    "Split",
    "TensorSplit",
    "eval_loader",
    "load",
    "train_loader",
]
