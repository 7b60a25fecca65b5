"""Python's collector of cycles, put off while much is made and nothing is thrown away."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def collected_later() -> Generator[None]:
    """Puts off the collection of cycles: each would walk all objects there are, and find none to free.

    Channel layers are made of many small tuples, which set the collector off again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
