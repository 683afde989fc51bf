"""The error type of the data package."""

from pit.errors import PitError


class DataError(PitError):
    """Data on disk, or a request about them, break a rule; the message gives name, value, rule and remedy."""
