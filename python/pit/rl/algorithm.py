"""The interface of a policy-gradient algorithm: what it optimises, and which minibatches it takes of a rollout.

An algorithm is one file next to `rloo.py` and one line in `algorithms.py`; sampling, scoring, the KL to the anchor and
the shaped reward are common to all.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import jax
from flax import nnx

from pit.config import RlConfig
from pit.model.decoder import Decoder
from pit.model.programs import Shapes
from pit.rl.controllers import Controllers
from pit.rl.records import Measures, Minibatch, Trees
from pit.train.update import LossFunction


class Algorithm(ABC):
    """A policy-gradient algorithm of one stage.

    name: its name in configs. loss: the loss of a microbatch of a minibatch.
    """

    name: ClassVar[str]
    loss: LossFunction

    @abstractmethod
    def __init__(self, graphdef: nnx.GraphDef[Decoder], config: RlConfig, capacity: int) -> None:
        """Make the algorithm of a policy, for a section and samples of at most `capacity` tokens."""

    @abstractmethod
    def prepare(self, trees: Trees, measures: Measures, control: Controllers) -> Iterator[Minibatch]:
        """Yield the minibatches of a rollout, an optimizer step each."""

    @abstractmethod
    def shapes(self, batch: Shapes, anchored: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a microbatch of `prepare`.

        Args:
            batch: shapes of a packed batch.
            anchored: shapes of what the loss may need of the anchor.
        """
