"""Compiled programs as values: a jitted function with shapes in the place of its arguments.

Whoever jits a function for training hands it out as such a value, so that `pit plan` compiles the very programs that
training runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import NamedSharding

Shapes = Mapping[str, jax.ShapeDtypeStruct]
"""Shapes of arrays by name, with the places of their parts."""


@dataclass(frozen=True)
class Program:
    """A jitted function and the shapes that it is called with.

    name: its part in a step.
    function: the jitted function.
    arguments: trees of shapes, with places where the arrays have them.
    static: static arguments, by name.
    loop_steps: most trips of the loops whose number of trips depends on the data; 1 where there is none.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    static: Mapping[str, Any] = field(default_factory=dict)
    loop_steps: int = 1

    def trace(self) -> Any:
        """Return the traced function, for the mesh in context (`jax.set_mesh`)."""
        return self.function.trace(*self.arguments, **self.static)


def shape_of(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """Return the shape of an array, or of a shape, at another place."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
