"""From a word of the command line to a scorer and its data: a run, a transformers folder, or MODULE:NAME."""

import importlib
import inspect
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

from pit.data.errors import DataError
from pit.data.readers import FORMATS, read_preferences
from pit.stages.context import Run
from pit.testing.checkpoint import CheckpointScorer
from pit.testing.faults import CheckError
from pit.testing.scorers import Difference, GapFunction, QualityFunction, SequenceClassifier, levels_of
from pit.types import Preference

_NAMED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def open_scorer(model: str, stage: str = "reward-gap") -> Any:
    """The scorer that a word names.

    Args:
        model: folder of a run, folder of a transformers sequence classifier, or MODULE:NAME of a scorer or of a
            function of (prompts, outputs, references) or of (prompts, outputs).
        stage: of a run.

    Raises:
        CheckError: it names nothing that can be asked for scores.
    """
    if _NAMED.fullmatch(model):
        return _imported(model)
    folder = Path(model)
    config = folder / "config.json"
    if not config.is_file():
        raise CheckError(
            f"{model}: is no model (no config.json); name the folder of a run, the folder of a transformers sequence "
            "classifier, or MODULE:NAME of a scorer in Python"
        )
    if "architectures" in json.loads(config.read_text(encoding="utf-8")):
        return Difference(SequenceClassifier.open(folder))
    return CheckpointScorer.open(folder, stage)


def _imported(model: str) -> Any:
    module_name, _, path = model.partition(":")
    # A module beside the user, as for python -m.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise CheckError(
            f"{model}: cannot be imported ({error}); name MODULE:NAME of something Python finds"
        ) from error
    return as_scorer(found, model)


def as_scorer(found: Any, name: str) -> Any:
    """A scorer as it is, an ordinary reward model or a function wrapped.

    Raises:
        CheckError: it is none of these.
    """
    if levels_of(found):
        return found
    if callable(getattr(found, "quality", None)):
        return Difference(found)
    if callable(found) and not isinstance(found, type):
        count = len(inspect.signature(found).parameters)
        if count == 3:
            return GapFunction(found)
        if count == 2:
            return Difference(QualityFunction(found))
    raise CheckError(
        f"{name}: is a {type(found).__name__}; must be a scorer (gap, quality or score_rows), a function of (prompts, "
        "outputs, references), or one of (prompts, outputs); wrap it in one"
    )


def read_rows(path: Path, limit: int) -> list[Preference]:
    """At most `limit` preferences of a file or folder, in any format that PIT reads.

    Raises:
        CheckError: there are no pairs.
    """
    try:
        stream, report = read_preferences(path)
        rows = list(itertools.islice(stream, limit))
    except DataError as error:
        raise CheckError(
            f"{error}; a check needs pairs: a prompt, a better and a worse answer in each row ({', '.join(FORMATS)})"
        ) from error
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
        raise CheckError(
            f"{path}: none of {report.rows} rows is a pair ({reasons}); a check needs a prompt, a better and a worse "
            "answer in each row (columns prompt, chosen, rejected)"
        )
    return rows


def rows_of_run(folder: Path, limit: int) -> list[Preference]:
    """At most `limit` preferences of the eval fold of a run, as its tokenizer writes them."""
    run = Run.open(folder)
    fold, template = run.fold("eval"), run.template
    rows = []
    for i in range(min(limit, len(fold))):
        prompt, better, worse = fold.row(i)[:3]
        rows.append(
            Preference(template.decode_prompt(prompt), template.decode_answer(better), template.decode_answer(worse))
        )
    return rows
