"""Errors of an export."""

from pit.errors import PitError


class ExportError(PitError):
    """A model that cannot be exported in the form that was asked for."""
