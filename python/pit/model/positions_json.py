"""Positions in a config.json: rotary bases and their scaling, and which layers see a window of the path only.

transformers 4 writes `rope_theta` and `rope_scaling`, 5 writes `rope_parameters`; both are read, and what is written
is read by both.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pit.config import ModelConfig, RopeScaling
from pit.model.config_json import ConfigJson
from pit.model.errors import ModelFileError

LOCAL, GLOBAL = "sliding_attention", "full_attention"
"""Kinds of layers in `layer_types`, and the names of their blocks in `rope_parameters`."""

_THETA = 10_000.0
_LLAMA3 = {
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "original_positions": "original_max_position_embeddings",
}
_FIELDS = {"default": (), "linear": ("factor",), "llama3": ("factor", *_LLAMA3.values())}
"""Fields of each kind of scaling."""


def read_rope(file: ConfigJson, theta: float = _THETA) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` of a config.json as fields of `ModelConfig`.

    Args:
        file: the config.json.
        theta: base where the file has none.

    Raises:
        ModelFileError: a field is malformed, given twice with two values, or of a scaling that is not supported.
    """
    file.require(original_max_position_embeddings=None)
    thetas = {"rope_theta": file.number("rope_theta")} if "rope_theta" in file.values else {}
    scalings: dict[str, RopeScaling | None] = {}
    for section in ("rope_parameters", "rope_scaling"):
        block = file.values.get(section)
        if block is None:
            continue
        if not isinstance(block, dict):
            raise file.refusal(section, block, "must be null or an object", "correct it")
        if "rope_theta" in block:
            thetas[f"{section}.rope_theta"] = file.positive(f"{section}.rope_theta", block["rope_theta"])
        scalings[section] = _scaling(file, section, block)
    for name, values in (("rope_theta", thetas), ("rope_scaling", scalings)):
        if len(set(values.values())) > 1:
            raise file.refusal(name, values, "is given twice and differs", "keep the right one")
    return {
        "rope_theta": next(iter(thetas.values()), theta),
        "rope_scaling": next(iter(scalings.values()), None),
    }


def _scaling(file: ConfigJson, section: str, block: Mapping[str, Any]) -> RopeScaling | None:
    kind = block.get("rope_type", block.get("type", "default"))
    for name in ("rope_type", "type"):
        if name in block and (not isinstance(kind, str) or kind not in _FIELDS or block[name] != kind):
            rule = f"must be one of {', '.join(_FIELDS)}, the scalings of rotary positions that are supported"
            raise file.refusal(f"{section}.{name}", block[name], rule, "choose a checkpoint with one of them")
    if block.get("partial_rotary_factor", 1.0) != 1.0:
        rule = "only 1.0 is supported: whole heads are rotated"
        raise file.refusal(
            f"{section}.partial_rotary_factor", block["partial_rotary_factor"], rule, "choose another checkpoint"
        )
    known = ("rope_theta", "rope_type", "type", "partial_rotary_factor", *_FIELDS[kind])
    for name, value in block.items():
        if name not in known:
            rule = f"is not a field of rope_type {kind!r}, and may change the result"
            raise file.refusal(f"{section}.{name}", value, rule, "choose a checkpoint without it")
    if kind == "default":
        return None
    names = {"factor": "factor"} | (_LLAMA3 if kind == "llama3" else {})
    values = dict(block)
    if kind == "llama3" and _LLAMA3["original_positions"] not in block:
        values[_LLAMA3["original_positions"]] = file.integer("max_position_embeddings")
    for name in names.values():
        if name not in values:
            raise ModelFileError(f"{file.path}: {section}.{name} is missing: rope_type {kind!r} needs it; add it")
    numbers: dict[str, Any] = {n: file.positive(f"{section}.{field}", values[field]) for n, field in names.items()}
    if kind == "llama3":
        numbers["original_positions"] = int(numbers["original_positions"])
    return RopeScaling(kind=kind, **numbers)


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of a config.json that `read_rope` reads."""
    return {"rope_theta": config.rope_theta, "rope_scaling": rope_block(config.rope_scaling)}


def rope_block(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """Return a scaling as an object of a config.json; None for none."""
    if scaling is None:
        return None
    others = {field: getattr(scaling, name) for name, field in _LLAMA3.items()} if scaling.kind == "llama3" else {}
    return {"rope_type": scaling.kind, "factor": scaling.factor} | others


def read_layers(file: ConfigJson, window: int | None, default: Callable[[int], bool]) -> dict[str, Any]:
    """Return `window`, `window_from` and `global_every` of a config.json as fields of `ModelConfig`.

    Args:
        file: the config.json.
        window: tokens that a local layer sees; None for no local layers.
        default: whether a layer is local where the file has no `layer_types`.

    Raises:
        ModelFileError: `layer_types` is malformed, or has a pattern that no `window_from` and `global_every` make.
    """
    layers = file.integer("num_hidden_layers")
    types = file.values.get("layer_types")
    if types is None:
        local = [default(layer) for layer in range(layers)]
    elif isinstance(types, list) and len(types) == layers and set(types) <= {LOCAL, GLOBAL}:
        local = [kind == LOCAL for kind in types]
    else:
        rule = f"must name {LOCAL} or {GLOBAL} for each of {layers} layers"
        raise file.refusal("layer_types", types, rule, "choose a checkpoint with such layers")
    if window is None or not any(local):
        return {"window": None, "window_from": 0, "global_every": 0}
    for every in (0, *range(2, layers + 1)):
        for window_from in range(layers):
            fields = {"window": window, "window_from": window_from, "global_every": every}
            if [ModelConfig(layers=layers, **fields).is_local(layer) for layer in range(layers)] == local:
                return fields
    rule = "must have local layers from some layer on, except every N-th"
    raise file.refusal("layer_types", types, rule, "choose a checkpoint with such layers")


def layer_types(config: ModelConfig) -> list[str]:
    """Return the field `layer_types` of a config.json."""
    return [LOCAL if config.is_local(layer) else GLOBAL for layer in range(config.layers)]
