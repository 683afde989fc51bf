"""Files that PIT wrote and reads back: JSON objects, or one per line. A damaged one is one clear line, not a traceback.

A file may be cut off by a power loss or edited by hand; the error names file, fault and remedy.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pit.errors import PitError


class DamagedFileError(PitError):
    """A file that PIT wrote does not hold what was written."""


def read_object(path: Path, remedy: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the file.
        remedy: what to do about a damaged file, as the end of the message.
        fields: type of each field that must be there, as `isinstance` takes it; more may be.

    Raises:
        DamagedFileError: it is not UTF-8, not JSON, not an object, or a field is missing or of another type.
    """
    return _object(path.read_bytes(), str(path), remedy, fields or {})


def read_lines(
    path: Path, remedy: str, fields: Mapping[str, Any] | None = None, *, whole: bool = True
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the lines of a file, each with its JSON object.

    Args:
        path: the file.
        remedy: what to do about a damaged line, as the end of the message.
        fields: type of each field that must be in every line, as `isinstance` takes it; more may be.
        whole: read a last line without a line end too; otherwise it is left out, as a killed process cut it off.

    Raises:
        DamagedFileError: as `read_object`; the message has the number of the line.
    """
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if whole or line.endswith(b"\n"):
            yield line, _object(line, f"{path}:{number}", remedy, fields or {})


def _object(content: bytes, where: str, remedy: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    if not content.strip(b" \t\r\n\0"):
        raise DamagedFileError(f"{where}: is empty, damaged by a power loss or a full disk; {remedy}")
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{where}: is damaged, byte {error.start} is not UTF-8; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{where}: is not valid JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"{where}: must hold a JSON object, but holds a {type(value).__name__}; {remedy}")
    for name, kind in fields.items():
        if name not in value:
            raise DamagedFileError(f"{where}: is damaged, its field {name!r} is missing; {remedy}")
        if not isinstance(value[name], kind) or (isinstance(value[name], bool) and kind is not bool):
            raise DamagedFileError(f"{where}: is damaged, its field {name!r} is {value[name]!r:.80}; {remedy}")
    return value
