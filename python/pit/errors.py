"""What ends a command in one clear line instead of a traceback."""


class PitError(ValueError):
    """Something that the user can mend; the message names the thing, its value, the rule and the remedy."""


class Interruption(Exception):
    """Asked to stop, with nothing lost; the same command goes on from here."""
