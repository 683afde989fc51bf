"""Preferences for a check, from a file or folder in any format that `pit.data.readers` reads.

Unlike `pit data prepare`, a check refuses data without a single pair.
"""

import itertools
from pathlib import Path

from pit.data.errors import DataError
from pit.data.readers import FORMATS, read_preferences
from pit.testing.errors import CheckError
from pit.types import Preference


def read_rows(path: Path, limit: int) -> list[Preference]:
    """Read at most `limit` preferences from a file or folder.

    Raises:
        CheckError: the format is unknown, or no row is a pair.
    """
    try:
        stream, report = read_preferences(path)
        rows = list(itertools.islice(stream, limit))
    except DataError as error:
        raise CheckError(
            f"{error}; a check needs rows with a prompt, a better and a worse answer (formats: {', '.join(FORMATS)})"
        ) from error
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
        raise CheckError(
            f"{path}: none of {report.rows} rows is a pair ({reasons}); give rows with a prompt, a better and a worse "
            "answer (columns prompt, chosen, rejected)"
        )
    return rows
