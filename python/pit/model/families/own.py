"""PIT's own decoders, for small models from random weights: learned positions, and heads that are rotated in part.

transformers has no such models: a folder of one holds their code, modeling_pit.py, which `trust_remote_code` loads.
"""

from pathlib import Path
from typing import Any

from pit.config import ModelConfig
from pit.model.config_json import ConfigJson, size_fields
from pit.model.families.llama import TENSORS
from pit.model.family import Family, constants

_CODE = "modeling_pit"
_CLASSES = {"AutoConfig": "Config", "AutoModelForCausalLM": "ForCausalLM"} | {
    "AutoModelForSequenceClassification": "ForSequenceClassification"
}


def _read(file: ConfigJson) -> dict[str, Any]:
    positions, fraction = file.values.get("learned_positions", 0), file.values.get("rotary_fraction", 1.0)
    for name, value, kind in (("learned_positions", positions, int), ("rotary_fraction", fraction, int | float)):
        if not isinstance(value, kind) or isinstance(value, bool) or value < 0:
            raise file.refusal(name, value, "must be a number that is not negative", "correct it")
    return {
        **file.sizes(),
        "rope_theta": file.number("rotary_base", default=10_000.0),
        "rotary_fraction": float(fraction),
        "learned_positions": positions,
        "norm_eps": file.number("rms_norm_eps", default=1e-5),
        "tied": file.boolean("tie_word_embeddings", default=True),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return size_fields(config) | {
        "rotary_base": config.rope_theta,
        "rotary_fraction": config.rotary_fraction,
        "learned_positions": config.learned_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "use_cache": False,
        "auto_map": {auto: f"{_CODE}.Pit{name}" for auto, name in _CLASSES.items()},
    }


PIT = Family(
    name="Pit",
    model_type="pit",
    constants=constants("learned_positions", "rotary_fraction", activation="silu"),
    read=_read,
    write=_write,
    tensors=TENSORS | {"positions": "model.embed_positions.weight"},
    files={f"{_CODE}.py": Path(__file__).with_name(f"{_CODE}.py.txt")},
)
