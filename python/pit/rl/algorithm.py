"""The interface of a policy-gradient algorithm: what it optimises, and which minibatches it takes of a rollout.

An algorithm is one file next to `rloo.py` and one line in `algorithms.py`; sampling, scoring, the KL to the anchor and
the shaped reward are common to all.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
from flax import nnx

from pit.config import ClipConfig, FieldError, RlConfig
from pit.losses.total import Total
from pit.model.decoder import Decoder
from pit.model.programs import Shapes
from pit.rl.controllers import Controllers
from pit.rl.records import Measures, Minibatch, Trees
from pit.seeds import Seed
from pit.train.update import LossFunction


class Algorithm(ABC):
    """A policy-gradient algorithm of one stage.

    name: its name in configs. loss: the loss of a microbatch of a minibatch.
    minibatches: parts that the trees of a rollout are packed in, each apart from the others.
    updates: most optimizer steps per rollout.
    """

    name: ClassVar[str]
    loss: LossFunction
    minibatches: int = 1
    updates: int = 1

    @abstractmethod
    def __init__(self, graphdef: nnx.GraphDef[Decoder], config: RlConfig, capacity: int) -> None:
        """Make the algorithm of a policy, for a section and samples of at most `capacity` tokens."""

    @classmethod
    def check(cls, config: RlConfig) -> None:
        """Raise where a section asks for what this algorithm does not do.

        Raises:
            FieldError: under the field's path in the section.
        """
        if config.clip != ClipConfig():
            rule = f"has no effect with algorithm {cls.name}, which clips nothing"
            raise FieldError("clip", config.clip, rule, "leave its fields at their defaults, or set algorithm=clipped")

    @abstractmethod
    def prepare(self, trees: Trees, measures: Measures, control: Controllers, seed: Seed) -> Iterator[Minibatch]:
        """Yield the minibatches of a rollout, an optimizer step each; `seed` is the root of their order."""

    def proceeds(self, totals: Mapping[str, Total]) -> bool:
        """Return whether the next minibatch may be taken, from the metrics of the last one's update."""
        return True

    @abstractmethod
    def shapes(self, batch: Shapes, anchored: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a microbatch of `prepare`.

        Args:
            batch: shapes of a packed batch.
            anchored: shapes of what the loss may need of the anchor.
        """
