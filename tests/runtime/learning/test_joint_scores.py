"""Scores of joint groups: several producers and edges, residual streams, gates, shuffles, concatenations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision

# How many of the compared splits must change the function: a space without a nonlinearity between its
# producers and consumers has u = 0 by right (the linear bottlenecks of the inverted residual networks).
NETWORKS = {
    "resnet18": 25,
    "mobilenet_v2": 10,
    "efficientnet_b0": 30,
    "densenet121": 25,
    "shufflenet_v2_x0_5": 18,
    "regnet_y_400mf": 22,
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_q_is_the_derivative_of_the_summed_loss(name: str, check_scores: Callable[..., Any]) -> None:
    model = torchvision.models.get_model(name, weights=None, num_classes=10)
    checked = check_scores(model, torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert len(checked.spaces) == 12
    assert checked.groups >= 30
    assert checked.visible >= NETWORKS[name]
