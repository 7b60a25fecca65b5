"""Instruments: what watches passes and rewrites as they run; none of them changes what is computed."""

from passes.instruments.base import (
    Failure,
    Instrument,
    PendingRewrite,
    PipelineStopped,
    active,
    instrumented,
    tell_all,
    unobserved,
)

__all__ = [
    "Failure",
    "Instrument",
    "PendingRewrite",
    "PipelineStopped",
    "active",
    "instrumented",
    "tell_all",
    "unobserved",
]
