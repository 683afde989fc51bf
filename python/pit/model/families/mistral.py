"""Mistral (arXiv 2310.06825): a Llama whose layers may all see a window of the path only."""

from typing import Any

from pit.config import ModelConfig
from pit.model.config_json import ConfigJson
from pit.model.families.llama import TENSORS, read_common, write_common
from pit.model.family import Family, constants


def _read(file: ConfigJson) -> dict[str, Any]:
    file.require(layer_types=None)
    # transformers takes 8 where it is absent; null gives every head keys of its own.
    if "num_key_value_heads" not in file.values:
        file.integer("num_key_value_heads")
    window = file.values.get("sliding_window", 4096)
    return {**read_common(file), "window": None if window is None else file.integer("sliding_window", 4096)}


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_common(config) | {"sliding_window": config.window}


MISTRAL = Family(
    name="Mistral",
    model_type="mistral",
    constants=constants("rope_scaling", "window"),
    read=_read,
    write=_write,
    tensors=TENSORS,
)
