"""The one error type of the data package."""

from pit.errors import PitError


class DataError(PitError):
    """Data on disk, or a request about it, breaks a rule; the message names the thing, the rule and the remedy."""
