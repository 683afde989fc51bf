"""Hypothesis strategies for tokens, texts, conversations, preferences, context trees, packed rows and curricula.

They favour boundaries (empty, one token, 127 to 129 tokens, the edges of windows) and shrink to a few tokens.
"""

from pit.testing.strategies.curricula import curricula
from pit.testing.strategies.text import conversations, preferences, texts
from pit.testing.strategies.tokens import EDGES, sizes, token_sequences
from pit.testing.strategies.trees import Forest, forests, packed_rows, topologies

__all__ = [
    "EDGES",
    "Forest",
    "conversations",
    "curricula",
    "forests",
    "packed_rows",
    "preferences",
    "sizes",
    "texts",
    "token_sequences",
    "topologies",
]
