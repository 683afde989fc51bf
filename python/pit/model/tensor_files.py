"""Folders of safetensors: one file, or shards with an index that names the file of every tensor.

Reading opens the headers only, so that a folder is checked before gigabytes of it are read; writing holds one shard.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pit.model.config_json import read_json
from pit.model.errors import ModelFileError, refusal

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@runtime_checkable
class Tensor(Protocol):
    """A tensor of an open file, as the header describes it."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def dtype(self) -> str:
        """Its dtype in the file, in the words of safetensors."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as transformers keeps it."""
        ...

    def read(self) -> np.ndarray:
        """Return its data."""
        ...


@dataclass(frozen=True)
class FileTensor:
    """A tensor in an open safetensors file, as the header describes it."""

    name: str
    path: Path
    file: Any
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Return its data."""
        value: np.ndarray = self.file.get_tensor(self.name)
        return value


def open_tensors(folder: Path, stack: ExitStack) -> dict[str, FileTensor]:
    """Return all tensors of a folder by name; their files stay open as long as the stack.

    Raises:
        ModelFileError: a file is missing or damaged, or the index and the shards disagree.
    """
    index, file_of = folder / INDEX, _file_of(folder)
    tensors: dict[str, FileTensor] = {}
    for path in _paths(folder, file_of):
        for name, tensor in _open_file(path, stack).items():
            if file_of is not None and file_of.get(name) != path.name:
                rule = f"{index} places it in {file_of.get(name, 'no file')}"
                raise refusal(f"{path}: tensor", name, rule, "fetch the index and its shards again, together")
            tensors[name] = tensor
    absent = sorted(set(file_of or ()) - set(tensors))
    if absent:
        raise refusal(f"{index}: weight_map", absent[0], "its file lacks this tensor", "fetch the folder again")
    return tensors


def tensor_paths(folder: Path) -> list[Path]:
    """Return the files of a folder that hold tensors.

    Raises:
        ModelFileError: a folder holds a single file and an index, or neither.
    """
    return _paths(folder, _file_of(folder))


def _paths(folder: Path, file_of: dict[str, str] | None) -> list[Path]:
    return [folder / name for name in ([WEIGHTS] if file_of is None else sorted(set(file_of.values())))]


def _file_of(folder: Path) -> dict[str, str] | None:
    """Return the file of every tensor by the index; None where one file holds them all."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.exists() == index.exists():
        rule = "both are there, and they may differ" if index.exists() else "neither is there"
        remedy = "remove the stale one" if index.exists() else "save the model as safetensors"
        raise ModelFileError(f"{folder}: needs {WEIGHTS} or {INDEX}, {rule}; {remedy}")
    return None if single.exists() else _weight_map(index)


def _weight_map(index: Path) -> dict[str, str]:
    file_of = read_json(index).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise refusal(f"{index}: weight_map", file_of, "must name the file of every tensor", "fetch the file again")
    for file in file_of.values():
        if not isinstance(file, str) or Path(file).name != file:
            rule = "must be the name of a file in the folder of the index"
            raise refusal(f"{index}: weight_map", file, rule, "correct it")
    return file_of


def write_tensors(
    folder: Path, sizes: Mapping[str, int], tensors: Mapping[str, Callable[[], np.ndarray]], shard_bytes: int
) -> None:
    """Write tensors into one file, or into shards with an index where they are larger than one may be.

    Args:
        folder: an existing folder.
        sizes: size of each tensor in bytes.
        tensors: return the tensors, one shard of which is held at a time.
        shard_bytes: most bytes of a file; a larger tensor has a file of its own.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    count = len(shards)
    file_of: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        path = folder / (WEIGHTS if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors")
        write_tensor_file(path, {name: tensors[name]() for name in names})
        file_of |= dict.fromkeys(names, path.name)
    if count > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(file_of.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_tensor_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write one safetensors file with the mode of any new file; the library lets only its user read it.

    Raises:
        OSError: it cannot be written, such as on a full disk; the library tells the number in its text alone.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(mode)


def _open_file(path: Path, stack: ExitStack) -> dict[str, FileTensor]:
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; fetch all shards that {INDEX} names")
    try:
        file = stack.enter_context(safe_open(path, framework="numpy"))
    except SafetensorError as error:
        raise ModelFileError(f"{path}: is damaged, or not a safetensors file ({error}); fetch it again") from error
    headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    return {
        name: FileTensor(name, path, file, header.get_dtype(), tuple(header.get_shape()))
        for name, header in headers.items()
    }
