"""Reproducers: a failed pipeline as a directory that fails again in a fresh process."""
