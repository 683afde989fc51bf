"""The committed tables of tile sizes in each operation's folder: kind of TPU or GPU, class of shapes, sizes."""

import functools
import json
from importlib import resources
from typing import cast

Table = dict[str, dict[str, dict[str, int]]]
"""Sizes by kind of TPU (see `device.KINDS`) or architecture (see `gpu.ARCHITECTURES`) and class of shapes."""


@functools.cache
def _table(operation: str, file: str) -> Table:
    text = resources.files("pit_kernels").joinpath(operation, file).read_text(encoding="utf-8")
    return cast(Table, json.loads(text))


def load(operation: str, kind: str, shape_class: str, file: str = "tiles.json") -> dict[str, int] | None:
    """Return the sizes for an operation on a kind of device; None where its table has none for the class.

    Args:
      operation: name of the operation.
      kind: kind of TPU or architecture of GPU.
      shape_class: class of shapes, or kernel and class.
      file: name of the table: that of TPUs, or "tiles_gpu.json".

    Example:
      >>> load("token_logprob", "v5e", "no such class") is None
      True
    """
    return _table(operation, file).get(kind, {}).get(shape_class)
