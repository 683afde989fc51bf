"""Errors that end a command in one clear line instead of a traceback."""

from typing import ClassVar


class PitError(ValueError):
    """An error that the user can mend; the message names the thing, its value, the rule and the remedy."""


class Interruption(Exception):
    """A request to stop, with nothing lost; the same command resumes from here."""

    exit_status: ClassVar[int] = 130
    """Exit status of such a command, as a shell reports SIGINT."""
