"""Decoder over packed context trees, in Flax NNX: rotary positions by vector, grouped queries, gated MLP.

One module serves Llama-like and Gemma-like shapes, chosen by `ModelConfig`. It returns hidden states *before* the final
norm, because the heads gather the few rows they need first and normalise only those.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from pit.config import ModelConfig
from pit.model.axes import PARTITION
from pit_kernels import cached_attention, three_way_attention


class Cache(NamedTuple):
    """Keys and values of one layer: float[rows, slots, K, H]."""

    k: Float[Array, "S C K H"]
    v: Float[Array, "S C K H"]


class SharedPrefix(NamedTuple):
    """What all samples of a tree share: per-layer caches [P, C, K, H], and the number of live tokens of each prefix."""

    layers: tuple[Cache, ...]
    length: Int32[Array, " P"]


class RmsNorm(nnx.Module):
    """Root mean square norm, computed in float32; Gemma scales by 1 + w, which starts at 0."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        self.scale = nnx.Param(jnp.zeros(width) if config.norm_offset else jnp.ones(width))
        self.eps = config.norm_eps
        self.offset = config.norm_offset

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        """Normalised x, in its own dtype."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + jnp.float32(self.eps))
        scale = self.scale[...].astype(jnp.float32) + jnp.float32(1.0 if self.offset else 0.0)
        return (normed * jnp.broadcast_to(scale, normed.shape)).astype(x.dtype)


def rotate(
    x: Float[Array, "B T N H"], position: Int32[Array, "B T"], theta: float, fraction: float = 1.0
) -> Float[Array, "B T N H"]:
    """Rotary embedding by explicit positions (RoFormer, arXiv 2104.09864), in Llama's layout of halves as pairs.

    Only the first `fraction` of each head is rotated (partial rotary, as in GPT-NeoX).
    """
    half = int(x.shape[-1] * fraction) // 2
    frequency = jnp.float32(theta) ** (-jnp.arange(half, dtype=jnp.float32) / jnp.float32(max(half, 1)))
    angle = position.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([rotated, x[..., 2 * half :]], axis=-1)


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param[Array]:
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * jnp.float32(fan_in**-0.5))


def _sinusoids(positions: int, width: int) -> Float32[Array, "P D"]:
    """Where a learned table of positions starts: sines and cosines (Vaswani et al. 2017) of half a token's size.

    Neighbours start alike, so that a head can read where it looked from the first step. From a table that starts as
    noise, a small model learns much later whether a token of the answer was found in the prompt.
    """
    half = -(-width // 2)
    frequency = jnp.exp(-jnp.log(jnp.float32(positions)) * jnp.arange(half, dtype=jnp.float32) / jnp.float32(half))
    angle = jnp.arange(positions, dtype=jnp.float32)[:, None] * frequency[None, :]
    table = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)[:, :width]
    scaled: Array = table * jnp.float32((2 * width) ** -0.5)
    return scaled


class Attention(nnx.Module):
    """Grouped-query attention; weights [D, N, H], [D, K, H] and [N, H, D]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        d, n, k, h = config.width, config.heads, config.kv_heads, config.head_dim
        self.q = _normal(rngs, (d, n, h), d)
        self.k = _normal(rngs, (d, k, h), d)
        self.v = _normal(rngs, (d, k, h), d)
        self.o = _normal(rngs, (n, h, d), n * h)
        if config.matched_heads:
            matched = self.q[...][:, :: n // k][:, : config.matched_heads]
            self.k[...] = self.k[...].at[:, : config.matched_heads].set(matched)
        self.config = config

    def project(
        self, x: Float[Array, "B T D"], position: Int32[Array, "B T"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Rotated queries and keys, and values."""
        dtype, config = x.dtype, self.config
        q = jnp.einsum("btd,dnh->btnh", x, self.q[...].astype(dtype))
        k = jnp.einsum("btd,dkh->btkh", x, self.k[...].astype(dtype))
        v = jnp.einsum("btd,dkh->btkh", x, self.v[...].astype(dtype))
        theta, fraction = config.rope_theta, config.rotary_fraction
        return rotate(q, position, theta, fraction), rotate(k, position, theta, fraction), v

    def output(self, out: Float[Array, "*b N H"]) -> Float[Array, "*b D"]:
        """Mix the heads back into the residual width."""
        return jnp.einsum("...nh,nhd->...d", out, self.o[...].astype(out.dtype))


class Mlp(nnx.Module):
    """Gated MLP: down(activation(gate x) * up x)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.gate = _normal(rngs, (config.width, config.mlp), config.width)
        self.up = _normal(rngs, (config.width, config.mlp), config.width)
        self.down = _normal(rngs, (config.mlp, config.width), config.mlp)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        """The MLP of each token."""
        gate = x @ self.gate[...].astype(x.dtype)
        gate = jax.nn.silu(gate) if self.activation == "silu" else jax.nn.gelu(gate, approximate=True)
        return (gate * (x @ self.up[...].astype(x.dtype))) @ self.down[...].astype(x.dtype)


class Layer(nnx.Module):
    """One pre-norm block; Gemma normalises the output of each half as well."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.attention_norm = RmsNorm(config.width, config)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RmsNorm(config.width, config)
        self.mlp = Mlp(config, rngs)
        if config.post_norm:
            self.post_attention_norm = RmsNorm(config.width, config)
            self.post_mlp_norm = RmsNorm(config.width, config)
        self.config = config

    def finish(self, x: Float[Array, "*b D"], mixed: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        """The residual half after attention, and the MLP half."""
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
        """Packed rows through the block; the keys and values are returned for prefilling."""
        q, k, v = self.attention.project(self.attention_norm(x), position)
        config = self.config
        out = three_way_attention(
            q,
            k,
            v,
            visible_until,
            scale=config.query_scale,
            logit_soft_cap=config.attention_soft_cap,
            partition=PARTITION,
        )
        return self.finish(x, self.attention.output(out)), Cache(k, v)

    def decode(
        self,
        x: Float[Array, "S D"],
        position: Int32[Array, " S"],
        prefix: Cache,
        prefix_length: Int32[Array, " P"],
        suffix: Cache,
        step: Int32[Array, ""],
    ) -> tuple[Float[Array, "S D"], Cache]:
        """One token of every slot; slots stand in order of their prefixes, equally many each."""
        q, k, v = self.attention.project(self.attention_norm(x)[:, None], position[:, None])
        suffix = Cache(
            jax.lax.dynamic_update_slice_in_dim(suffix.k, k, step, axis=1),
            jax.lax.dynamic_update_slice_in_dim(suffix.v, v, step, axis=1),
        )
        slots, prefixes = x.shape[0], prefix_length.shape[0]
        out = cached_attention(
            q[:, 0],
            prefix.k,
            prefix.v,
            prefix_length,
            suffix.k,
            suffix.v,
            jnp.full((slots,), 1, jnp.int32) + step,
            jnp.repeat(jnp.arange(prefixes, dtype=jnp.int32), slots // prefixes),
            scale=self.config.query_scale,
            logit_soft_cap=self.config.attention_soft_cap,
            slots_per_prefix=slots // prefixes,
        )
        return self.finish(x, self.attention.output(out)), suffix


class Decoder(nnx.Module):
    """Token embedding, layers, final norm and output table (tied to the embedding or its own)."""

    def __init__(self, config: ModelConfig, vocab_size: int, rngs: nnx.Rngs) -> None:
        # Scaled so that a tied table gives logits of order one, and so do Gemma's scaled embeddings.
        self.embedding = _normal(rngs, (vocab_size, config.width), config.width)
        if config.learned_positions:
            self.positions = nnx.Param(_sinusoids(config.learned_positions, config.width))
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.layers)])
        self.final_norm = RmsNorm(config.width, config)
        if not config.tied:
            self.output = _normal(rngs, (vocab_size, config.width), config.width)
        self.config = config

    def embed(self, token: Int32[Array, "*b"], position: Int32[Array, "*b"]) -> Float[Array, "*b D"]:
        """Embeddings in the compute dtype."""
        config = self.config
        x = self.embedding[...][token]
        if config.embed_scale:
            x = x * jnp.float32(config.width**0.5)
        if config.learned_positions:
            x = x + self.positions[...][position]
        return x.astype(jnp.dtype(config.compute_dtype))

    @property
    def table(self) -> Float[Array, "V D"]:
        """Weights that turn a normalised hidden state into logits."""
        return self.embedding[...] if self.config.tied else self.output[...]

    def __call__(
        self, token: Int32[Array, "B T"], position: Int32[Array, "B T"], visible_until: Int32[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Hidden states before the final norm."""
        x = self.embed(token, position)
        for layer in self.layers:
            x = _block(layer, self.config.remat)(x, position, visible_until)
        return x

    def prefill(
        self, token: Int32[Array, "P T"], length: Int32[Array, " P"]
    ) -> tuple[Float[Array, "P D"], SharedPrefix]:
        """Run one prefix a row; returns the hidden state of each last token, and the caches its samples share."""
        index = jnp.broadcast_to(jnp.arange(token.shape[1], dtype=jnp.int32), token.shape)
        visible_until = jnp.where(index < length[:, None], length[:, None], 0)
        x, caches = self.embed(token, index), []
        for layer in self.layers:
            x, cache = layer(x, index, visible_until)
            caches.append(cache)
        last = jnp.take_along_axis(x, (length - 1)[:, None, None], axis=1)[:, 0]
        return last, SharedPrefix(tuple(caches), length)

    def empty_suffix(self, slots: int, capacity: int) -> tuple[Cache, ...]:
        """Zeroed per-layer caches for `capacity` sampled tokens in each of `slots` slots."""
        config = self.config
        zeros = jnp.zeros((slots, capacity, config.kv_heads, config.head_dim), jnp.dtype(config.compute_dtype))
        return tuple(Cache(zeros, zeros) for _ in range(config.layers))

    def decode(
        self,
        token: Int32[Array, " S"],
        prefix: SharedPrefix,
        suffix: tuple[Cache, ...],
        step: Int32[Array, ""],
    ) -> tuple[Float[Array, "S D"], tuple[Cache, ...]]:
        """Feed the `step`-th sampled token of every slot; returns hidden states and the grown suffix caches."""
        position = jnp.repeat(prefix.length, token.shape[0] // prefix.length.shape[0]) + step
        x, grown = self.embed(token, position), []
        for layer, shared, own in zip(self.layers, prefix.layers, suffix, strict=True):
            x, own = layer.decode(x, position, shared, prefix.length, own, step)
            grown.append(own)
        return x, tuple(grown)

    def logits(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
        """Float32 logits of hidden states that have not been normalised yet."""
        normed = self.final_norm(hidden)
        table = self.table.astype(normed.dtype)
        logits = jnp.einsum("...d,vd->...v", normed, table, preferred_element_type=jnp.float32)
        cap = self.config.final_soft_cap
        return logits if cap is None else jnp.float32(cap) * jnp.tanh(logits / jnp.float32(cap))


def _block(layer: Layer, remat: bool):  # type: ignore[no-untyped-def]
    def run(
        x: Float[Array, "B T D"], position: Int32[Array, "B T"], visible_until: Int32[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        return layer(x, position, visible_until)[0]

    return jax.checkpoint(run) if remat else run
