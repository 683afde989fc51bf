"""Log-probabilities of chosen tokens for GPUs, in Triton: the logits of a call never lie in memory.

The forward kernel keeps a tile of logits in registers. The backward pass goes over the vocabulary once: a kernel writes
the gradient of the logits of some words, and XLA's products take it to the hidden states and the table. The sum for the
hidden states is too wide for a program, so that a kernel without this array would compute the logits many times. No
GPU has run them yet; docs/gpu.md says what has been checked without one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from pit_kernels import gpu, triton_call
from pit_kernels import tiles as table
from pit_kernels.dispatch import Backend, one_by_one
from pit_kernels.token_logprob.settings import Partials, RowGradients, Settings

LOGITS_AT_ONCE = 2**27
"""Most logits whose gradient lies in memory at once: 256 MiB in bfloat16."""


class Tile(NamedTuple):
    """Sizes of one kernel: rows, words and width of a tile, warps of a program, buffers of its pipeline."""

    rows: int
    words: int
    width: int
    warps: int
    stages: int


def refuses(settings: Settings, hidden: Array, weight: Array, *rest: Array | None) -> str | None:
    """Return why these kernels cannot serve a call, or None."""
    reason = triton_call.absent_reason() or gpu.unsupported_reason()
    reason = reason or triton_call.unsupported_dtype("hidden", hidden.dtype)
    if reason is not None:
        return reason
    if 0 in hidden.shape or 0 in weight.shape:
        return f"hidden has shape {hidden.shape} and weight {weight.shape}, and it takes no empty arrays"
    return None


def tile_of(kernel: str, itemsize: int) -> Tile:
    """Return the sizes of "forward" or "logit_gradient" on the GPU at hand; `itemsize` is bytes of a number."""
    name = f"{kernel}-b{itemsize}"
    entry = table.load("token_logprob", gpu.architecture(), name, file="tiles_gpu.json")
    assert entry is not None, f"tiles_gpu.json lacks {name}"
    return Tile(**entry)


def forward(
    settings: Settings,
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    valid: Bool[Array, " M"],
    bias: Float[Array, " V"] | None,
) -> Partials:
    """Return the statistics of each row over this part of the vocabulary; arguments as in `autodiff.logprob`."""

    def run(hidden: Array, weight: Array, target: Array, valid: Array, *bias: Array) -> tuple[Array, ...]:
        return _forward(settings, hidden, weight, target, valid, *bias)

    return Partials(*one_by_one(run)(hidden, weight, target, valid, *(() if bias is None else (bias,))))


def backward(
    settings: Settings,
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    valid: Bool[Array, " M"],
    bias: Float[Array, " V"] | None,
    gradients: RowGradients,
) -> tuple[Array, Array, Array | None]:
    """Return the gradients of hidden states and bias, in float32, and of this part of the table."""
    names = [name for name, x in zip(RowGradients._fields, gradients, strict=True) if x is not None]
    given = tuple(x for x in gradients if x is not None)

    def run(hidden: Array, weight: Array, target: Array, valid: Array, *rest: Array) -> tuple[Array, ...]:
        by_name: dict[str, Any] = dict.fromkeys(RowGradients._fields) | dict(zip(names, rest, strict=False))
        return _backward(settings, hidden, weight, target, valid, RowGradients(**by_name), *rest[len(names) :])

    rest = (*given, *(() if bias is None else (bias,)))
    d_hidden, d_weight, *d_bias = one_by_one(run)(hidden, weight, target, valid, *rest)
    return d_hidden, d_weight, d_bias[0] if d_bias else None


BACKEND = Backend("triton_gpu", ("cuda",), refuses, forward, backward)


def pieces(row_tiles: int, vocabulary: int, words: int) -> tuple[int, int]:
    """Return the number of pieces of the vocabulary and the words of each, whole tiles.

    There are as many as give each multiprocessor four programs, so that the last ones to end leave few idle.

    Args:
      row_tiles: tiles of rows.
      vocabulary: words.
      words: words of a tile.
    """
    tiles = -(-vocabulary // words)
    wanted = max(1, 4 * gpu.multiprocessors() // row_tiles)
    each = -(-tiles // wanted)
    return -(-tiles // each), each * words


def _constants(settings: Settings, hidden: Array, weight: Array, tile: Tile, *bias: Array) -> dict[str, Any]:
    return {
        "ROWS": hidden.shape[0],
        "WIDTH": hidden.shape[1],
        "VOCABULARY": weight.shape[settings.vocabulary_axis],
        "TRANSPOSED": settings.layout == "dv",
        "BIAS": bool(bias),
        "CAP": settings.logit_soft_cap or 0.0,
        "TEMPERATURE": settings.temperature,
        "M": tile.rows,
        "V": tile.words,
        "D": tile.width,
        "PRECISION": "ieee",
    }


def _forward(
    settings: Settings, hidden: Array, weight: Array, target: Array, valid: Array, *bias: Array
) -> tuple[Array, ...]:
    from pit_kernels.token_logprob import kernels_gpu

    tile = tile_of("forward", hidden.dtype.itemsize)
    rows, vocabulary = hidden.shape[0], weight.shape[settings.vocabulary_axis]
    row_tiles = -(-rows // tile.rows)
    number, piece = pieces(row_tiles, vocabulary, tile.words)
    parts = triton_call.call(
        kernels_gpu.forward_kernel,
        # Without a bias nothing is read there.
        (hidden, weight, bias[0] if bias else hidden, target, valid.astype(jnp.int32)),
        [jax.ShapeDtypeStruct((number, rows), jnp.float32)] * 4,
        (row_tiles, number),
        warps=tile.warps,
        stages=tile.stages,
        PIECE=piece,
        **_constants(settings, hidden, weight, tile, *bias),
    )
    largest, added = (functools.partial(reduce, axis=0, keepdims=True) for reduce in (jnp.max, jnp.sum))
    return tuple(x[0] for x in Partials(*parts).merged(largest, added))


def _backward(
    settings: Settings,
    hidden: Array,
    weight: Array,
    target: Array,
    valid: Array,
    gradients: RowGradients,
    *bias: Array,
) -> tuple[Array, ...]:
    """Go over the vocabulary in chunks of equal size, then over what is left."""
    vocabulary = weight.shape[settings.vocabulary_axis]
    words = min(vocabulary, max(LOGITS_AT_ONCE // hidden.shape[0] // 128 * 128, 128))
    whole, rest = divmod(vocabulary, words)
    dtype = settings.table_gradient_dtype(weight, gradients.lse)
    axis = settings.vocabulary_axis

    def chunk(first: Array, words: int, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        d_hidden, d_weight, *d_bias = sums
        d_logits, d_bias_V = _logit_gradient(settings, hidden, weight, target, valid, gradients, first, words, *bias)
        part = lax.dynamic_slice_in_dim(weight, first, words, axis)
        vd = settings.layout == "vd"
        d_hidden = d_hidden + _product("mv,vd->md" if vd else "mv,dv->md", d_logits, part)
        d_part = _product("mv,md->vd" if vd else "mv,md->dv", d_logits, hidden).astype(dtype)
        d_weight = lax.dynamic_update_slice_in_dim(d_weight, d_part, first, axis)
        return d_hidden, d_weight, *(lax.dynamic_update_slice_in_dim(x, d_bias_V, first, 0) for x in d_bias)

    sums: tuple[Array, ...] = (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(weight.shape, dtype))
    sums = (*sums, *(jnp.zeros(x.shape, jnp.float32) for x in bias))
    if whole > 1:
        sums = lax.fori_loop(0, whole, lambda c, sums: chunk(jnp.int32(c) * words, words, sums), sums)
    else:
        sums = chunk(jnp.int32(0), words, sums)
    return chunk(jnp.int32(whole * words), rest, sums) if rest else sums


def _logit_gradient(
    settings: Settings,
    hidden: Array,
    weight: Array,
    target: Array,
    valid: Array,
    gradients: RowGradients,
    first: Array,
    words: int,
    *bias: Array,
) -> tuple[Float[Array, "M W"], Float[Array, " W"]]:
    """Return the gradient of the logits of some words, in the dtype of the table, and its sum over the rows.

    The sum is that of nothing, zeros, without a bias.
    """
    from pit_kernels.token_logprob import kernels_gpu

    tile = tile_of("logit_gradient", hidden.dtype.itemsize)
    rows, row_tiles = hidden.shape[0], -(-hidden.shape[0] // tile.rows)
    lse, entropy, d_logp, d_lse, d_entropy = gradients
    d_logits, d_bias = triton_call.call(
        kernels_gpu.logit_gradient_kernel,
        (
            # What a call does not have is not read either.
            *(hidden, weight, bias[0] if bias else hidden, target, valid.astype(jnp.int32)),
            *(lse, entropy, d_logp, d_lse, lse if d_entropy is None else d_entropy, first[None]),
        ),
        [
            jax.ShapeDtypeStruct((rows, words), weight.dtype),
            jax.ShapeDtypeStruct((row_tiles, words if bias else 1), jnp.float32),
        ],
        (row_tiles, -(-words // tile.words)),
        warps=tile.warps,
        stages=tile.stages,
        ENTROPY=d_entropy is not None,
        WORDS=words,
        **_constants(settings, hidden, weight, tile, *bias),
    )
    return d_logits, jnp.sum(d_bias, axis=0) if bias else jnp.zeros((words,), jnp.float32)


def _product(equation: str, a: Array, b: Array) -> Array:
    """Return the product accumulated in float32; XLA's default for float32 on a GPU is TF32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=jnp.float32)
