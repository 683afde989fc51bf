"""Config section of a decoder's shape, with all that the families of pretrained models differ in."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from pit.config.rules import COUNT, POSITIVE, UNSIGNED, Section


@dataclass(frozen=True)
class RopeScaling(Section):
    """Lower rotary frequencies, for paths that are longer than those of pretraining.

    kind: "linear" divides all frequencies by `factor` (arXiv 2306.15595); "llama3" divides those that turn less than
        `low` times within `original_positions`, keeps those that turn more than `high` times, and interpolates between
        (arXiv 2407.21783).
    factor: see above.
    low, high, original_positions: turns, and tokens; of "llama3" alone.
    """

    kind: Literal["linear", "llama3"] = "linear"
    factor: Annotated[float, POSITIVE] = 1.0
    low: Annotated[float, POSITIVE] = 1.0
    high: Annotated[float, POSITIVE] = 4.0
    original_positions: Annotated[int, COUNT] = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.low < self.high, "low", f"must be below high = {self.high}", "copy both from the checkpoint's config"
        )


@dataclass(frozen=True)
class ModelConfig(Section):
    """Shape of a decoder. The defaults are Llama-like; `gemma_like` lists Gemma's differences.

    width: width of the residual stream. layers: number of layers.
    heads, kv_heads: query heads, and key and value heads, per layer.
    head_dim: width of a head. mlp: width of the MLP.
    norm_eps: number added to the mean square in every norm. rope_theta: base of the rotary frequencies.
    rope_scaling: change of the rotary frequencies for paths longer than those of pretraining, if any.
    rotary_fraction: share of each head's width that is rotated by position; the rest compares content alone.
    window: most tokens of its path that a token of a local layer sees, itself included; None: no layer is local.
    window_from: index of the first local layer (Qwen 2).
    global_every: number N such that every N-th layer is global in spite of the window (Gemma 2 and 3); 0 for none.
    local_rope_theta: base of the rotary frequencies of local layers, unscaled (Gemma 3); None for that of the others.
    longest_path: most tokens of a path in this run, if known; a window at least as long then costs nothing.
    qkv_bias: whether queries, keys and values have a bias (Qwen 2).
    qk_norm: whether each head of queries and keys is normalised before it is rotated (Qwen 3, Gemma 3).
    learned_positions: size of a learned table of positions that is added to the embedding (GPT-2); 0 for none.
    tied: whether the output table is the embedding.
    activation: nonlinearity of the gated MLP.
    norm_offset: scale norms by 1 + w instead of w (Gemma).
    embed_scale: multiply embeddings by the square root of the width (Gemma).
    post_norm: normalise the output of attention and MLP too (Gemma 2 and 3).
    attention_soft_cap, final_soft_cap: bound of attention scores, and of logits, by tanh (Gemma 2); None for none.
    query_scale: factor of attention scores; None for 1 / sqrt(head_dim).
    compute_dtype: type of activations and products.
    remat: activations that the backward pass computes again: "none"; "full", all of a layer but its input;
        "save_attention", all but that and the output of attention.
    matched_heads: KV heads per layer whose key projection starts equal to the query projection, so that equal tokens
        find each other from the first step (a small model trained from scratch otherwise learns a lookup late).
    """

    width: Annotated[int, COUNT] = 64
    layers: Annotated[int, COUNT] = 2
    heads: Annotated[int, COUNT] = 2
    kv_heads: Annotated[int, COUNT] = 2
    head_dim: Annotated[int, COUNT] = 32
    mlp: Annotated[int, COUNT] = 128
    norm_eps: Annotated[float, POSITIVE] = 1e-5
    rope_theta: Annotated[float, POSITIVE] = 10_000.0
    rope_scaling: RopeScaling | None = None
    rotary_fraction: float = 1.0
    learned_positions: Annotated[int, UNSIGNED] = 0
    window: Annotated[int | None, COUNT] = None
    window_from: Annotated[int, UNSIGNED] = 0
    global_every: Annotated[int, UNSIGNED] = 0
    local_rope_theta: Annotated[float | None, POSITIVE] = None
    longest_path: Annotated[int | None, COUNT] = None
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = True
    activation: Literal["silu", "gelu"] = "silu"
    norm_offset: bool = False
    embed_scale: bool = False
    post_norm: bool = False
    attention_soft_cap: Annotated[float | None, POSITIVE] = None
    final_soft_cap: Annotated[float | None, POSITIVE] = None
    query_scale: Annotated[float | None, POSITIVE] = None
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "full", "save_attention"] = "none"
    matched_heads: Annotated[int, UNSIGNED] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.heads % self.kv_heads == 0,
            "kv_heads",
            f"must divide heads = {self.heads}",
            "set it to 1, or another divisor",
        )
        self._require(
            self.head_dim % 2 == 0, "head_dim", "must be even (rotary pairs)", f"set it to {self.head_dim + 1}"
        )
        self._require(
            0 <= self.rotary_fraction <= 1 and self.head_dim * self.rotary_fraction % 2 == 0,
            "rotary_fraction",
            f"must be in [0, 1] and rotate an even part of head_dim = {self.head_dim}",
            "set it to 0, 0.5 or 1",
        )
        self._require(
            self.matched_heads <= self.kv_heads,
            "matched_heads",
            f"must be at most kv_heads = {self.kv_heads}",
            f"set it to {self.kv_heads} or less",
        )
        for name in ("window_from", "global_every", "local_rope_theta"):
            default = None if name == "local_rope_theta" else 0
            self._require(
                self.window is not None or getattr(self, name) == default,
                name,
                "is about local layers, and window = None makes none",
                f"set window, or leave {name} out",
            )

    def is_local(self, layer: int) -> bool:
        """Return whether a layer sees the last `window` tokens of a path only.

        >>> config = ModelConfig(layers=4, window=8, global_every=2)
        >>> [config.is_local(layer) for layer in range(4)]
        [True, False, True, False]
        """
        global_layer = self.global_every > 0 and (layer + 1) % self.global_every == 0
        return self.window is not None and layer >= self.window_from and not global_layer


def gemma_like(config: ModelConfig) -> ModelConfig:
    """Return the same shape with Gemma's choices: GELU, norms scaled by 1 + w, scaled embedding, norms after blocks."""
    return dataclasses.replace(
        config, activation="gelu", norm_offset=True, embed_scale=True, post_norm=True, tied=True, norm_eps=1e-6
    )
