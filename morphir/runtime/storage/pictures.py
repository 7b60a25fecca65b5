"""Figures as SVG: the same figure gives the same bytes."""

from __future__ import annotations

import io
from typing import Any, cast

import matplotlib as mpl
from matplotlib.figure import Figure


def svg(figure: Figure) -> bytes:
    """Draws a figure."""
    buffer = io.BytesIO()
    with cast(Any, mpl).rc_context({"svg.hashsalt": "morphir"}):
        cast(Any, figure).savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
