"""Adapters in the files of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.

A policy or an improver is written as CAUSAL_LM, a reward model as SEQ_CLS with its head among `modules_to_save`. Merged
models are written by `pit.model.pretrained` from the weights that `pit.model.adapters.merged` returns.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pit.atomic import new_folder
from pit.config import AdapterConfig, ConfigError, ModelConfig
from pit.model.adapters import input_axes, module_name, targets
from pit.model.config_json import ConfigJson, read_json
from pit.model.errors import ModelFileError, refusal
from pit.model.layout import PARAMETERS, SCORE, Parameter, Weight, sizes
from pit.model.params import Params
from pit.model.tensor_files import write_tensor_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_HEADS = ["classifier", "score"]
"""Modules that PEFT trains whole where the task is SEQ_CLS."""

_ONLY: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "exclude_modules": None,
    "target_parameters": None,
    "trainable_token_indices": None,
}
"""Fields of a config that change what an adapter computes, with the one value that is read."""

_ABSENT: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "layer_replication": None,
    "monteclora_config": None,
    "use_bdlora": None,
    "use_qalora": False,
}
"""More of them, which are not written: older versions of PEFT do not know them."""

_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")
"""Beginnings of the names of initial weights that PEFT takes out of the base, which is then another one."""


class PeftAdapter(NamedTuple):
    """Contents of a folder of PEFT.

    config: rank, scale, dropout and targets.
    params: adapters, and the head of a reward model, by name.
    base: name of the base model; None where the folder names none.
    """

    config: AdapterConfig
    params: Params
    base: str | None


def save_adapter(
    folder: str | Path,
    config: ModelConfig,
    adapter: AdapterConfig,
    params: Params,
    *,
    base: str | None = None,
    files: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the adapters of a model as PEFT does; the folder appears whole or not at all.

    Args:
        folder: must be missing or empty.
        config: shape of the decoder.
        adapter: config of the adapters.
        params: trained weights of a Decoder or a RewardModel on a base (`pit.model.model.Model.trained`).
        base: name or path of the base, under which PEFT loads it.
        files: further text files by name.

    Raises:
        ModelFileError: the folder is not empty, or the parameters are not those of the config.

    Example:
        >>> import tempfile
        >>> from pit.model.decoder import Decoder
        >>> from pit.model.model import Model, adapted
        >>> config = ModelConfig(width=4, layers=1, heads=2, kv_heads=1, head_dim=2, mlp=3)
        >>> base, adapter = Model.build(Decoder, config, 7, seed=0), AdapterConfig(rank=2)
        >>> model = adapted(Decoder, config, base, adapter, seed=1)
        >>> folder = Path(tempfile.mkdtemp()) / "adapter"
        >>> save_adapter(folder, config, adapter, model.trained, base="tiny")
        >>> load_adapter(folder, config).base
        'tiny'
    """
    reward = "score" in params
    weights = _weights(config, adapter, reward=reward)
    remedy = "pass the trained weights, the shape and the adapter of one model"
    for weight in weights:
        if weight.name not in params:
            raise ModelFileError(f"params: {weight.name!r} is missing: its adapter has it; {remedy}")
        if params[weight.name].shape != weight.shape:
            rule = f"its config and adapter make it {weight.shape}"
            raise refusal(f"params: shape of {weight.name!r}", params[weight.name].shape, rule, remedy)
    extra = set(params) - {weight.name for weight in weights}
    if extra:
        raise refusal("params: name", min(extra), "its adapter has none of this name", remedy)
    with new_folder(Path(folder)) as temporary:
        text = json.dumps(_fields(adapter, reward=reward, base=base), indent=2, sort_keys=True) + "\n"
        for name, content in {**files, CONFIG: text}.items():
            (temporary / name).write_text(content, encoding="utf-8")
        write_tensor_file(temporary / WEIGHTS, adapter_tensors(config, adapter, params))


def adapter_tensors(config: ModelConfig, adapter: AdapterConfig, params: Params) -> dict[str, np.ndarray]:
    """Return adapters, and the head of a reward model, as PEFT names and shapes them, float32.

    Args:
        config: shape of the decoder.
        adapter: config of the adapters.
        params: their weights by name.
    """
    weights = _weights(config, adapter, reward="score" in params)
    return {weight.file_name: weight.to_file(np.asarray(params[weight.name]), "float32") for weight in weights}


def load_adapter(folder: str | Path, config: ModelConfig) -> PeftAdapter:
    """Read the adapters of a model, float32, whatever the file holds (float32, bfloat16 or float16).

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        config: shape of the decoder that they adapt.

    Raises:
        ModelFileError: a file is missing or damaged, the adapter is of a kind that is not supported, or its tensors are
            not those of the config.
    """
    folder = Path(folder)
    file = ConfigJson(folder / CONFIG, read_json(folder / CONFIG))
    file.require(**_ONLY, **_ABSENT)
    start = file.values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGE_THE_BASE):
        rule = "its training changed the base too, and the files add to that base alone"
        remedy = "save it as plain LoRA: PEFT's save_pretrained with path_initial_model_for_weight_conversion"
        raise file.refusal("init_lora_weights", start, rule, remedy)
    adapter, reward = _adapter(file, config), _is_reward(file)
    tensors = _tensors(folder / WEIGHTS)
    weights = _weights(config, adapter, reward=reward)
    params = {}
    for weight in weights:
        tensor = tensors.pop(weight.file_name, None)
        if tensor is None:
            rule = "the targets of its config have it"
            raise ModelFileError(f"{folder / WEIGHTS}: tensor {weight.file_name!r} is missing: {rule}; fetch it again")
        if tensor.shape != weight.file_shape:
            rule = f"the config and the decoder make it {weight.file_shape}"
            remedy = "load it on the base that it was trained on"
            raise refusal(f"{folder / WEIGHTS}: shape of {weight.file_name!r}", tensor.shape, rule, remedy)
        params[weight.name] = jnp.asarray(weight.from_file(tensor).astype(np.float32))
    if tensors:
        rule, remedy = "no target of its config has this name", "choose an adapter of projections alone"
        raise refusal(f"{folder / WEIGHTS}: tensor", min(tensors), rule, remedy)
    base = file.values.get("base_model_name_or_path")
    return PeftAdapter(adapter, params, base if isinstance(base, str) else None)


def _fields(adapter: AdapterConfig, *, reward: bool, base: str | None) -> dict[str, Any]:
    """Return the fields of an adapter_config.json."""
    return _ONLY | {
        "task_type": "SEQ_CLS" if reward else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rank_stabilised,
        "target_modules": adapter.targets,
        "modules_to_save": _HEADS if reward else None,
        "inference_mode": True,
    }


def _adapter(file: ConfigJson, config: ModelConfig) -> AdapterConfig:
    """Return the adapter that a config describes."""
    dropout = file.values.get("lora_dropout", 0.0)
    try:
        adapter = AdapterConfig(
            rank=file.integer("r", 8),
            alpha=file.number("lora_alpha", 8.0),
            rank_stabilised=file.boolean("use_rslora", default=False),
            dropout=float(dropout) if isinstance(dropout, int | float) else -1.0,
            targets=_pattern(file),
        )
        targets(adapter, config.layers)
    except ConfigError as error:
        raise ModelFileError(f"{file.path}: {error}") from error
    return adapter


def _pattern(file: ConfigJson) -> str:
    """Return the regular expression of the targets; PEFT compares the ends of names with a list."""
    value = file.values.get("target_modules")
    if value == "all-linear":
        return AdapterConfig().targets
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return rf"(.*\.)?({'|'.join(map(re.escape, sorted(value)))})"
    rule = "must be a regular expression or a list of names of modules"
    raise file.refusal("target_modules", value, rule, "name the adapted projections")


def _is_reward(file: ConfigJson) -> bool:
    """Return whether the adapter is of a reward model."""
    kinds = {"CAUSAL_LM": "", "SEQ_CLS": "score"}
    reward = bool(file.choice("task_type", kinds, default="CAUSAL_LM"))
    saved, allowed = file.values.get("modules_to_save") or [], _HEADS if reward else []
    if not isinstance(saved, list) or not set(saved) <= set(allowed):
        rule = f"beside adapters only {allowed} can be trained whole"
        raise file.refusal("modules_to_save", saved, rule, "choose an adapter without it")
    return reward


def _weights(config: ModelConfig, adapter: AdapterConfig, *, reward: bool) -> list[Weight]:
    """Return every parameter of the adapters, and of the head, with its place in the file."""
    lengths = sizes(config, 0) | {"R": adapter.rank}
    prefix, weights = "decoder." if reward else "", []
    for layer, projection in targets(adapter, config.layers):
        axes = PARAMETERS[f"layers.{{}}.{projection}"].axes.split()
        inputs, outputs = axes[: input_axes(projection)], axes[input_axes(projection) :]
        owner, name = projection.split(".")
        stem = f"{prefix}layers.{layer}.{owner}.adapters.{name}"
        file_stem = f"base_model.model.{module_name(layer, projection)}"
        a = Parameter(" ".join([*inputs, "R"]), f"R ({' '.join(inputs)})")
        b = Parameter(" ".join(["R", *outputs]), f"({' '.join(outputs)}) R")
        weights.append(Weight(f"{stem}.a", f"{file_stem}.lora_A.weight", a, lengths))
        weights.append(Weight(f"{stem}.b", f"{file_stem}.lora_B.weight", b, lengths))
    return [*weights, Weight("score", "base_model.model.score.weight", SCORE, lengths)] if reward else weights


def _tensors(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; name a folder as PEFT's save_pretrained writes it")
    try:
        tensors: dict[str, np.ndarray] = load_file(path)
    except SafetensorError as error:
        raise ModelFileError(f"{path}: is damaged, or not a safetensors file ({error}); fetch it again") from error
    for name, value in tensors.items():
        if value.dtype not in (np.float32, np.float16, jnp.bfloat16):
            rule = "must be one of float32, bfloat16, float16"
            raise refusal(f"{path}: dtype of {name!r}", str(value.dtype), rule, "convert the adapter")
    return tensors
