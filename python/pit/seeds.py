"""The one derivation of random seeds: from the seed of a run and the purpose, named step by step.

Two purposes have different seeds (up to collisions of 63 bits), so no random number is used twice by accident.
"""

import hashlib
import json
from typing import NamedTuple


class Seed(NamedTuple):
    """A root and the purpose that its random numbers serve, for example (0, "rl-policy", "samples", 7)."""

    path: tuple[int | str, ...]

    def of(self, *purpose: int | str) -> "Seed":
        """Return the seed of a purpose within this one.

        >>> Seed((0,)).of("rl-policy").of("samples", 7) == Seed((0, "rl-policy", "samples", 7))
        True
        """
        return Seed((*self.path, *purpose))

    @property
    def number(self) -> int:
        """The seed as a number of 63 bits, the same on every machine.

        >>> Seed((0, "samples")).number
        5729529482108647630
        """
        content = json.dumps(self.path, separators=(",", ":")).encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1
