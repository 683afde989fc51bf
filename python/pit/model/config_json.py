"""Typed reading of a config.json, the file in which Hugging Face's transformers keeps the shape of a model.

Each method reads one field, and raises an error with the file, the field, its value, the rule and the remedy.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pit.config import ModelConfig
from pit.model.errors import ModelFileError, refusal

_SIZES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp": "intermediate_size",
}
"""Sizes of a decoder: name in `ModelConfig`, name in config.json."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ModelFileError: the file does not exist, or holds something else.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; name a folder as transformers' save_pretrained writes it")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: is not valid JSON ({error}); fetch the file again") from error
    if not isinstance(values, dict):
        raise ModelFileError(f"{path}: holds a JSON {type(values).__name__}, not an object; fetch the file again")
    return values


def size_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of a config.json that hold the sizes of a decoder; the inverse of `ConfigJson.sizes`."""
    return {file_name: getattr(config, name) for name, file_name in _SIZES.items()}


@dataclass(frozen=True)
class ConfigJson:
    """Fields of a config.json, and the file that they come from.

    Example:
        >>> file = ConfigJson(Path("config.json"), {"rms_norm_eps": 1e-5, "hidden_act": "x"})
        >>> file.number("rms_norm_eps", default=1e-6)
        1e-05
        >>> file.choice("hidden_act", {"silu": "silu"}, default="silu")
        Traceback (most recent call last):
        pit.model.errors.ModelFileError: config.json: hidden_act = 'x': must be one of silu; choose another checkpoint
    """

    path: Path
    values: Mapping[str, Any]

    def refusal(self, name: str, value: object, rule: str, remedy: str) -> ModelFileError:
        """Return the error for a field that breaks a rule."""
        return refusal(f"{self.path}: {name}", value, rule, remedy)

    def require(self, **values: object) -> None:
        """Raise if one of these fields is given and has another value than this."""
        for name, value in values.items():
            if self.values.get(name, value) != value:
                rule, remedy = f"only {value!r} is supported", "choose a checkpoint without it"
                raise self.refusal(name, self.values[name], rule, remedy)

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a positive integer; a field that is absent or null has the default, or is refused without one."""
        value = default if self.values.get(name) is None else self.values[name]
        if value is None:
            raise ModelFileError(f"{self.path}: {name} is missing: it fixes the shape of the model; add it")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refusal(name, value, "must be a positive integer", "correct it")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a positive, finite number; a field that is absent has the default, or is refused without one."""
        if name not in self.values and default is None:
            raise ModelFileError(f"{self.path}: {name} is missing: the decoder needs it; add it")
        return self.positive(name, self.values.get(name, default))

    def optional_number(self, name: str, default: float | None) -> float | None:
        """Return a positive, finite number, or None for null."""
        value = self.values.get(name, default)
        return None if value is None else self.positive(name, value)

    def boolean(self, name: str, default: bool) -> bool:
        """Return a truth value."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self.refusal(name, value, "must be true or false", "correct it")
        return value

    def choice(self, name: str, choices: Mapping[str, str], default: str) -> str:
        """Return the choice that the field names."""
        value = self.values.get(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.refusal(name, value, f"must be one of {', '.join(choices)}", "choose another checkpoint")
        return choices[value]

    def sizes(self) -> dict[str, Any]:
        """Return the sizes of a decoder as fields of `ModelConfig`.

        Without `num_key_value_heads`, every head has keys of its own; without `head_dim`, the heads share the width.
        """
        width, heads = self.integer("hidden_size"), self.integer("num_attention_heads")
        if self.values.get("head_dim") is None and width % heads:
            rule = f"must divide hidden_size = {width} where head_dim is not given"
            raise self.refusal("num_attention_heads", heads, rule, "give head_dim")
        defaults = {"kv_heads": heads, "head_dim": width // heads}
        return {name: self.integer(file_name, defaults.get(name)) for name, file_name in _SIZES.items()}

    def require_off(self, *names: str) -> None:
        """Raise if one of these fields is given and is neither false nor null."""
        for name in names:
            if self.values.get(name) not in (None, False):
                raise self.refusal(name, self.values[name], "must be false or null", "choose a checkpoint without it")

    def positive(self, name: str, value: object) -> float:
        """Return the value of a field if it is a positive, finite number."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.refusal(name, value, "must be a positive number", "correct it")
        return float(value)
