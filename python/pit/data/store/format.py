"""Format of a store on disk: names, schema, manifest and digests, shared by its writer and its reader."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pit.data.errors import DataError
from pit.types import COLUMNS

VERSION = 2
"""Format version. Version 2 has several files per fold."""

MANIFEST = "manifest.json"
"""Name of the manifest, the file that makes a folder a store; it is written last."""

BATCH_ROWS = 4_096
"""Rows of a record batch, which is verified as a whole when one of its rows is first read."""

FORMAT = "pit-token-store"
SCHEMA = pa.schema([(name, pa.large_list(pa.int32())) for name in COLUMNS])

_PARTIAL = ".partial"


class StoreError(DataError):
    """A token store is missing, incomplete, damaged, or made with other settings."""


def partial_folder(store: Path) -> Path:
    """Return the folder next to a store in which it is built."""
    absolute = store.absolute()  # "." alone has no name
    return absolute.with_name(absolute.name + _PARTIAL)


def is_store(path: Path) -> bool:
    """Return whether a token store, complete or not, is at `path`; a damaged one counts."""
    return _is_incomplete(path) or ((path / MANIFEST).is_file() and any(path.glob("*.arrow")))


def file_digest(path: Path) -> str:
    """Return the BLAKE2b-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def digest(content: Any) -> str:
    """Return the BLAKE2b-256 digest of a JSON value; equal values have equal digests."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=32).hexdigest()


def record_digest(record: Mapping[str, Any]) -> str:
    """Return the digest of a record without its field `hash`, which holds that digest."""
    return digest({name: value for name, value in record.items() if name != "hash"})


def parts_of(file: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the entries of one file of rows and, where they were given, of the rows' difficulty and facts."""
    return [part for part in (file, file.get("difficulty"), file.get("facts")) if part]


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a store after checking its format, version and digest.

    Raises:
        StoreError: no store, an incomplete store, another version, or a damaged manifest.
    """
    file = path / MANIFEST
    if _is_incomplete(path):
        raise StoreError(
            f"{path}: this store is incomplete, its build was stopped or still runs; wait for it, or build it again: "
            "finished shards are kept"
        )
    if not file.is_file():
        raise StoreError(f"{path}: no token store here ({MANIFEST} is missing); make one with `pit data prepare`")
    try:
        manifest = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{file}: damaged ({error}); build the store again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"{file}: not the manifest of a token store; build the store again")
    if manifest.get("version") != VERSION:
        raise StoreError(
            f"{file}: format version {manifest.get('version')!r}, but this program reads version {VERSION}; build the "
            "store again"
        )
    if manifest.get("hash") != record_digest(manifest):
        raise StoreError(f"{file}: damaged (its digest does not match); build the store again")
    return manifest


def _is_incomplete(path: Path) -> bool:
    """Return whether the store at `path` is unfinished, or `path` is the folder in which one is built."""
    if not (path / MANIFEST).is_file() and partial_folder(path).is_dir():
        return True
    absolute = path.absolute()
    return any(folder.name.endswith(_PARTIAL) and folder.is_dir() for folder in (absolute, absolute.parent))
