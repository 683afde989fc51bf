"""What ends a command in one clear line instead of a traceback."""

from typing import ClassVar


class PitError(ValueError):
    """Something that the user can mend; the message names the thing, its value, the rule and the remedy."""


class Interruption(Exception):
    """Asked to stop, with nothing lost; the same command goes on from here."""

    exit_status: ClassVar[int] = 130
    """Of a command that ends so, as a shell reports SIGINT."""
