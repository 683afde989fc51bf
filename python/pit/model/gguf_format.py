"""The header of a GGUF model, in one file or in parts: metadata, and where each tensor lies (versions 2 and 3).

The format is that of the ggml project's docs/gguf.md. The `gguf` package reads it as well, but takes seconds for the
strings of a vocabulary; PIT has the package's tables of quantised types and its dequantisation.
"""

import math
import mmap
import re
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from gguf.quants import dequantize

from pit.model.errors import ModelFileError, refusal

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Code of each type of a number in the metadata, as `struct` spells it."""

_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_EXACT = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
"""Types that are read as they are; all others are dequantised to float32."""


@dataclass(frozen=True)
class Place:
    """A tensor in a file: its name, its type in the words of ggml, its shape (outermost axis first), its bytes."""

    path: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def quantised(self) -> bool:
        """Return whether `read` dequantises it."""
        return self.kind not in _EXACT

    @property
    def dtype(self) -> str:
        """The dtype that `read` returns, in the words of safetensors."""
        return "F32" if self.quantised else self.kind

    def read(self, file: mmap.mmap) -> np.ndarray:
        """Return its data, dequantised to float32 where it is quantised."""
        if not self.quantised:
            count = math.prod(self.shape)
            return np.frombuffer(file, _EXACT[self.kind], count, self.start).reshape(self.shape)
        content = np.frombuffer(file, np.uint8, self.size, self.start).reshape(*self.shape[:-1], -1)
        value: np.ndarray = dequantize(content, gguf.GGMLQuantizationType[self.kind])
        return value.reshape(self.shape)


@dataclass(frozen=True)
class Header:
    """Metadata by key, tensors by name, and the files that hold them."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Place]
    paths: tuple[Path, ...]


def map_file(path: Path, stack: ExitStack) -> mmap.mmap:
    """Return the bytes of a file, as long as the stack is open."""
    try:
        file = stack.enter_context(path.open("rb"))
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read ({error}); name a GGUF file") from error


def read_header(path: Path) -> Header:
    """Return the header of a GGUF model; one in parts, as gguf-split writes them, is named by its first part.

    Raises:
        ModelFileError: a file is missing, damaged, of another format or version, another part, or of another model.
    """
    first = _read(path)
    count, number = (first.metadata.get(f"split.{key}", 0) for key in ("count", "no"))
    if count in (0, 1):
        return first
    named = _PART.fullmatch(path.name)
    if number != 0 or named is None or int(named["count"]) != count:
        rule = f"the first of {count} parts must be named, and be called NAME-00001-of-{count:05d}.gguf"
        raise refusal(f"{path}: split.no", number, rule, "name that file; the others lie beside it")
    paths = tuple(path.with_name(f"{named['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1))
    tensors = dict(first.tensors)
    for n, other in enumerate(paths[1:], start=1):
        if not other.is_file():
            raise ModelFileError(f"{other}: no such file; a model in {count} parts needs all of them beside the first")
        part = _read(other)
        said = tuple(part.metadata.get(f"split.{key}") for key in ("no", "count"))
        if said != (n, count) or not tensors.keys().isdisjoint(part.tensors):
            rule = f"must be {(n, count)}, with tensors that no other part has"
            raise refusal(f"{other}: split.no, split.count", said, rule, "fetch all parts of one model again")
        tensors |= part.tensors
    total = first.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        rule = f"the parts have {len(tensors)} tensors"
        raise refusal(f"{path}: split.tensors.count", total, rule, "fetch all parts of one model again")
    return Header(first.metadata, tensors, paths)


_PART = re.compile(r"(?P<stem>.+)-00001-of-(?P<count>\d{5})\.gguf")


def _read(path: Path) -> Header:
    """Return the header of one file."""
    with ExitStack() as stack:
        cursor = _Cursor(map_file(path, stack))
        try:
            return _header(path, cursor)
        except (struct.error, UnicodeDecodeError, OverflowError, RecursionError) as error:
            rule = f"is damaged, or not a GGUF file (byte {cursor.at}: {error})"
            raise ModelFileError(f"{path}: {rule}; fetch it again") from error


@dataclass
class _Cursor:
    """A place in the bytes of a file."""

    content: mmap.mmap
    at: int = 0

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(code, self.content, self.at)
        self.at += struct.calcsize(code)
        return value

    def text(self) -> str:
        size = self.number("<Q")
        self.require(size)
        value = self.content[self.at : self.at + size].decode("utf-8")
        self.at += size
        return value

    def require(self, size: int) -> None:
        if size > len(self.content) - self.at:
            raise struct.error(f"{size} bytes are announced and {len(self.content) - self.at} are left")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind != _ARRAY:
            raise struct.error(f"no type has the number {kind}")
        kind, count = self.number("<I"), self.number("<Q")
        if kind not in _NUMBERS:
            # Each element takes a byte at least.
            self.require(count)
            return [self.value(kind) for _ in range(count)]
        size = struct.calcsize(_NUMBERS[kind])
        self.require(count * size)
        self.at += count * size
        return np.frombuffer(self.content, np.dtype(_NUMBERS[kind]), count, self.at - count * size).tolist()


def _header(path: Path, cursor: _Cursor) -> Header:
    magic, version = cursor.content[:4], 0
    cursor.at = 4
    if magic == b"GGUF":
        version = cursor.number("<I")
    if version not in _VERSIONS:
        rule = f"must be GGUF of version {' or '.join(map(str, _VERSIONS))}, little-endian"
        raise refusal(f"{path}: format", (magic, version), rule, "convert the model again with a newer converter")
    tensors, entries = cursor.number("<Q"), cursor.number("<Q")
    metadata = {}
    for _ in range(entries):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("<I"))
    headers = [_tensor(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise refusal(f"{path}: general.alignment", alignment, "must be a positive integer", "fetch the file again")
    start = -(-cursor.at // alignment) * alignment
    places = {}
    for name, shape, code, offset in headers:
        place = _place(path, name, shape, code, start + offset)
        if place.start + place.size > len(cursor.content):
            rule = f"ends at byte {place.start + place.size}, and the file has {len(cursor.content)}"
            raise ModelFileError(f"{path}: is damaged: tensor {name!r} {rule}; fetch it again")
        places[name] = place
    return Header(metadata, places, (path,))


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, axes = cursor.text(), cursor.number("<I")
    cursor.require(8 * axes)
    # The innermost axis comes first.
    shape = tuple(cursor.number("<Q") for _ in range(axes))[::-1]
    return name, shape, cursor.number("<I"), cursor.number("<Q")


def _place(path: Path, name: str, shape: tuple[int, ...], code: int, start: int) -> Place:
    known = {kind.value: kind for kind in gguf.GGMLQuantizationType}
    if code not in known:
        rule = "is no type that the gguf package knows"
        raise refusal(f"{path}: type of tensor {name!r}", code, rule, "quantise the model as Q8_0")
    kind = known[code]
    if kind.name not in _EXACT and kind not in gguf.quants._type_traits:
        rule = "cannot be dequantised by the gguf package"
        raise refusal(f"{path}: type of tensor {name!r}", kind.name, rule, "quantise the model as Q8_0")
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if not shape or 0 in shape or shape[-1] % block:
        rule = f"must be positive and end in a multiple of {block}, a block of {kind.name}"
        raise refusal(f"{path}: shape of tensor {name!r}", shape, rule, "fetch the file again")
    return Place(path, name, kind.name, shape, start, math.prod(shape) // block * size)
