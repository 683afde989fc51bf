"""`pit improve`: prompts in, improved answers out, one JSON object a line, batch by batch as they arrive."""

import dataclasses
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import IO, Any

from pit.data.errors import DataError
from pit.data.template import Template
from pit.improve import Models, Trajectory, improve
from pit.run.folder import Run
from pit.seeds import Seed
from pit.types import Message


@dataclasses.dataclass(frozen=True)
class _Request:
    """One line of input: its number, its content tokens, its id (of the prompt alone), and y0 if it is given."""

    line: int
    prompt: list[int]
    request: int
    answer: list[int] | None


def improve_lines(run: Run, source: IO[str], sink: IO[str], changes: Mapping[str, Any], *, seed: int) -> None:
    """Improve the prompts of `source` and write the trajectories to `sink`.

    Raises:
        DataError: a line is not a JSON object or lacks a prompt, or only some lines have an `answer`.
    """
    config = dataclasses.replace(run.config.improve, **changes)
    models = Models.load(run, run.config.reward_gap.packing, accept_by=config.accept_by)
    template = run.template
    requests = _requests(source, template)
    for batch in iter(lambda: list(islice(requests, config.batch)), []):
        given = [r.answer for r in batch if r.answer is not None]
        if given and len(given) != len(batch):
            missing = next(r.line for r in batch if r.answer is None)
            raise DataError(f"line {missing}: has no `answer`, but other lines do; give it for all of them or for none")
        trajectories = improve(
            models,
            [r.prompt for r in batch],
            [r.request for r in batch],
            config,
            seed=Seed((seed, "improve")),
            answers=given or None,
        )
        for trajectory in trajectories:
            sink.write(json.dumps(_record(template, trajectory), ensure_ascii=False) + "\n")
        sink.flush()


def _requests(source: Iterable[str], template: Template) -> Iterator[_Request]:
    for number, line in enumerate(source, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"line {number}: is not JSON ({error.msg}); write one object a line") from error
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str | list):
            raise DataError(f'line {number}: needs "prompt", a text or a list of messages')
        answer = row.get("answer")
        if answer is not None and not isinstance(answer, str):
            raise DataError(f'line {number}: "answer" must be a text')
        messages = _messages(row["prompt"], number)
        identity = json.dumps(messages).encode()
        try:
            encoded = None if answer is None else template.encode_answer(answer)
            prompt = template.encode_prompt(messages)
        except DataError as error:
            raise DataError(f"line {number}: {error}") from error
        yield _Request(number, prompt, zlib.crc32(identity), encoded)


def _messages(prompt: str | list[Any], number: int) -> list[Message]:
    if isinstance(prompt, str):
        return [Message("user", prompt)]
    try:
        return [Message(m["role"], str(m["content"])) for m in prompt]
    except (TypeError, KeyError) as error:
        raise DataError(f'line {number}: every message of "prompt" needs "role" and "content"') from error


def _record(template: Template, trajectory: Trajectory) -> dict[str, Any]:
    return {
        "prompt": [m._asdict() for m in template.decode_prompt(trajectory.prompt)],
        "answers": [template.decode_answer(trajectory.answer(k)) for k in range(len(trajectory.steps) + 1)],
        "steps": [
            {"candidate": template.decode_answer(s.candidate), "gap": round(s.gap, 6), "accepted": s.accepted}
            for s in trajectory.steps
        ],
    }
