"""Rewards that are Python functions of the user: found by name, stamped by their source, called once per step.

The texts of all samples go in as lists, prompt by prompt, so that the samples of a prompt stand side by side; a list of
numbers comes out. A function with anything else to say ends the stage with one error that shows the prompt.
"""

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32

from pit import processes
from pit.atomic import write_file
from pit.data.template import Template
from pit.errors import PitError
from pit.rl.records import Answers, Rows
from pit.terminal import json_line
from pit.train.loop import StepError
from pit.types import Message

Function = Callable[[list[str], list[str] | None, list[str], list[dict[str, Any]]], Any]
"""`function(prompts, references, answers, rows) -> scores`, or a coroutine of them; docs/guides/your-own-reward.md."""

_REMEDY = (
    "mend its cause, and the same command resumes; if its file has to change, delete the stage's folder to train the "
    "stage again"
)

_SHOWN = 300
"""Characters of a text that an error shows."""


class FunctionError(PitError):
    """A reward function that cannot be found or imported."""


class RewardError(StepError):
    """A reward function that raised, or returned something else than a finite number per answer."""


def source_of(function: str) -> Path:
    """Return the file that holds a function, MODULE:NAME or FILE.py:NAME; nothing of it is run.

    Modules of the working directory come first.

    Raises:
        FunctionError: there is no such file.
    """
    module = function.rpartition(":")[0]
    if module.endswith(".py"):
        path = Path(module)
        if not path.is_file():
            raise FunctionError(f"{_named(function)}: there is no file {path}; correct its path")
        return path
    spec = _spec_of(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        problem = "there is no module" if spec is None else "there is no Python file of module"
        raise FunctionError(
            f"{_named(function)}: {problem} {module!r} in {Path.cwd()} or among the installed packages; run the "
            "command in its folder, or give its file: FILE.py:NAME"
        )
    return Path(spec.origin)


def _spec_of(module: str) -> ModuleSpec | None:
    importlib.invalidate_caches()
    spec, search, parts = None, [os.getcwd(), *sys.path], module.split(".")
    for number in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:number]), search)
        if spec is None:
            break
        search = list(spec.submodule_search_locations or [])
    if spec is None:
        try:
            # Editable installs have finders of their own.
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
    return spec


def digest_of(function: str, kept: Path) -> str:
    """Return a digest of the file that holds a function, or of the copy that a stage kept where the file is not here.

    Raises:
        FunctionError: there is neither.
    """
    try:
        path = source_of(function)
    except FunctionError:
        if not kept.is_file():
            raise
        path = kept
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def keep_source(function: str, kept: Path, stage: str, trained: bool) -> None:
    """Copy the file that holds a function to where its stage keeps it.

    Args:
        function: its name.
        kept: place of the copy.
        stage: name of the stage.
        trained: whether the stage has a checkpoint.

    Raises:
        FunctionError: the stage was trained with another text of the file.
    """
    source = source_of(function).read_bytes()
    if not kept.is_file() or (kept.read_bytes() != source and not trained):
        write_file(kept, source)
    elif kept.read_bytes() != source:
        raise FunctionError(
            f"{_named(function)}: {source_of(function)} has changed since {stage} was trained with it ({kept} is its "
            f"text of then); put that text back, or delete {kept.parent} to train the stage again"
        )


def load(function: str) -> Function:
    """Import a function.

    Raises:
        FunctionError: there is none, or its module cannot be imported.
    """
    path, (module, _, name) = source_of(function), function.rpartition(":")
    try:
        loaded = _from_file(path) if module.endswith(".py") else _by_name(module)
    except (Exception, SystemExit) as error:  # Whatever the user's module raises.
        raise FunctionError(f"{_named(function)}: cannot be imported, {_cause(error, path)}; correct it") from error
    if Path(loaded.__file__ or "").resolve() != path.resolve():
        raise FunctionError(
            f"{_named(function)}: PIT or a package already has a module {module!r} ({loaded.__file__}); rename "
            f"{path.name}, or give its file: {path}:{name}"
        )
    made = getattr(loaded, name, None)
    if not callable(made):
        problem = "is not a function" if hasattr(loaded, name) else "does not exist"
        raise FunctionError(f"{_named(function)}: {name} {problem} in {path}; name a function of that file")
    result: Function = made
    return result


def _by_name(module: str) -> ModuleType:
    folder = os.getcwd()
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    return importlib.import_module(module)


def _from_file(path: Path) -> ModuleType:
    folder, name = str(path.parent.absolute()), f"pit_reward_{path.stem}"
    if folder not in sys.path:
        # So that it can import its neighbours.
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a .py file has a loader"
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@dataclass(frozen=True)
class FunctionReward:
    """A reward of the user: the texts of prompts, references and answers, and the rows of the data.

    name: the function, as the config names it.
    function: the function itself.
    template: layout of texts as tokens.
    """

    name: str
    function: Function
    template: Template

    def __call__(self, answers: Answers) -> Float32[np.ndarray, "G N"]:
        """Return the scores; see `Reward`. Of several processes the first calls the function, once for all.

        Raises:
            RewardError: the function raised, or returned something else than a finite number per answer.
        """

        def scored() -> bytes:
            # An error goes to all processes too, so that all save the state before the step.
            try:
                return b"+" + self._scores(answers).tobytes()
            except RewardError as error:
                return b"-" + str(error).encode(errors="backslashreplace")

        made = processes.from_first(scored, "reward")
        if made[:1] == b"-":
            raise RewardError(made[1:].decode())
        return np.frombuffer(made, np.float32, offset=1).reshape(len(answers.inputs), len(answers.outputs)).copy()

    def _scores(self, answers: Answers) -> Float32[np.ndarray, " GN"]:
        """Return the scores that the function gives here and now."""
        template, n, g = self.template, len(answers.outputs), len(answers.inputs)
        messages = [template.decode_prompt(x) for x in answers.inputs]
        prompts = [text for text in map(text_of, messages) for _ in range(n)]
        texts = [template.decode_answer(column[tree]) for tree in range(g) for column in answers.outputs]
        facts = [dict(fact) for fact in facts_of(messages, answers.rows) for _ in range(n)]
        references = None
        if answers.references is not None:
            references = [text for text in map(template.decode_answer, answers.references) for _ in range(n)]
        values = self._called(prompts, references, texts, facts)
        return self._checked(values, prompts, texts)

    def _called(
        self, prompts: list[str], references: list[str] | None, answers: list[str], rows: list[dict[str, Any]]
    ) -> Any:
        lists = (list(prompts), references, list(answers), rows)
        try:
            values = self.function(*lists)
            return asyncio.run(_awaited(values)) if inspect.isawaitable(values) else values
        except (Exception, SystemExit) as error:  # Whatever the user's function raises.
            cause = _cause(error, _file_of(self.function))
            raise RewardError(
                f"{_named(self.name)}: {cause}, given {len(answers)} answers, the first to the prompt "
                f"{_shown(prompts[0])}; {_REMEDY}"
            ) from error

    def _checked(self, values: Any, prompts: list[str], answers: list[str]) -> Float32[np.ndarray, " GN"]:
        rule = f"must return a list of {len(answers)} numbers, one per answer"
        remedy = f"the first prompt is {_shown(prompts[0])}; {_REMEDY}"
        try:
            array = np.asarray(values)
        except ValueError:
            array = np.asarray(None)
        if array.dtype.kind not in "biuf" or array.ndim != 1:
            raise RewardError(f"{_named(self.name)}: {rule}, and returned {_kind_of(values)}; {remedy}")
        if len(array) != len(answers):
            raise RewardError(f"{_named(self.name)}: {rule}, and returned {len(array)}; {remedy}")
        with np.errstate(over="ignore"):
            scores = array.astype(np.float32)
        wrong = np.flatnonzero(~np.isfinite(scores))
        if len(wrong):
            first = int(wrong[0])
            raise RewardError(
                f"{_named(self.name)}: {rule}, finite in float32, and returned {array[first]} for the answer "
                f"{_shown(answers[first])} to the prompt {_shown(prompts[first])}; {_REMEDY}"
            )
        return scores


def _file_of(function: Function) -> Path:
    """Return the file of a function; an empty path for other callables, of which Python knows none."""
    try:
        return Path(inspect.getsourcefile(inspect.unwrap(function)) or "")
    except TypeError:
        return Path()


async def _awaited(values: Any) -> Any:
    return await values


def text_of(messages: Sequence[Message]) -> str:
    r"""Return a conversation as one text: the content of a single message, otherwise role and content of each.

    >>> text_of([Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?")])
    'user: Hi\n\nassistant: Hello\n\nuser: Why?'
    """
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def facts_of(messages: Sequence[Sequence[Message]], rows: Rows | None) -> list[dict[str, Any]]:
    """Return what a function learns of each row besides texts: messages, fold, place in it, `data.columns`."""
    facts: list[dict[str, Any]] = [{"messages": [message._asdict() for message in turns]} for turns in messages]
    if rows is not None:
        ids = rows.ids.tolist()
        for fact, row, columns in zip(facts, ids, rows.fold.facts(ids), strict=True):
            fact |= {"fold": rows.fold.name, "row": row, **columns}
    return facts


def _named(function: str) -> str:
    return f"reward.function = {function!r}"


def _shown(text: str) -> str:
    """Return the beginning of a text on one line, control characters as escapes."""
    return json_line(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _kind_of(values: Any) -> str:
    if isinstance(values, list | tuple):
        odd = next((value for value in values if not isinstance(value, int | float | np.generic)), None)
        return f"a {type(values).__name__} with {type(odd).__name__} in it"
    return f"{type(values).__name__}" + (f" of shape {values.shape}" if isinstance(values, np.ndarray) else "")


def _cause(error: BaseException, path: Path) -> str:
    """Return type, text and the last place in the user's own file of an error, on one line."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == path.name]
    place = f" at {path.name}:{frames[-1].lineno}" if frames else ""
    return f"it raised {type(error).__name__}{place} ({_shown(' '.join(str(error).split()))})"
