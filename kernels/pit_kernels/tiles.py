"""The committed table of tile sizes: what each kernel uses for a kind of TPU and a class of shapes."""

import functools
import json
from importlib import resources
from typing import cast


@functools.cache
def _table() -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    text = resources.files("pit_kernels").joinpath("tiles.json").read_text(encoding="utf-8")
    return cast(dict[str, dict[str, dict[str, dict[str, int]]]], json.loads(text))


def load(operation: str, kind: str, shape_class: str) -> dict[str, int] | None:
    """Sizes for an operation on a kind of TPU (see `device.KINDS`); None where the table has none for the class.

    Example:
      >>> load("token_logprob", "v5e", "no such class") is None
      True
    """
    return _table().get(operation, {}).get(kind, {}).get(shape_class)
