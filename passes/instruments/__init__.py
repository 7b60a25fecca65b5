"""Instruments: what watches passes and rewrites as they run; none of them changes what is computed."""

from passes.instruments.base import Instrument, PendingRewrite, active, instrumented

__all__ = ["Instrument", "PendingRewrite", "active", "instrumented"]
