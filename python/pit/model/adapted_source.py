"""Pretrained models with adapters merged into them: a folder of PEFT, and the model that it adapts.

Weights are merged one by one as they are read, so that a run starts from the adapted model as from any other.
"""

import dataclasses
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pit.model.adapters import module_name, targets
from pit.model.config_json import ConfigJson, read_json
from pit.model.errors import ModelFileError
from pit.model.hub import SCHEME
from pit.model.peft import CONFIG, WEIGHTS, PeftAdapter, adapter_tensors, load_adapter
from pit.model.shape import read_shape
from pit.model.source import Source
from pit.model.tensor_files import Tensor
from pit.model.token_facts import FILES, GENERATION, TOKENIZER, TokenFacts, read_token_facts


@dataclass(frozen=True)
class MergedTensor:
    """A weight with its adapter: W + scale x B A in torch's axes, float32."""

    base: Tensor
    a: np.ndarray
    b: np.ndarray
    scale: float
    dtype: str = "F32"

    @property
    def path(self) -> Path:
        """File of the weight."""
        return self.base.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.base.shape

    def read(self) -> np.ndarray:
        """Return the merged weight."""
        merged: np.ndarray = self.base.read().astype(np.float32) + np.float32(self.scale) * (self.b @ self.a)
        return merged


@dataclass(frozen=True)
class AdaptedSource:
    """A pretrained model under a folder of PEFT.

    base: the model. folder: holds adapter_config.json and adapter_model.safetensors; its tokenizer and chat template
        are taken where it has them.
    path: what a run names: the folder, or the base where both are named.
    """

    base: Source
    folder: Path
    path: Path

    @property
    def config(self) -> ConfigJson:
        """Fields of the base's config.json."""
        return self.base.config

    @property
    def dequantised(self) -> tuple[str, ...]:
        """Types of quantised tensors of the base."""
        return self.base.dequantised

    def files(self) -> dict[str, Path]:
        """Return the files of both."""
        own = {name: self.folder / name for name in (CONFIG, WEIGHTS, *self._own_files())}
        return {**self.base.files(), **{f"adapter/{name}": path for name, path in own.items()}}

    def token_facts(self, vocab_size: int) -> TokenFacts:
        """Return the facts about the tokens: the folder's own if it has a tokenizer, else the base's."""
        if TOKENIZER not in self._own_files():
            return self.base.token_facts(vocab_size)
        facts = read_token_facts(self.folder, self.config, vocab_size)
        if GENERATION in self._own_files():
            return facts
        return dataclasses.replace(facts, eos_ids=self.base.token_facts(vocab_size).eos_ids)

    def tokenizer(self) -> bytes:
        """Return the content of a tokenizer.json."""
        own = TOKENIZER in self._own_files()
        return (self.folder / TOKENIZER).read_bytes() if own else self.base.tokenizer()

    def tensors(self, stack: ExitStack) -> Mapping[str, Tensor]:
        """Return all tensors by name, those that have an adapter merged with it when they are read.

        Raises:
            ModelFileError: the adapters are of another model, or of a kind that is not supported.
        """
        shape, adapter = read_shape(self.base.config), self.adapter()
        parts = adapter_tensors(shape.config, adapter.config, adapter.params)
        tensors = dict(self.base.tensors(stack))
        for layer, projection in targets(adapter.config, shape.config.layers):
            name = shape.family.tensors[f"layers.{{}}.{projection}"].format(layer)
            stem = f"base_model.model.{module_name(layer, projection)}"
            if name in tensors:  # An absent one is named where all tensors are checked.
                a, b = parts[f"{stem}.lora_A.weight"], parts[f"{stem}.lora_B.weight"]
                tensors[name] = MergedTensor(tensors[name], a, b, adapter.config.scale)
        return tensors

    def adapter(self) -> PeftAdapter:
        """Return the adapters of the folder.

        Raises:
            ModelFileError: they are of another model, or of a kind that is not supported.
        """
        adapter = load_adapter(self.folder, read_shape(self.base.config).config)
        if "score" in adapter.params:
            raise ModelFileError(
                f"{self.folder / CONFIG}: task_type = 'SEQ_CLS': a run starts from a language model; name adapters of "
                "one (CAUSAL_LM)"
            )
        return adapter

    def _own_files(self) -> list[str]:
        return [name for name in FILES if (self.folder / name).is_file()]


def is_adapter(path: Path) -> bool:
    """Return whether a folder holds adapters in the place of a model."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def base_of(folder: Path) -> str:
    """Return the path, or the name on a hub, of the model that a folder of PEFT adapts.

    Raises:
        ModelFileError: the folder names none, or one that is neither a folder here nor a name on a hub.
    """
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if isinstance(name, str) and Path(name).exists():
        return name
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return f"{SCHEME}{name}"
    raise ModelFileError(
        f"{folder / CONFIG}: base_model_name_or_path = {name!r}: is neither a folder here nor OWNER/NAME on a hub; "
        f"name both: --model BASE --adapter {folder}"
    )
