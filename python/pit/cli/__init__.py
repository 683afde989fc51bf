"""The command line: `pit`, its tools, and a command per job of a run."""

from pit.cli.app import main

__all__ = ["main"]
