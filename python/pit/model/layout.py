"""Axes of the decoder's parameters, in memory and in the files of Hugging Face's transformers.

The letters are those of `pit.types`; P is a position of a learned table. Torch keeps a linear weight as [out, in].
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from pit.config import ModelConfig


@dataclass(frozen=True)
class Parameter:
    """Axes of one parameter; brackets in `file_axes` join axes into one, and 1 adds one.

    present: whether the decoder of a config has the parameter.
    """

    axes: str
    file_axes: str
    present: Callable[[ModelConfig], bool] = lambda _: True


PARAMETERS: Mapping[str, Parameter] = {
    "embedding": Parameter("V D", "V D"),
    "positions": Parameter("P D", "P D", present=lambda config: config.learned_positions > 0),
    "layers.{}.attention_norm.scale": Parameter("D", "D"),
    "layers.{}.attention.q": Parameter("D N H", "(N H) D"),
    "layers.{}.attention.k": Parameter("D K H", "(K H) D"),
    "layers.{}.attention.v": Parameter("D K H", "(K H) D"),
    "layers.{}.attention.q_bias": Parameter("N H", "(N H)", present=lambda config: config.qkv_bias),
    "layers.{}.attention.k_bias": Parameter("K H", "(K H)", present=lambda config: config.qkv_bias),
    "layers.{}.attention.v_bias": Parameter("K H", "(K H)", present=lambda config: config.qkv_bias),
    "layers.{}.attention.q_norm.scale": Parameter("H", "H", present=lambda config: config.qk_norm),
    "layers.{}.attention.k_norm.scale": Parameter("H", "H", present=lambda config: config.qk_norm),
    "layers.{}.attention.o": Parameter("N H D", "D (N H)"),
    "layers.{}.mlp_norm.scale": Parameter("D", "D"),
    "layers.{}.mlp.gate": Parameter("D F", "F D"),
    "layers.{}.mlp.up": Parameter("D F", "F D"),
    "layers.{}.mlp.down": Parameter("F D", "D F"),
    "layers.{}.post_attention_norm.scale": Parameter("D", "D", present=lambda config: config.post_norm),
    "layers.{}.post_mlp_norm.scale": Parameter("D", "D", present=lambda config: config.post_norm),
    "final_norm.scale": Parameter("D", "D"),
    "output": Parameter("V D", "V D", present=lambda config: not config.tied),
}
"""All parameters of a Decoder by name; {} stands for the number of a layer."""

SCORE = Parameter("D", "1 D")
"""The head of a RewardModel."""


@dataclass(frozen=True)
class Weight:
    """One parameter of a model, under its name and shape in memory and in a file."""

    name: str
    file_name: str
    parameter: Parameter
    sizes: Mapping[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in memory."""
        return self._shape(self.parameter.axes.split())

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape in a file."""
        return self._shape(re.findall(r"\(.*?\)|\w", self.parameter.file_axes))

    def from_file(self, value: np.ndarray) -> np.ndarray:
        """Return what a file holds in the axes of the parameter, in the dtype of the file; no number is copied."""
        axes, file_axes = self.parameter.axes.split(), re.findall("[A-Z]", self.parameter.file_axes)
        split = value.reshape(self._shape(file_axes))
        return split.transpose([file_axes.index(axis) for axis in axes])

    def to_file(self, value: np.ndarray, dtype: str) -> np.ndarray:
        """Return what a file of this dtype holds of the parameter; its memory is contiguous, as safetensors needs."""
        axes, file_axes = self.parameter.axes.split(), re.findall("[A-Z]", self.parameter.file_axes)
        turned = value.transpose([axes.index(axis) for axis in file_axes]).reshape(self.file_shape)
        return np.ascontiguousarray(turned.astype(jnp.dtype(dtype)))

    def _shape(self, groups: Sequence[str]) -> tuple[int, ...]:
        return tuple(math.prod(self.sizes[axis] for axis in re.findall("[A-Z]", group)) for group in groups)


def sizes(config: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Return the length of each axis."""
    return {
        "V": vocab_size,
        "D": config.width,
        "F": config.mlp,
        "N": config.heads,
        "K": config.kv_heads,
        "H": config.head_dim,
        "P": config.learned_positions,
    }
