"""Layers that the seeds share, and their initialisation."""

from __future__ import annotations

from torch import nn


def conv_bn_relu(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A same-padded convolution, batch norm and ReLU; without a conv bias, since batch norm has its own."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def initialise(model: nn.Module) -> None:
    """Kaiming-initialise all convolutions and linear layers of ``model`` in place (He et al., 2015).

    Fan-in counts a grouped convolution's own inputs only, so depthwise layers keep unit variance too.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
            nn.init.zeros_(module.bias)
