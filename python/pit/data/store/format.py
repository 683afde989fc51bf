"""What a store looks like on disk: names, schema, manifest and digests, shared by its writer and its reader."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pit.data.errors import DataError
from pit.types import COLUMNS

VERSION = 2
"""Format version. 2: several files a fold."""

MANIFEST = "manifest.json"
"""The file that makes a folder a store; it is written last."""

BATCH_ROWS = 4_096
"""Rows of a record batch: what is verified at once when one of them is first read."""

FORMAT = "pit-token-store"
SCHEMA = pa.schema([(name, pa.large_list(pa.int32())) for name in COLUMNS])

_PARTIAL = ".partial"


class StoreError(DataError):
    """A token store is missing, damaged, or made for something else."""


def partial_of(store: Path) -> Path:
    """The folder beside a store in which it grows until it is whole."""
    absolute = store.absolute()  # "." alone has no name
    return absolute.with_name(absolute.name + _PARTIAL)


def is_store(path: Path) -> bool:
    """Whether a token store is, or is being built, at `path`; damaged ones count."""
    return _is_half(path) or ((path / MANIFEST).is_file() and any(path.glob("*.arrow")))


def file_digest(path: Path) -> str:
    """BLAKE2b-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def digest(content: Any) -> str:
    """BLAKE2b-256 of a JSON value; equal values have equal digests."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=32).hexdigest()


def own_digest(record: Mapping[str, Any]) -> str:
    """Digest of a record without its field `hash`, which holds that digest."""
    return digest({name: value for name, value in record.items() if name != "hash"})


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a store, with its format, version and own digest checked.

    Raises:
        StoreError: no store, half a store, another version, or a damaged manifest.
    """
    file = path / MANIFEST
    if _is_half(path):
        raise StoreError(
            f"{path}: only half of this store is there, its build was stopped or still runs; wait for it, or start it "
            "again: it goes on where it stopped"
        )
    if not file.is_file():
        raise StoreError(f"{path}: no token store here ({MANIFEST} is missing); make one with pit.data.store.build")
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise StoreError(f"{file}: damaged ({error}); build the store again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"{file}: not the manifest of a token store; build the store again")
    if manifest.get("version") != VERSION:
        raise StoreError(
            f"{file}: format version {manifest.get('version')!r}, this program reads {VERSION}; build the store again"
        )
    if manifest.get("hash") != own_digest(manifest):
        raise StoreError(f"{file}: damaged (its digest does not match); build the store again")
    return manifest


def _is_half(path: Path) -> bool:
    """Whether the store at `path` is still growing beside it, or `path` is that growing one."""
    if not (path / MANIFEST).is_file() and partial_of(path).is_dir():
        return True
    absolute = path.absolute()
    return any(folder.name.endswith(_PARTIAL) and folder.is_dir() for folder in (absolute, absolute.parent))
