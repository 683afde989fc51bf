"""A family of pretrained models as a value: how its config.json and its tensors say what our decoder is.

`pit.model.families` holds one file per family, and `pit.model.pretrained` reads and writes the folders of all of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pit.config import ConfigError, ModelConfig
from pit.model.config_json import ConfigJson
from pit.model.errors import ModelFileError, refusal
from pit.model.layout import PARAMETERS, SCORE, Weight, sizes

_PLAIN: Mapping[str, Any] = {
    "norm_offset": False,
    "embed_scale": False,
    "post_norm": False,
    "rotary_fraction": 1.0,
    "rope_scaling": None,
    "learned_positions": 0,
    "window": None,
    "window_from": 0,
    "global_every": 0,
    "local_rope_theta": None,
    "qkv_bias": False,
    "qk_norm": False,
    "attention_soft_cap": None,
    "final_soft_cap": None,
    "query_scale": None,
}


def constants(*read: str, **values: Any) -> dict[str, Any]:
    """Return a family's `constants`: no addition to the first Llama, but for `values` and for the fields it reads.

    >>> constants("window", qk_norm=True)["qk_norm"], "window" in constants("window")
    (True, False)
    """
    return {name: value for name, value in (dict(_PLAIN) | values).items() if name not in read}


@dataclass(frozen=True, eq=False)
class Family:
    """Models whose config.json and tensors follow one scheme of transformers.

    name: the name before `ForCausalLM` and `ForSequenceClassification` in the names of its architectures.
    model_type: the field of config.json.
    constants: fields of `ModelConfig` that have the same value in every model of the family.
    read: returns the other fields of `ModelConfig` from a config.json. `compute_dtype`, `remat`, `matched_heads` and
        `longest_path` are not properties of a checkpoint and keep their defaults.
    write: returns the fields of a config.json that `read` reads back as this config; it raises a ModelFileError for a
        config that the family cannot express.
    tensors: name in the files of each parameter in `pit.model.layout.PARAMETERS`.
    reward_name: the name before `ForSequenceClassification`, where it is another.
    files: texts that a folder needs besides weights and config.json, such as code: name there, and place here.
    """

    name: str
    model_type: str
    constants: Mapping[str, Any]
    read: Callable[[ConfigJson], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    tensors: Mapping[str, str]
    reward_name: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    def architecture(self, *, reward: bool) -> str:
        """Return the name in config.json's `architectures` of a language model or a reward model."""
        return f"{self.reward_name or self.name}ForSequenceClassification" if reward else f"{self.name}ForCausalLM"

    def config(self, file: ConfigJson) -> ModelConfig:
        """Return the decoder that a config.json describes.

        Raises:
            ModelFileError: a field is missing, of the wrong type, or asks for what the decoder does not compute.
        """
        try:
            return ModelConfig(**self.constants, **self.read(file))
        except ConfigError as error:
            raise ModelFileError(f"{file.path}: {error}") from error

    def fields(self, config: ModelConfig, *, reward: bool = False) -> dict[str, Any]:
        """Return the fields of the config.json that describe a Decoder, or the one in a RewardModel.

        Raises:
            ModelFileError: no model of the family is such a decoder.
        """
        if reward:
            # No score depends on an output table, so that the family decides what its config.json says of one.
            config = dataclasses.replace(config, tied=self.constants.get("tied", False))
        # None stands for this scale.
        default_scale = config.head_dim**-0.5
        for name, constant in self.constants.items():
            value = getattr(config, name)
            if value != constant and not (name == "query_scale" and value == default_scale):
                default = f", which is head_dim**-0.5 = {default_scale}" if name == "query_scale" else ""
                rule = f"{self.name} has only {constant!r}{default}"
                raise refusal(f"model.{name}", value, rule, "train a model whose config has this value to export it")
        return self.write(config)

    def weights(self, config: ModelConfig, vocab_size: int, *, reward: bool = False) -> list[Weight]:
        """Return all parameters of a Decoder, or of a RewardModel, which reads no output table.

        Raises:
            ModelFileError: the family has no tensor for a parameter that the config calls for.
        """
        lengths, prefix = sizes(config, vocab_size), "decoder." if reward else ""
        weights = []
        for name, parameter in PARAMETERS.items():
            if not parameter.present(config) or (reward and name == "output"):
                continue
            if name not in self.tensors:
                raise ModelFileError(f"{self.name}: has no tensor for {name!r}; name it in the family's `tensors`")
            for layer in range(config.layers) if "{}" in name else [0]:
                file_name = self.tensors[name].format(layer)
                weights.append(Weight(prefix + name.format(layer), file_name, parameter, lengths))
        return [*weights, Weight("score", "score.weight", SCORE, lengths)] if reward else weights
