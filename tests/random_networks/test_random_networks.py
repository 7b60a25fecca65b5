"""Drawn networks keep every property; the long run is ``make fuzz``."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from random_networks.draft import Network
from random_networks.networks import networks
from random_networks.properties import findings

EVERY = settings(derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def faults(network: Network, targets: tuple[str, ...]) -> list[str]:
    found = findings(network, 0, targets)
    return [f"{finding.property}: {finding.fault}" for finding in found if finding.fault]


@settings(EVERY, max_examples=30)
@given(networks())
def test_properties(network: Network) -> None:
    assert faults(network, ("pytorch",)) == []


@settings(EVERY, max_examples=8)
@given(networks())
def test_properties_and_onnx(network: Network) -> None:
    assert faults(network, ("pytorch", "onnx")) == []
