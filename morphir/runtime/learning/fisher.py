"""The sampled Fisher at the logits: random signs times a square root of each row's Fisher.

The gradient for a label drawn from the softmax would have the Fisher as its second moment too, but varies
without bound where a sample is confident.

A loss counts its rows as it likes: a mean over tokens, classes with weights, labels to ignore. The Hessian of
softmax cross entropy is the softmax's Fisher times what a row counts, so that this is read off the loss
itself; of any other loss it is the nearest multiple.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from morphir.errors import MorphirError
from morphir.runtime.learning.precision import at_least_single


def are_logits(outputs: object, targets: object) -> bool:
    """Whether these are a classifier's logits ``[N, K]``, K of 2 or more, and one integer label a row."""
    return (
        isinstance(outputs, torch.Tensor)
        and isinstance(targets, torch.Tensor)
        and outputs.dim() == 2
        and outputs.shape[1] > 1
        and outputs.is_floating_point()
        and targets.shape == outputs.shape[:1]
        and not targets.is_floating_point()
        and not targets.is_complex()
    )


def is_known(outputs: object, targets: object, loss: torch.Tensor) -> bool:
    """Whether :func:`sampled_logit_gradient` can be drawn.

    Args:
        outputs: The model's outputs.
        targets: The batch's targets.
        loss: What the loss function made of them; its graph is kept.
    """
    if not are_logits(outputs, targets) or not isinstance(outputs, torch.Tensor) or not loss.requires_grad:
        return False
    slope = _slope(loss, torch.ones_like(loss), outputs)
    return slope is not None and slope.requires_grad


def sampled_logit_gradient(
    outputs: object,
    targets: object,
    loss: torch.Tensor,
    whole: torch.Tensor,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Draws g~ at the logits, ``[N, K]``.

    Args:
        outputs: The model's outputs; must be logits ``[N, K]``.
        targets: The batch's targets; must be integer labels ``[N]``.
        loss: What the loss function made of them; its graph is kept.
        whole: What to multiply the loss by to have the batch's sum, in the loss's shape.
        generator: Source of the signs, on the logits' device.

    Raises:
        MorphirError: if this is not a classifier with one integer label a row, or if the loss cannot be
            differentiated twice.
    """
    if not are_logits(outputs, targets):
        raise MorphirError(
            "the Fisher curvature needs logits [samples, classes] of two or more classes and one integer "
            "label a sample",
            hint='use curvature "batch" for any other kind of output or loss',
        )
    assert isinstance(outputs, torch.Tensor)
    logits = outputs.detach().to(at_least_single(outputs.dtype))
    probabilities = functional.softmax(logits, dim=1)
    signs = torch.empty_like(probabilities).bernoulli_(generator=generator).mul_(2).sub_(1)
    # Along its likeliest class a row's Fisher vanishes last.
    along = torch.zeros_like(signs).scatter_(1, probabilities.argmax(dim=1, keepdim=True), 1.0)
    bent = _hessian_times(loss, whole, outputs, along.to(outputs.dtype)).to(signs.dtype)
    counted = row_weights(probabilities, along, bent).sqrt()
    return (counted * times_fisher_root(probabilities, signs)).to(outputs.dtype)


def times_fisher_root(probabilities: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """Returns R r for each row, ``[N, K]``, where R R^T = F = diag(p) - p p^T, the softmax's Fisher.

    Args:
        probabilities: p, ``[N, K]``.
        signs: r, ``[N, K]``.
    """
    scaled = probabilities.sqrt() * signs
    return scaled - probabilities * scaled.sum(dim=1, keepdim=True)


def row_weights(probabilities: torch.Tensor, along: torch.Tensor, bent: torch.Tensor) -> torch.Tensor:
    """Returns for each row the w of 0 or more, ``[N, 1]``, by which w F v comes nearest to H v.

    Args:
        probabilities: p, ``[N, K]``.
        along: v, ``[N, K]``; not the same number for all classes, of which F makes 0.
        bent: H v, ``[N, K]``, with H the Hessian of the summed loss by a row's logits.
    """
    fisher = probabilities * (along - (probabilities * along).sum(dim=1, keepdim=True))
    square = fisher.square().sum(dim=1, keepdim=True)
    # Where a row is so confident that the square vanishes, so does all that the weight is for.
    smallest = torch.finfo(square.dtype).tiny
    return (bent * fisher).sum(dim=1, keepdim=True).clamp_min(0) / square.clamp_min(smallest)


def _hessian_times(
    loss: torch.Tensor, whole: torch.Tensor, outputs: torch.Tensor, vector: torch.Tensor
) -> torch.Tensor:
    """Goes through the loss alone, not through the model."""
    slope = _slope(loss, whole, outputs)
    if slope is None or not slope.requires_grad:
        raise MorphirError(
            "the Fisher curvature needs a loss whose gradient by the logits can be differentiated again",
            hint='use curvature "batch", or a loss made of PyTorch\'s own operators',
        )
    with torch.enable_grad():
        return torch.autograd.grad(slope, outputs, vector, retain_graph=True, materialize_grads=True)[0]


def _slope(loss: torch.Tensor, whole: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor | None:
    """Returns the derivative by the outputs; None where the loss does not depend on them."""
    with torch.enable_grad():
        return torch.autograd.grad(loss, outputs, whole, create_graph=True, allow_unused=True)[0]
