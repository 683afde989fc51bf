"""What a scorer can be asked, level by level; the adapters of `pit.testing.adapters` make one of other things.

A level is a method; a scorer has the levels whose methods it has. What comes back is checked here, once, so that a
scorer that raises, returns wrong shapes or types, or NaN is told apart from one that is wrong.
"""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from pit.testing.faults import NotFinite, Raised, Violation, WrongShape, WrongType
from pit.types import Message

Prompt = tuple[Message, ...]

ROUNDING = 2.0**-14
"""Difference that float32 arithmetic may make to a score of size one: 512 roundings of 2^-23."""

HALF_ROUNDING = 2.0**-4
"""The same for models that compute in bfloat16 or float16: 8 roundings of 2^-7."""


class Item(NamedTuple):
    """One question to a gap scorer: how much better is the output than the reference, for this prompt?"""

    prompt: Prompt
    output: str
    reference: str


class Level(enum.Enum):
    """What a scorer can be asked; the value names its method."""

    GAP = "gap"
    CENTRED = "centred"
    ROWS = "score_rows"
    LOSS = "loss_rows"
    GRADIENTS = "grad_rows"
    SAMPLES = "draw"


@runtime_checkable
class GapScorer(Protocol):
    """The least that a scorer is: f32[n] of n prompts, outputs and references; larger favours the output.

    Optional: `centred`, of the same signature, a gap that is 0 where output and reference are the same;
    `rounding`, the difference that arithmetic may make to a score of size one (`ROUNDING` if it has none).
    """

    def gap(
        self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]
    ) -> Float32[np.ndarray, " n"]:
        """Gap of each output over its reference."""


def levels_of(scorer: object) -> frozenset[Level]:
    """The levels that a scorer has."""
    return frozenset(level for level in Level if callable(getattr(scorer, level.value, None)))


def rounding_of(scorer: object) -> float:
    """The difference that arithmetic may make to a score of size one."""
    return float(getattr(scorer, "rounding", ROUNDING))


def asked(scorer: object, level: Level, *arguments: Any) -> Any:
    """Call a level's method.

    Raises:
        Raised: it raises.
    """
    try:
        return getattr(scorer, level.value)(*arguments)
    except Violation:
        raise
    except Exception as error:  # Whatever a user's model raises is a finding of the check, not its end.
        raise Raised(f"{level.value}() raised {type(error).__name__}: {str(error)[:300]}") from error


def checked(name: str, value: Any, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """A result that is finite float32 of the shape.

    Raises:
        WrongShape, WrongType, NotFinite: it is not.
    """
    array = np.asarray(value)
    if array.shape != shape:
        raise WrongShape(f"{name} has shape {array.shape}, not {shape}; return one score for each question, in order")
    if array.dtype != np.float32:
        raise WrongType(f"{name} has type {array.dtype}, not float32; integers and other floats lose or hide digits")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise NotFinite(f"{name}{bad[0].tolist()} is {array[tuple(bad[0])]}; {len(bad)} of {array.size} are not finite")
    return array


def gaps(scorer: object, items: Sequence[Item], level: Level = Level.GAP) -> Float32[np.ndarray, " n"]:
    """Checked gaps of items, asked in one call.

    Raises:
        Violation: the scorer raises, or its result has a wrong shape, type, or NaN.
    """
    prompts, outputs, references = ([each[i] for each in items] for i in range(3))
    return checked(f"{level.value}()", asked(scorer, level, prompts, outputs, references), (len(items),))


def text_of(prompt: Prompt) -> str:
    r"""A conversation as plain text: one user message is itself, others are marked by their roles.

    >>> text_of((Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Help")))
    'user: Hi\n\nassistant: Yes?\n\nuser: Help'
    """
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n\n".join(f"{role}: {content}" for role, content in prompt)
