"""The command line ``morphir``: one file per command, registered in :mod:`morphir.cli.app`."""

from morphir.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Runs the command line; the entry point of ``morphir`` and ``python -m morphir``."""
    app(prog_name="morphir")
