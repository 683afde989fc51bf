"""Preferences for a check: from a file or folder in any format that PIT reads."""

import itertools
from pathlib import Path

from pit.data.errors import DataError
from pit.data.readers import FORMATS, read_preferences
from pit.testing.faults import CheckError
from pit.types import Preference


def read_rows(path: Path, limit: int) -> list[Preference]:
    """At most `limit` preferences of a file or folder, in any format that PIT reads.

    Raises:
        CheckError: there are no pairs.
    """
    try:
        stream, report = read_preferences(path)
        rows = list(itertools.islice(stream, limit))
    except DataError as error:
        raise CheckError(
            f"{error}; a check needs pairs: a prompt, a better and a worse answer in each row ({', '.join(FORMATS)})"
        ) from error
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
        raise CheckError(
            f"{path}: none of {report.rows} rows is a pair ({reasons}); a check needs a prompt, a better and a worse "
            "answer in each row (columns prompt, chosen, rejected)"
        )
    return rows
