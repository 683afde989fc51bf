"""Hidden quality of an answer to a synthetic prompt, which labels the pairs and which evaluation measures.

Only the synthetic generators and `pit.evaluate` may import this module: training on it would be cheating.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from pit.data.synthetic.describe import oracle as describe
from pit.data.synthetic.instruct import oracle as instruct
from pit.data.synthetic.relay import oracle as relay


@runtime_checkable
class Oracle(Protocol):
    """Judgement of the answers of a family; modules implement it."""

    def aspects(self, prompt: str, answer: str) -> dict[str, float]:
        """Return each aspect of the answer, in [0, 1]; raise ValueError if the prompt is of another family."""

    def quality(self, prompt: str, answer: str) -> float:
        """Return the hidden quality of the answer in [0, 1], a function of its aspects."""


ORACLES: Mapping[str, Oracle] = MappingProxyType({"describe": describe, "relay": relay, "instruct": instruct})
"""The oracles, by the name of their family in `data.task`."""
