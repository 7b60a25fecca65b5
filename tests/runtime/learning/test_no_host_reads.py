"""That the fixture which forbids waiting for the device sees who waits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

VALUES = torch.tensor([1.0, 0.0, 2.0])


@pytest.mark.parametrize(
    "read",
    [
        lambda: VALUES[0].item(),
        lambda: float(VALUES.sum()),
        lambda: bool(VALUES[0]),
        lambda: 1 if VALUES.sum() > 2 else 0,
        lambda: VALUES.nonzero(),
        lambda: VALUES[VALUES > 0],
        lambda: VALUES.masked_select(VALUES > 0),
        lambda: VALUES.unique(),
        lambda: torch.equal(VALUES, VALUES + 1),
        lambda: torch.multinomial(VALUES, 1),
    ],
)
def test_what_waits_for_the_device_fails(
    read: Callable[[], Any], no_host_reads: AbstractContextManager[Any]
) -> None:
    read()
    with pytest.raises(AssertionError), no_host_reads:
        read()


def test_what_does_not_wait_passes(no_host_reads: AbstractContextManager[Any]) -> None:
    with no_host_reads:
        found = torch.where(VALUES > 0, VALUES, -1.0).sum() + VALUES[torch.tensor([0, 2])].sum()
    assert float(found) == 5.0
