"""The committed tables of tile sizes, one in each operation's folder: kind of TPU, class of shapes, sizes."""

import functools
import json
from importlib import resources
from typing import cast

Table = dict[str, dict[str, dict[str, int]]]
"""Sizes by kind of TPU (see `device.KINDS`) and class of shapes."""


@functools.cache
def _table(operation: str) -> Table:
    text = resources.files("pit_kernels").joinpath(operation, "tiles.json").read_text(encoding="utf-8")
    return cast(Table, json.loads(text))


def load(operation: str, kind: str, shape_class: str) -> dict[str, int] | None:
    """Return the sizes for an operation on a kind of TPU; None where its table has none for the class.

    Example:
      >>> load("token_logprob", "v5e", "no such class") is None
      True
    """
    return _table(operation).get(kind, {}).get(shape_class)
