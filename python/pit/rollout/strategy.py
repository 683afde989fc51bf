"""How the next token is chosen: small frozen types, each with the log-probs that training is to see."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, UInt32


@dataclass(frozen=True)
class Greedy:
    """The most likely token; log-probs are recorded at temperature 1."""

    @property
    def temperature(self) -> float:
        """Temperature of the recorded log-probs."""
        return 1.0

    def choose(self, logits: Float32[Array, "S V"], key: UInt32[Array, "S 2"]) -> Int32[Array, " S"]:
        """Index of the largest logit, the first one at ties."""
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@dataclass(frozen=True)
class Temperature:
    """A draw from softmax(logits / temperature)."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature = {self.temperature}: must be > 0; use Greedy() for the limit at 0")

    def choose(self, logits: Float32[Array, "S V"], key: UInt32[Array, "S 2"]) -> Int32[Array, " S"]:
        """One draw a slot, each from its own key, so that a draw does not depend on the other slots."""
        scaled = logits / jnp.float32(self.temperature)
        return jax.vmap(jax.random.categorical)(jax.random.wrap_key_data(key), scaled).astype(jnp.int32)


Strategy = Greedy | Temperature


def strategy_at(temperature: float) -> Strategy:
    """Greedy at temperature 0, otherwise a draw at that temperature."""
    return Greedy() if temperature == 0 else Temperature(temperature)
