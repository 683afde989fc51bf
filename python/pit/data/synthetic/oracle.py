"""The hidden quality of an answer to a synthetic prompt: what labels the pairs and what evaluation measures.

Only the synthetic generators and `pit.evaluate` may import this module: a trained model that sees it is cheating.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from pit.data.synthetic.describe import oracle as describe
from pit.data.synthetic.relay import oracle as relay


class Oracle(Protocol):
    """Who knows what an answer of one family is worth. A module is one.

    WEIGHTS: share of each aspect in the quality; they sum to 1.
    """

    WEIGHTS: Mapping[str, float]

    def aspects(self, prompt: str, answer: str) -> dict[str, float]:
        """Each aspect of the answer, in [0, 1]; ValueError where the prompt is of another family."""

    def quality(self, prompt: str, answer: str) -> float:
        """Hidden quality of the answer in [0, 1]: the weighted mean of its aspects."""


ORACLES: Mapping[str, Oracle] = MappingProxyType({"describe": describe, "relay": relay})
"""The oracles by the name that `data.task` gives their families."""
