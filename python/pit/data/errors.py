"""The one error type of the data package."""


class DataError(ValueError):
    """Data on disk, or a request about it, breaks a rule; the message names the thing, the rule and the remedy."""
