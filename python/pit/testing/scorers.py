"""Scorers, the interface under test: the methods that a scorer may have, and checks of what they return.

`pit.testing.adapters` makes scorers of functions and models. Results are checked here alone, so that an exception, a
wrong shape or dtype and NaN are reported as such and not as wrong scores.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from pit.chat_client import ChatError
from pit.testing.errors import DtypeError, InvariantError, NonFiniteError, ScorerCrashError, ShapeError
from pit.types import Message

Prompt = tuple[Message, ...]
"""A conversation that ends with a user message."""

ROUNDING = 2.0**-14
"""Difference that float32 arithmetic may make to a score of magnitude one: 512 roundings of 2^-23."""

HALF_ROUNDING = 2.0**-4
"""The same for models that compute in bfloat16 or float16: 8 roundings of 2^-7."""


class Item(NamedTuple):
    """The unit that a gap scorer scores: how much better is this output than this reference, given the prompt?"""

    prompt: Prompt
    output: str
    reference: str


class Method(enum.Enum):
    """A method that a scorer may have; the value is its name."""

    GAP = "gap"
    CENTRED = "centred"
    ROWS = "score_rows"
    LOSS = "loss_rows"
    GRADIENTS = "grad_rows"
    SAMPLES = "draw"
    TOKENS = "tokens"
    TEMPLATE = "template_tokens"
    VARIANT = "variant"


@runtime_checkable
class GapScorer(Protocol):
    """A scorer with the one method that all scorers of text have.

    Optional: `centred`, with the same signature, a gap that is 0 where output and reference are the same;
    `rounding`, the difference that arithmetic may make to a score of magnitude one (default `ROUNDING`).
    """

    def gap(
        self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]
    ) -> Float32[np.ndarray, " n"]:
        """Return the gap of each output over its reference; larger favours the output."""


def methods_of(scorer: object) -> frozenset[Method]:
    """Return the methods that a scorer has.

    >>> from pit.testing.adapters import GapFunction
    >>> methods_of(GapFunction(lambda prompts, outputs, references: None))
    frozenset({<Method.GAP: 'gap'>})
    """
    return frozenset(method for method in Method if callable(getattr(scorer, method.value, None)))


def rounding_of(scorer: object) -> float:
    """Return the difference that arithmetic may make to a score of magnitude one.

    >>> rounding_of(object()) == ROUNDING
    True
    """
    return float(getattr(scorer, "rounding", ROUNDING))


def call_scorer(scorer: object, method: Method, *arguments: Any) -> Any:
    """Call a method of a scorer and return its result, unchecked.

    Raises:
        ScorerCrashError: the method raises.
        ChatError: a server does not answer, which says nothing about its model.
    """
    return guarded(method.value, getattr(scorer, method.value), *arguments)


def guarded(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a scorer and return its result, unchecked.

    Raises:
        ScorerCrashError: the function raises.
        ChatError: a server does not answer, which says nothing about its model.
    """
    try:
        return function(*arguments)
    except (InvariantError, ChatError):
        raise
    except Exception as error:  # An exception of a user's model is a result of the check and does not end it.
        raise ScorerCrashError(f"{name}() raised {type(error).__name__}: {str(error)[:300]}") from error


def check_array(name: str, value: Any, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """Return a scorer's result as an array of finite float32 values.

    Args:
        name: name of the result in messages.
        value: the result.
        shape: the required shape.

    Raises:
        ShapeError, DtypeError, NonFiniteError: the result does not meet the requirement that the name says.

    >>> check_array("gap()", np.zeros(2, np.float32), (3,))
    Traceback (most recent call last):
    pit.testing.errors.ShapeError: gap() has shape (2,), must have shape (3,); return one score per item
    """
    array = np.asarray(value)
    if array.shape != shape:
        raise ShapeError(f"{name} has shape {array.shape}, must have shape {shape}; return one score per item")
    if array.dtype != np.float32:
        raise DtypeError(f"{name} has dtype {array.dtype}, must be float32; convert with .astype(numpy.float32)")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise NonFiniteError(
            f"{name}{bad[0].tolist()} is {array[tuple(bad[0])]}, must be finite ({len(bad)} of {array.size} are not)"
        )
    return array


def gaps(scorer: object, items: Sequence[Item], method: Method = Method.GAP) -> Float32[np.ndarray, " n"]:
    """Return the checked gap of each item, from one call to the scorer.

    Args:
        scorer: an object with the method.
        items: the items to score.
        method: `Method.GAP` or `Method.CENTRED`.

    Raises:
        InvariantError: the scorer raises, or its result has a wrong shape or dtype, or is not finite.

    >>> from pit.testing.adapters import GapFunction
    >>> scorer = GapFunction(lambda xs, ys, refs: np.array([len(y) - len(r) for y, r in zip(ys, refs)], np.float32))
    >>> gaps(scorer, [Item((Message("user", "Why?"),), "Because.", "No.")])
    array([5.], dtype=float32)
    """
    prompts, outputs, references = ([item[i] for item in items] for i in range(3))
    result = call_scorer(scorer, method, prompts, outputs, references)
    return check_array(f"{method.value}()", result, (len(items),))


def prompt_text(prompt: Prompt) -> str:
    r"""Return a conversation as plain text: a single user message as it is, others marked by their roles.

    >>> prompt_text((Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Help")))
    'user: Hi\n\nassistant: Yes?\n\nuser: Help'
    """
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n\n".join(f"{role}: {content}" for role, content in prompt)
