"""One batch through model and loss: what fails is one clear error, which says what the batch is called."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from morphir.errors import MorphirError
from morphir.runtime.learning.loss_check import Loss


class BatchError(MorphirError):
    """A batch that the model or the loss cannot take.

    Args:
        fault: What is wrong, up to the batch's name: ``"the loss fails on"``.
        detail: What follows the name.
        hint: What the user can do.
        batch: What the batch is called; whoever counts batches gives a better name by :func:`in_batch`.
    """

    def __init__(self, fault: str, detail: str = "", *, hint: str, batch: str = "this batch") -> None:
        self.fault, self.detail = fault, detail
        super().__init__(f"{fault} {batch}{detail}", hint=hint)


@contextmanager
def in_batch(name: str) -> Generator[None]:
    """Calls the batch by this name in the errors of a block of code."""
    try:
        yield
    except BatchError as error:
        hint = error.hint or ""
        raise BatchError(error.fault, error.detail, hint=hint, batch=name) from error.__cause__


def pair_of(batch: object) -> tuple[Any, Any]:
    """Returns a batch's inputs and targets.

    Raises:
        BatchError: if it is no pair.
    """
    if not isinstance(batch, (tuple, list)) or len(cast("tuple[Any, ...]", batch)) != 2:
        raise BatchError(
            "there is no pair of inputs and targets in",
            f" ({_described(cast('object', batch))})",
            hint="the data has to yield pairs of inputs and targets",
        )
    pair = cast("tuple[Any, Any]", batch)
    return pair[0], pair[1]


def outputs_of(run: Callable[[], Any], inputs: Any) -> Any:
    """Returns what a model makes of a batch.

    Args:
        run: Runs it.
        inputs: The batch's inputs, for the message.

    Raises:
        BatchError: if the batch is empty, or the model fails on it.
    """
    check_not_empty(inputs)
    try:
        return run()
    except (MorphirError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise BatchError(
            "the model fails on",
            f" ({_described(inputs)}): {_named(error)}",
            hint="the batches have to look like the example inputs that the model was traced with",
        ) from error


def loss_of(loss: Loss, outputs: Any, targets: Any) -> Any:
    """Returns what a loss makes of outputs and targets.

    Raises:
        BatchError: if it fails; where a target is not one of the outputs' classes, the message says so.
    """
    try:
        return loss(outputs, targets)
    except (MorphirError, torch.OutOfMemoryError):
        raise
    except IndexError as error:
        raise BatchError(
            "wrong number of classes: a target is not one of the model's outputs in",
            f" ({error})",
            hint="build the model with as many classes as the data has",
        ) from error
    except Exception as error:
        raise BatchError(
            "the loss fails on",
            f" (outputs {_described(outputs)}, targets {_described(targets)}): {_named(error)}",
            hint="loss(outputs, targets) gets the model's outputs and the batch's targets",
        ) from error


def check_not_empty(inputs: Any) -> None:
    """Raises :class:`BatchError` where the first tensor holds no sample."""
    if batch_samples(inputs) == 0:
        raise BatchError("there is no sample in", hint="leave empty batches out")


def check_loss_is_callable(loss: object) -> None:
    """Raises :class:`MorphirError` for what cannot be called."""
    if not callable(loss):
        raise MorphirError(
            f"the loss is a {type(loss).__name__}, not a function",
            hint="give a function of outputs and targets, as torch.nn.functional.cross_entropy",
        )


def batch_samples(inputs: Any) -> int:
    """Returns how many samples a batch holds; 1 where no tensor has an axis for them."""
    found = leading_extent(inputs)
    return 1 if found is None else found


def leading_extent(inputs: Any) -> int | None:
    """Returns the extent of the first axis of the first tensor that has axes."""
    return next(iter(_extents(inputs)), None)


def leading_extents(inputs: Any) -> set[int]:
    """Returns the extents of the first axes of all tensors that have axes; the batch's is among them."""
    return set(_extents(inputs))


def _extents(inputs: Any) -> list[int]:
    leaves = pytree.tree_leaves(inputs)
    return [leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()]


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _described(value: object) -> str:
    """Names each tensor's shape and dtype, and the type of anything else."""
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_described, cast("tuple[object, ...]", value)))
    return type(value).__name__
