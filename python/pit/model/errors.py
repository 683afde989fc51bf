"""The error that ends the reading or writing of a model folder.

It is a module of its own because everything else in `pit.model` that touches files raises it.
"""

from pit.errors import PitError


class ModelFileError(PitError):
    """A model folder, or a request to write one, breaks a rule; the message names the thing, the rule, the remedy."""


def refusal(name: str, value: object, rule: str, remedy: str) -> ModelFileError:
    """Return the error for a value that breaks a rule."""
    return ModelFileError(f"{name} = {value!r}: {rule}; {remedy}")
