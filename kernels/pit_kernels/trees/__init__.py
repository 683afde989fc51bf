"""Trees of token sequences for any JAX training loop: shared prefixes are computed once, and every path is read back.

`pack` turns sequences into rows that `three_way_attention` reads; `to_paths` and `to_rows` carry values between the
rows and the sequences. The guide is docs/guides/train-on-trees.md.
"""

from pit_kernels.trees.packing import pack
from pit_kernels.trees.rows import TreeRows
from pit_kernels.trees.sources import Turn, join_turns, trie_paths
from pit_kernels.trees.values import path_values, row_logprob, to_paths, to_rows

__all__ = [
    "TreeRows",
    "Turn",
    "join_turns",
    "pack",
    "path_values",
    "row_logprob",
    "to_paths",
    "to_rows",
    "trie_paths",
]
