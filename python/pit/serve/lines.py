"""`pit improve`: prompts in, improved answers out, one JSON object per line, answered as the lines arrive.

A line is held to the rules of the data that the models were trained on: the readers' own checks. One that breaks them
is named by its number, and the others are answered.
"""

import dataclasses
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, Protocol, TypeAlias, runtime_checkable

from pit.config import ConfigError, ImproveConfig
from pit.data.arrivals import ByteStream, arriving
from pit.data.errors import DataError
from pit.data.readers.columns import require_no_pictures, with_system
from pit.data.readers.report import RowError
from pit.data.readers.streams import parsed
from pit.data.readers.trl import request_of
from pit.data.template import Template
from pit.data.tokens import Tokens
from pit.errors import PitError
from pit.improve import Models, Trajectory, config_of, improve
from pit.run.folder import Run
from pit.seeds import Seed
from pit.serve.question import Question, question
from pit.serve.record import record_of
from pit.stages import rl
from pit.terminal import json_line, say
from pit.types import Message

OUTPUT = ("prompt", "answers", "steps", "made", "cut")
"""Fields of a line of output; every other field of the input is passed on."""

TOLD_CUTS = 5
"""Lines with a cut prompt, or answer, that are named on stderr; further ones are only marked in the output."""


ASKED_AT_A_TIME = 8
"""Prompts for which another server is asked at a time."""

Ask: TypeAlias = Callable[[tuple[Message, ...]], str]
"""A function that answers a conversation; a `PitError` says why it cannot."""


@runtime_checkable
class TextSink(Protocol):
    """A stream that takes text, such as a file opened with "w" or stdout."""

    def write(self, text: str, /) -> object:
        """Take a text."""

    def flush(self) -> None:
        """Pass on what was taken."""


@dataclasses.dataclass(frozen=True)
class _Request:
    """One line of input: its number, its question, and its other fields."""

    line: int
    question: Question
    others: Mapping[str, object]


# Nine parameters: where lines come from and go to, and how they are answered.
def improve_lines(
    run: Run,
    source: ByteStream,
    sink: TextSink,
    changes: Mapping[str, Any],
    *,
    seed: int,
    strict: bool = False,
    budget: int | None = None,
    ask: Ask | None = None,
    tell: Callable[[str], None] = lambda text: say(text, error=True),
) -> None:
    """Improve the prompts of `source` and write the trajectories to `sink`.

    Args:
        run: a finished run.
        source: JSON lines; a batch holds the lines that are there, at most `improve.batch`.
        sink: receives a line for every line that can be answered.
        changes: fields of the run's config section `improve` to change.
        seed: root of the random numbers; equal prompts of one input get answers of their own.
        strict: stop at the first line that cannot be answered.
        budget: most tokens per prompt, whose split `pit search` has chosen; None for the one of the config.
        ask: answers prompts without an answer in the place of the run's policy.
        tell: receives a text about every line that cannot be answered, and about cuts.

    Raises:
        ConfigError: there is no split of the budget, or another server would have to make further draws.
        DataError: a line could not be answered; the others were, unless `strict`.
    """
    config = config_of(run, changes, budget)
    policy = rl.POLICY if ask is None else None
    if policy is None and (config.draws > 1 or config.restart is not None):
        raise ConfigError(
            f"draws = {config.draws}, restart = {config.restart}: only the run's own policy makes further draws; leave "
            "--policy out, or give --draws 1 and neither --restart nor --budget"
        )
    models = Models.load(run, run.config.reward_gap.packing, policy, config=config)
    server = _Server(run.template, models, config, seed, sink, tell)
    numbers = count(1)
    lines, refused = 0, 0
    for batch in arriving(source, config.batch):
        numbered = [(line, number) for line, number in zip(batch, numbers, strict=False) if line and not line.isspace()]
        entries = _entries(numbered, run.template, strict=strict)
        if ask is not None:
            entries = _asked(entries, ask, run.template, strict=strict)
        errors = [entry for entry in entries if isinstance(entry, DataError)]
        for error in errors if not strict else ():
            tell(str(error))
        server.answer([entry for entry in entries if isinstance(entry, _Request)])
        if errors and strict:
            raise DataError(f"{errors[0]}; correct or remove the line, or leave --strict out to answer the others")
        lines, refused = lines + len(numbered), refused + len(errors)
    if refused:
        raise DataError(
            f"{refused} of {lines} lines could not be answered, each is named above; correct or remove them, or stop "
            "at the first with --strict"
        )


def _entries(
    numbered: Sequence[tuple[bytes, int]], template: Template, *, strict: bool
) -> list["_Request | DataError"]:
    """Return the request on each line, or the error that names it; with `strict` an error is the last."""
    entries: list[_Request | DataError] = []
    for line, number in numbered:
        try:
            entries.append(_request(line, number, template))
        except (RowError, DataError) as fault:
            entries.append(DataError(f"line {number}: {fault}"))
            if strict:
                break
    return entries


def _asked(
    entries: Sequence["_Request | DataError"], ask: Ask, template: Template, *, strict: bool
) -> list["_Request | DataError"]:
    """Return the entries with the answers of another policy, several of which are asked for at a time.

    An answer is held to the checks of a given one; the error of one names its line.
    """

    def one(entry: "_Request | DataError") -> "_Request | DataError":
        if isinstance(entry, DataError) or entry.question.answer is not None:
            return entry
        try:
            asked = question(entry.question.prompt, ask(entry.question.prompt), template)
        except (RowError, PitError) as fault:
            return DataError(f"line {entry.line}: {fault}")
        return dataclasses.replace(entry, question=asked)

    answered: list[_Request | DataError] = []
    with ThreadPoolExecutor(ASKED_AT_A_TIME) as pool:
        for entry in pool.map(one, entries):
            answered.append(entry)
            if strict and isinstance(entry, DataError):
                pool.shutdown(cancel_futures=True)
                break
    return answered


class _Server:
    """Answers batches of requests. It counts prompts that come again, and the cuts that it told of."""

    # Six parameters: what answers, how, under which random numbers, and who hears of it.
    def __init__(
        self,
        template: Template,
        models: Models,
        config: ImproveConfig,
        seed: int,
        sink: TextSink,
        tell: Callable[[str], None],
    ) -> None:
        self._template, self._models, self._config = template, models, config
        self._seed, self._sink, self._tell = Seed((seed, "improve")), sink, tell
        self._prompts: Counter[int] = Counter()
        self._cuts: Counter[str] = Counter()

    def answer(self, requests: Sequence[_Request]) -> None:
        """Write a line for each request, in order."""
        if not requests:
            return
        cuts = [self._cut(request) for request in requests]
        trajectories = self._improved(requests)
        for request, cut, trajectory in zip(requests, cuts, trajectories, strict=True):
            self._sink.write(json_line(self._record(request, cut, trajectory)) + "\n")
        self._sink.flush()

    def _improved(self, requests: Sequence[_Request]) -> Iterator[Trajectory]:
        prompts = [request.question.tokens.prompt for request in requests]
        ids = [self._id(request) for request in requests]
        lacking = [i for i, request in enumerate(requests) if request.question.answer is None]
        answers = None
        if len(lacking) < len(requests):
            answers = [request.question.tokens.better for request in requests]
            if lacking:
                xs, own = Tokens.of([prompts[i] for i in lacking]), [ids[i] for i in lacking]
                first = self._models.respond(xs, own, self._config, self._seed)
                for i, tokens in zip(lacking, first.rows(), strict=True):
                    answers[i] = tokens
        return improve(self._models, prompts, ids, self._config, seed=self._seed, answers=answers)

    def _id(self, request: _Request) -> int:
        """Return the id of a request: of its prompt, and of how often the prompt came before."""
        identity = zlib.crc32(json.dumps(request.question.prompt).encode())
        before = self._prompts[identity]
        self._prompts[identity] += 1
        return zlib.crc32(str(before).encode(), identity) if before else identity

    def _cut(self, request: _Request) -> list[str]:
        """Return the names of what did not fit into its window, and tell of it."""
        windows, cut_at, parts = self._template.windows, request.question.tokens.truncated, []
        for name, cut, window, end in (
            ("prompt", cut_at[0], windows[0], "beginning"),
            ("answer", cut_at[1], windows[2], "end"),
        ):
            if cut:
                parts.append(name)
                self._cuts[name] += 1
                if self._cuts[name] <= TOLD_CUTS:
                    self._tell(
                        f"line {request.line}: the {name} is longer than its window of {window} tokens, and its {end} "
                        "was cut"
                    )
                if self._cuts[name] == TOLD_CUTS:
                    self._tell(f'further lines of which the {name} is cut are marked in the output: "cut": ["{name}"]')
        return parts

    def _record(self, request: _Request, cut: list[str], trajectory: Trajectory) -> dict[str, Any]:
        return {
            **request.others,
            "prompt": [message._asdict() for message in request.question.prompt],
            **record_of(self._template, trajectory.first, trajectory.steps, trajectory.made),
            **({"cut": cut} if cut else {}),
        }


def _request(line: bytes, number: int, template: Template) -> _Request:
    """Return the request on a line.

    Raises:
        RowError: it is not an object with a prompt and, if it is given, an answer, as the readers take them.
        DataError: a field has the name of one of the output, or the template refuses the conversation.
    """
    row = parsed(line)
    if isinstance(row, RowError):
        raise row
    require_no_pictures(row)
    prompt, answer = request_of(row)
    asked = question(with_system(row, prompt), answer, template)
    for name in OUTPUT[1:]:
        if name in row:
            raise DataError(f"{name!r} is a field of the output; give it another name")
    others = {name: value for name, value in row.items() if name not in ("prompt", "answer")}
    return _Request(number, asked, others)
