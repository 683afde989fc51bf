"""Adapters that make scorers of other things: functions and pairwise reward models.

`as_scorer` picks the adapter for an object, `import_scorer` for the MODULE:NAME of the command line. Classifiers have
modules of their own: `pit.testing.classifiers` for those of transformers, `pit.testing.decoders` for PIT's families.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from pit.testing.errors import CheckError, ShapeError
from pit.testing.scorers import ROUNDING, Prompt, methods_of, prompt_text, rounding_of
from pit.testing.served import Variant


@dataclass(frozen=True)
class GapFunction:
    """A gap scorer made of a function.

    function: takes lists of texts (prompts, outputs, references), returns f32[n].
    rounding: difference that arithmetic may make to a score of magnitude one.
    """

    function: Callable[[list[str], list[str], list[str]], Any]
    rounding: float = ROUNDING

    def gap(self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]) -> Any:
        """Return the function's result, unchecked; `pit.testing.scorers.gaps` checks it."""
        return self.function([prompt_text(prompt) for prompt in prompts], list(outputs), list(references))


@runtime_checkable
class QualityScorer(Protocol):
    """A pairwise (Bradley-Terry) reward model: it scores an output by itself, without a reference."""

    def quality(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> Float32[np.ndarray, " n"]:
        """Return the score of each output."""


@dataclass(frozen=True)
class QualityFunction:
    """A quality scorer made of a function.

    function: takes lists of texts (prompts, outputs), returns f32[n].
    rounding: difference that arithmetic may make to a score of magnitude one.
    """

    function: Callable[[list[str], list[str]], Any]
    rounding: float = ROUNDING

    def quality(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> Any:
        """Return the function's result, unchecked."""
        return self.function([prompt_text(prompt) for prompt in prompts], list(outputs))


class Difference:
    """A gap scorer made of a quality scorer: r(x, y) - r(x, y_ref), which is 0 for an answer over itself.

    >>> lengths = QualityFunction(lambda prompts, outputs: np.array([len(y) for y in outputs], np.float32))
    >>> Difference(lengths).gap([()], ["longer"], ["long"])
    array([2.], dtype=float32)
    """

    def __init__(self, model: QualityScorer) -> None:
        self.model, self.rounding = model, rounding_of(model)

    def __getattr__(self, name: str) -> Any:
        """Return what a check may ask a served model for: its tokens and its variants, if it has them."""
        if name in ("tokens", "template_tokens", "facts"):
            return getattr(self.model, name)
        if name == "variant" and hasattr(self.model, name):
            return self._variant
        raise AttributeError(name)

    def _variant(self, variant: Variant) -> "Difference | None":
        other = self.model.variant(variant)  # type: ignore[attr-defined] # Optional, so it is not in the protocol.
        return None if other is None else Difference(other)

    def gap(self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Return the difference of the two scores, both from one call, in the model's own dtype.

        Raises:
            ShapeError: the model does not return one score per output.
        """
        n = len(outputs)
        scores = np.asarray(self.model.quality([*prompts, *prompts], [*outputs, *references]))
        if scores.shape != (2 * n,):
            raise ShapeError(
                f"quality() has shape {scores.shape}, must have shape {(2 * n,)}; return one score per output"
            )
        difference: np.ndarray = scores[:n] - scores[n:]
        return difference

    centred = gap


def import_scorer(model: str) -> Any:
    """Import the object that MODULE:NAME names and return it as a scorer.

    Modules in the working directory are importable, as under `python -m`.

    Raises:
        CheckError: the object cannot be imported, or `as_scorer` refuses it.
    """
    module_name, _, path = model.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        value: Any = importlib.import_module(module_name)
        for name in path.split("."):
            value = getattr(value, name)
    except (ImportError, AttributeError) as error:
        raise CheckError(
            f"{model}: cannot be imported ({error}); give MODULE:NAME of an object in the working directory or on "
            "PYTHONPATH"
        ) from error
    except Exception as error:  # The module is a user's, and may raise anything.
        raise CheckError(
            f"{model}: the import of {module_name} raised {type(error).__name__}: {str(error)[:300]}; mend the module "
            f"so that `python -c 'import {module_name}'` succeeds"
        ) from error
    return as_scorer(value, model)


def as_scorer(value: Any, name: str) -> Any:
    """Return a scorer unchanged, and wrap a quality scorer or a function.

    Args:
        value: a scorer, an object with `quality`, a function of (prompts, outputs, references) or (prompts, outputs).
        name: name of the value in messages.

    Raises:
        CheckError: the value is none of these.

    >>> type(as_scorer(lambda prompts, outputs: None, "mine"))
    <class 'pit.testing.adapters.Difference'>
    """
    if methods_of(value):
        return value
    if callable(getattr(value, "quality", None)):
        return Difference(value)
    if callable(value) and not isinstance(value, type):
        count = len(inspect.signature(value).parameters)
        if count == 3:
            return GapFunction(value)
        if count == 2:
            return Difference(QualityFunction(value))
    raise CheckError(
        f"{name}: is of type {type(value).__name__}, must be a scorer (with gap, quality, score_rows or draw) or a "
        "function of (prompts, outputs, references) or of (prompts, outputs); wrap it in such a function"
    )
