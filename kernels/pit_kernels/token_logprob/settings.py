"""The types that every backend of the operation takes and returns."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from pit_kernels.dispatch import Interpret
from pit_kernels.partition import WHOLE, Partition
from pit_kernels.token_logprob.tiles import Tiles

Layout = Literal["vd", "dv"]
"""Layout of the output table: "vd" is [V, D] (a tied embedding table as it is stored), "dv" is [D, V]."""

LOWEST = -1e38
"""Start of a running maximum: below every logit that matters, and its differences with them stay finite."""

_ABSENT = -1e4


class Settings(NamedTuple):
    """Static settings: logits z = soft_cap(h.w + b) / temperature.

    layout, temperature, logit_soft_cap: as in `api.token_logprob`.
    tiles: block sizes of the TPU kernels; None for those of the committed table.
    interpret: False, or the parameters of the interpreter.
    partition: mesh axes that split rows and vocabulary, restricted to the mesh in context.
    """

    layout: Layout
    temperature: float
    logit_soft_cap: float | None
    tiles: Tiles | None = None
    interpret: Interpret = False
    partition: Partition = WHOLE

    @property
    def vocabulary_axis(self) -> int:
        """Axis of the table that is the vocabulary."""
        return 0 if self.layout == "vd" else 1

    @property
    def table_letters(self) -> str:
        """Letters of the table's axes, for `partition.split`."""
        return "c." if self.layout == "vd" else ".c"

    def table_gradient_dtype(self, weight: Array, lse: Array) -> jnp.dtype:
        """Return the dtype of a shard's part of the table's gradient: parts that are added up are in float32."""
        return lse.dtype if self.partition.rows else weight.dtype


class Partials(NamedTuple):
    """Statistics of each row over a part of the vocabulary; parts merge into the whole (see `merged`).

    peak: largest logit, or LOWEST where the part holds no finite one.
    total: sum of exp(z - peak).
    chosen: logit of the target; 0 where the target is not in this part.
    weighted: sum of exp(z - peak) (z - peak), from which the entropy follows.
    """

    peak: Float[Array, "*n M"]
    total: Float[Array, "*n M"]
    chosen: Float[Array, "*n M"]
    weighted: Float[Array, "*n M"]

    def merged(self, largest: Callable[[Any], Any], added: Callable[[Any], Any]) -> "Partials":
        """Return the parts as one; `largest` and `added` reduce an array over the parts."""
        peak = largest(self.peak)
        moved = floor_shift(self.peak - peak)
        shrink = jnp.exp(moved)
        weighted = shrink * (self.weighted + self.total * moved)
        return Partials(peak, *map(added, (self.total * shrink, self.chosen, weighted)))


class RowGradients(NamedTuple):
    """Inputs of the backward pass per row besides the hidden state: statistics and incoming gradients.

    lse, entropy: results of the forward pass, over the whole vocabulary.
    d_logp, d_lse: incoming gradients; 0 in invalid rows.
    d_entropy: the same; None where nothing reads the entropy, and then nothing is computed for it.
    """

    lse: Float[Array, "*n M"]
    entropy: Float[Array, "*n M"]
    d_logp: Float[Array, "*n M"]
    d_lse: Float[Array, "*n M"]
    d_entropy: Float[Array, "*n M"] | None


def floor_shift(shift: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return a shifted logit, no lower than where exp is 0.

    A forbidden token (bias -inf) has p = 0 and a shift of -inf; with a finite one their product is 0, not NaN. This is
    a comparison and not a maximum, so that a NaN stays one.
    """
    return jnp.where(shift < _ABSENT, _ABSENT, shift)
