"""Decoder over packed context trees, in Flax NNX: rotary positions by vector, grouped queries, gated MLP.

One module serves Llama-like and Gemma-like shapes, chosen by `ModelConfig`. It returns hidden states *before* the final
norm, because heads gather the few rows that they need first and normalise only those.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from pit.config import ModelConfig, RopeScaling
from pit.model.axes import PARTITION, on_rows
from pit.model.bits import written
from pit.model.linear import linear
from pit.model.loops import in_loops, recomputed
from pit.model.low_rank import Adaptable
from pit_kernels import cached_attention, three_way_attention


class Cache(NamedTuple):
    """Keys and values of one layer; in a decode cache the heads stand before the tokens, [S K C H]."""

    k: Float[Array, "*b H"]
    v: Float[Array, "*b H"]


class DecodeStep(NamedTuple):
    """Places that each slot reads and writes in a decode step, the same in every layer.

    position: position of the token that is fed, on its path.
    prefix_id: prefix of each slot, an id outside of 0..P-1 for none; prefix_length: tokens of each prefix.
    suffix_length: decoded tokens of each slot, the fed one included; they end at entry `write_at`, the same for all
        slots, and wrap around the end of the cache.
    slots_per_prefix: most slots that share a prefix.
    """

    position: Int32[Array, " S"]
    prefix_id: Int32[Array, " S"]
    prefix_length: Int32[Array, " P"]
    suffix_length: Int32[Array, " S"]
    write_at: Int32[Array, ""]
    slots_per_prefix: int


class RmsNorm(nnx.Module):
    """Root mean square norm, computed in float32; Gemma scales by 1 + w, which starts at 0."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        self.scale = nnx.Param(jnp.zeros(width) if config.norm_offset else jnp.ones(width))
        self.eps = config.norm_eps
        self.offset = config.norm_offset

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        """Return x normalised, in its own dtype."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + jnp.float32(self.eps))
        scale = self.scale[...].astype(jnp.float32) + jnp.float32(1.0 if self.offset else 0.0)
        return (normed * jnp.broadcast_to(scale, normed.shape)).astype(x.dtype)


def rotate(
    x: Float[Array, "B T N H"],
    position: Int32[Array, "B T"],
    theta: float,
    fraction: float = 1.0,
    scaling: RopeScaling | None = None,
) -> Float[Array, "B T N H"]:
    """Return x with rotary embedding by explicit positions (RoFormer, arXiv 2104.09864), halves paired as in Llama.

    Only the first `fraction` of each head is rotated (partial rotary, as in GPT-NeoX).
    """
    half = int(x.shape[-1] * fraction) // 2
    frequency = jnp.float32(theta) ** (-jnp.arange(half, dtype=jnp.float32) / jnp.float32(max(half, 1)))
    frequency = _scaled(frequency, scaling)
    angle = position.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([rotated, x[..., 2 * half :]], axis=-1)


def _scaled(frequency: Float32[Array, " h"], scaling: RopeScaling | None) -> Float32[Array, " h"]:
    """Return lowered rotary frequencies; see `RopeScaling`."""
    if scaling is None:
        return frequency
    lowered: Array = frequency / jnp.float32(scaling.factor)
    if scaling.kind == "linear":
        return lowered
    turns = frequency * jnp.float32(scaling.original_positions / (2 * math.pi))
    kept = jnp.clip((turns - jnp.float32(scaling.low)) / jnp.float32(scaling.high - scaling.low), 0, 1)
    mixed: Array = kept * frequency + (1 - kept) * lowered
    return mixed


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param[Array]:
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * jnp.float32(fan_in**-0.5))


def _sinusoids(positions: int, width: int) -> Float32[Array, "P D"]:
    """Return the initial table of learned positions: sines and cosines (Vaswani et al. 2017) of half a token's size.

    Neighbours start alike, so that a head can read where it looked from the first step. From a table that starts as
    noise, a small model learns much later whether a token of the answer was found in the prompt.
    """
    half = -(-width // 2)
    frequency = jnp.exp(-jnp.log(jnp.float32(positions)) * jnp.arange(half, dtype=jnp.float32) / jnp.float32(half))
    angle = jnp.arange(positions, dtype=jnp.float32)[:, None] * frequency[None, :]
    table = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)[:, :width]
    scaled: Array = table * jnp.float32((2 * width) ** -0.5)
    return scaled


class Attention(Adaptable):
    """Grouped-query attention; weights [D, N, H], [D, K, H] and [N, H, D].

    Attributes:
        local: whether a token sees the last `config.window` tokens of its path only.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, local: bool) -> None:
        d, n, k, h = config.width, config.heads, config.kv_heads, config.head_dim
        self.q = _normal(rngs, (d, n, h), d)
        self.k = _normal(rngs, (d, k, h), d)
        self.v = _normal(rngs, (d, k, h), d)
        self.o = _normal(rngs, (n, h, d), n * h)
        if config.matched_heads:
            matched = self.q[...][:, :: n // k][:, : config.matched_heads]
            self.k[...] = self.k[...].at[:, : config.matched_heads].set(matched)
        if config.qkv_bias:
            self.q_bias = nnx.Param(jnp.zeros((n, h)))
            self.k_bias = nnx.Param(jnp.zeros((k, h)))
            self.v_bias = nnx.Param(jnp.zeros((k, h)))
        if config.qk_norm:
            self.q_norm = RmsNorm(h, config)
            self.k_norm = RmsNorm(h, config)
        self.config, self.local = config, local

    def project(
        self, x: Float[Array, "B T D"], position: Int32[Array, "B T"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Return rotated queries and keys, and values."""
        config = self.config
        q = self.with_term("q", x, linear(x, self.q[...]))
        k = self.with_term("k", x, linear(x, self.k[...]))
        v = self.with_term("v", x, linear(x, self.v[...]))
        if config.qkv_bias:
            q, k, v = (
                x + bias[...].astype(x.dtype)[None, None]
                for x, bias in zip((q, k, v), (self.q_bias, self.k_bias, self.v_bias), strict=True)
            )
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        theta, scaling = config.rope_theta, config.rope_scaling
        if self.local and config.local_rope_theta is not None:
            theta, scaling = config.local_rope_theta, None
        q, k = (rotate(x, position, theta, config.rotary_fraction, scaling) for x in (q, k))
        return q, k, v

    def window(self, tokens: int) -> int | None:
        """Return the window where paths have at most `tokens` tokens; None if no token of a path lies outside it."""
        window, longest = self.config.window, min(tokens, self.config.longest_path or tokens)
        return window if self.local and window is not None and window < longest else None

    def output(self, out: Float[Array, "*b N H"]) -> Float[Array, "*b D"]:
        """Mix the heads back into the residual width."""
        return self.with_term("o", out, linear(out, self.o[...], 2))


class Mlp(Adaptable):
    """Gated MLP: down(activation(gate x) * up x)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.gate = _normal(rngs, (config.width, config.mlp), config.width)
        self.up = _normal(rngs, (config.width, config.mlp), config.width)
        self.down = _normal(rngs, (config.mlp, config.width), config.mlp)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        """Return the MLP of each token."""
        gate = self.with_term("gate", x, linear(x, self.gate[...]))
        gate = jax.nn.silu(gate) if self.activation == "silu" else jax.nn.gelu(gate, approximate=True)
        inner = gate * self.with_term("up", x, linear(x, self.up[...]))
        return self.with_term("down", inner, linear(inner, self.down[...]))


class Layer(nnx.Module):
    """One pre-norm block; Gemma normalises the output of each half as well."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, local: bool) -> None:
        self.attention_norm = RmsNorm(config.width, config)
        self.attention = Attention(config, rngs, local=local)
        self.mlp_norm = RmsNorm(config.width, config)
        self.mlp = Mlp(config, rngs)
        if config.post_norm:
            self.post_attention_norm = RmsNorm(config.width, config)
            self.post_mlp_norm = RmsNorm(config.width, config)
        self.config = config

    def finish(self, x: Float[Array, "*b D"], mixed: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        """Return the residual stream after attention is added and the MLP is applied."""
        if self.config.post_norm:
            mixed = self.post_attention_norm(mixed)
        x = x + mixed
        y = self.mlp(self.mlp_norm(x))
        if self.config.post_norm:
            y = self.post_mlp_norm(y)
        return x + y

    def __call__(
        self, x: Float[Array, "B T D"], position: Int32[Array, "B T"], visible_until: Int32[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Return packed rows after the block, and the keys and values for a prefill."""
        q, k, v = self.attention.project(self.attention_norm(x), position)
        config = self.config
        out = three_way_attention(
            q,
            k,
            v,
            visible_until,
            position,
            scale=config.query_scale,
            logit_soft_cap=config.attention_soft_cap,
            window=self.attention.window(x.shape[1]),
            partition=PARTITION,
        )
        return self.finish(x, self.attention.output(out)), Cache(k, v)

    def decode(
        self, x: Float[Array, "S D"], prefix: Cache, suffix: Cache, step: DecodeStep
    ) -> tuple[Float[Array, "S D"], Cache]:
        """Return one token of every slot after the block, and the suffixes with its keys and values."""
        q, k, v = self.attention.project(self.attention_norm(x)[:, None], step.position[:, None])
        suffix = Cache(
            *(
                written(cache, new.swapaxes(1, 2), step.write_at, axis=2)
                for cache, new in zip(suffix, (k, v), strict=True)
            )
        )
        out = cached_attention(
            q[:, 0],
            prefix.k,
            prefix.v,
            step.prefix_length,
            suffix.k,
            suffix.v,
            step.suffix_length,
            step.prefix_id,
            step.write_at + 1 - step.suffix_length,
            scale=self.config.query_scale,
            logit_soft_cap=self.config.attention_soft_cap,
            window=self.attention.window(prefix.k.shape[2] + suffix.k.shape[2]),
            slots_per_prefix=step.slots_per_prefix,
            partition=PARTITION,
        )
        return self.finish(x, self.attention.output(out)), suffix


class Decoder(nnx.Module):
    """Token embedding, layers, final norm and output table (tied to the embedding or its own)."""

    def __init__(self, config: ModelConfig, vocab_size: int, rngs: nnx.Rngs) -> None:
        # Scaled so that a tied table gives logits of order one, and so do Gemma's scaled embeddings.
        self.embedding = _normal(rngs, (vocab_size, config.width), config.width)
        if config.learned_positions:
            self.positions = nnx.Param(_sinusoids(config.learned_positions, config.width))
        self.layers = nnx.List([Layer(config, rngs, local=config.is_local(i)) for i in range(config.layers)])
        self.final_norm = RmsNorm(config.width, config)
        if not config.tied:
            self.output = _normal(rngs, (vocab_size, config.width), config.width)
        self.config = config

    def embed(self, token: Int32[Array, "*b"], position: Int32[Array, "*b"]) -> Float[Array, "*b D"]:
        """Return embeddings in the compute dtype."""
        config = self.config
        x = self.embedding[...][token].astype(jnp.float32)
        if config.embed_scale:
            x = x * jnp.float32(config.width**0.5)
        if config.learned_positions:
            x = x + self.positions[...][position].astype(jnp.float32)
        return x.astype(jnp.dtype(config.compute_dtype))

    def as_read(self, name: str, weight: Array) -> Array:
        """Return a weight in the dtype in which products read it; those read in float32, by its name, stay as they are.

        Norms compute in float32, and so does `embed` where it scales embeddings or adds positions.
        """
        config = self.config
        sums = config.embed_scale or config.learned_positions > 0
        if name.endswith("scale") or name == "positions" or (name == "embedding" and sums):
            return weight
        return weight.astype(jnp.dtype(config.compute_dtype))

    @property
    def table(self) -> Float[Array, "V D"]:
        """Weights that turn a normalised hidden state into logits."""
        return self.embedding[...] if self.config.tied else self.output[...]

    def __call__(
        self, token: Int32[Array, "B T"], position: Int32[Array, "B T"], visible_until: Int32[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Return hidden states before the final norm."""

        def apply(layer: Layer, x: Array) -> tuple[Array, None]:
            def block(x: Array) -> Array:
                return layer(x, position, visible_until)[0]

            return on_rows(recomputed(block, self.config.remat)(x)), None

        # The table lies split by width: without this, so would the activations, with all rows on every device.
        x, _ = in_loops(self.layers, on_rows(self.embed(token, position)), apply)
        return x

    def prefill(
        self, token: Int32[Array, "B T"], position: Int32[Array, "B T"], visible_until: Int32[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], tuple[Cache, ...]]:
        """Return hidden states of packed rows before the final norm, and keys and values [B T K H] of every layer."""

        def apply(layer: Layer, x: Array) -> tuple[Array, Cache]:
            return layer(x, position, visible_until)

        x, caches = in_loops(self.layers, self.embed(token, position), apply)
        return x, tuple(caches)

    def empty_caches(self, *shape: int) -> tuple[Cache, ...]:
        """Return zeroed caches of every layer, [*shape, H]."""
        zeros = jnp.zeros((*shape, self.config.head_dim), jnp.dtype(self.config.compute_dtype))
        return tuple(Cache(zeros, zeros) for _ in range(self.config.layers))

    def decode(
        self,
        token: Int32[Array, " S"],
        prefixes: tuple[Cache, ...],
        suffixes: tuple[Cache, ...],
        step: DecodeStep,
    ) -> tuple[Float[Array, "S D"], tuple[Cache, ...]]:
        """Feed one token to every slot; returns its hidden states and the grown suffixes [S K C H]."""
        x, grown = self.embed(token, step.position), []
        for layer, prefix, suffix in zip(self.layers, prefixes, suffixes, strict=True):
            x, suffix = layer.decode(x, prefix, suffix, step)
            grown.append(suffix)
        return x, tuple(grown)

    def logits(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
        """Return float32 logits of hidden states before the final norm."""
        normed = self.final_norm(hidden)
        table = self.table.astype(normed.dtype)
        logits = jnp.einsum("...d,vd->...v", normed, table, preferred_element_type=jnp.float32)
        cap = self.config.final_soft_cap
        return logits if cap is None else jnp.float32(cap) * jnp.tanh(logits / jnp.float32(cap))
