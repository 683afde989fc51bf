"""Static sizes of the rollout engine, known before its first step: slots, prefixes at a time, rows, bytes.

Sizes are rounded up to a few steps, so that batches of about the same size share a compiled program.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from pit.config import ModelConfig, RolloutConfig

LEAST_ROW_TOKENS = 512
"""Tokens of the shortest row of prefixes."""

PREFIX_STEP = 32
"""Cached prefixes hold a multiple of so many tokens."""

STRAGGLERS = 2.5
"""Prefixes held, as a multiple of those whose samples fill the slots: late samples keep theirs alive.

With 16 samples of geometric or uniform lengths and 32 or 64 slots, 2 leaves a tenth of them idle; more than 2.5 gains
nothing."""


def few(n: int) -> int:
    """Return the next of 1, 2, 3, 4, 6, 8, 12, 16, ...: at most a half more than n, so that few programs are compiled.

    Example:
        >>> [few(n) for n in (1, 3, 5, 9, 100)]
        [1, 3, 6, 12, 128]
    """
    power = 1
    while power < n:
        power *= 2
    return power * 3 // 4 if power * 3 // 4 >= n and power >= 4 else power


@dataclass(frozen=True)
class Sizes:
    """Static sizes of a call of the engine; two calls of the same sizes run the same compiled programs.

    shards: number of shards of the rows; all other sizes are per shard.
    requests: prefixes of the call, padding included; samples: samples per prefix.
    slots: samples that decode at a time; prefixes: prefixes that are held for them.
    prefix_tokens, output_tokens: most tokens of a prefix, and of a sample.
    row_tokens, rows: of a packed batch that is prefilled at once; batches: how many are stored.
    """

    shards: int
    requests: int
    samples: int
    slots: int
    prefixes: int
    prefix_tokens: int
    output_tokens: int
    row_tokens: int
    rows: int
    batches: int

    @property
    def stored_tokens(self) -> int:
        """Tokens of the store of prefilled rows, with room for one more prefix, so that every cut lies inside."""
        return self.batches * self.rows * self.row_tokens + self.prefix_tokens

    def nbytes(self, model: ModelConfig, vocabulary: int) -> dict[str, int]:
        """Return the bytes that a shard of the rows holds in addition to the weights, by purpose.

        Args:
            model: shapes of the decoder.
            vocabulary: rows of its output table.
        """
        itemsize = jnp.dtype(model.compute_dtype).itemsize
        entry = 2 * model.layers * model.kv_heads * model.head_dim * itemsize
        return {
            "prefilled rows": self.stored_tokens * entry,
            "prefixes in use": self.prefixes * self.prefix_tokens * entry,
            "samples in progress": self.slots * self.output_tokens * entry,
            "last hidden states": (self.requests + self.slots) * model.width * itemsize,
            "logits": 2 * self.slots * vocabulary * 4,
            "results": self.requests * self.samples * (self.output_tokens * 12 + 8),
        }


def sizes_of(lengths: Sequence[int], *, n: int, capacity: int, config: RolloutConfig, shards: int = 1) -> Sizes:
    """Return the sizes of a call; `batches` counts the prefixes' tokens alone, and packing may need more.

    Args:
        lengths: tokens of each prefix.
        n: samples per prefix.
        capacity: most tokens of a sample.
        config: slots and tokens that are prefilled at once, of all shards together.
        shards: shards of the rows; they are dealt the prefixes in turn.
    """
    longest, most = max(lengths), -(-len(lengths) // shards)
    slots = min(-(-config.slots // shards), few(most * n))
    # Samples of one prefix start together and end apart; with one sample each, a prefix ends with its slot.
    held = math.ceil(slots / n * (STRAGGLERS if n > 1 else 1))
    row_tokens = LEAST_ROW_TOKENS
    while row_tokens < 2 * longest:
        row_tokens *= 2
    needed = -(-max(sum(lengths[x::shards]) for x in range(shards)) // row_tokens)
    rows = min(few(needed), max(config.prefill_tokens // (shards * row_tokens), 1))
    return Sizes(
        shards=shards,
        requests=few(most),
        samples=n,
        slots=slots,
        prefixes=min(held, few(most)),
        prefix_tokens=PREFIX_STEP * few(-(-longest // PREFIX_STEP)),
        output_tokens=capacity,
        row_tokens=row_tokens,
        rows=rows,
        batches=few(-(-needed // rows)),
    )
