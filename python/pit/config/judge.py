"""Section of the LLM judge: a model behind an API in OpenAI's format that compares answers, in evaluation alone."""

from dataclasses import dataclass
from typing import Annotated

from pit.config.rules import COUNT, POSITIVE, Range, Section


@dataclass(frozen=True)
class JudgeConfig(Section):
    """An LLM judge of improved answers over the policy's own; docs/guides/judge.md. Its key is in PIT_JUDGE_KEY.

    url: base URL of the API, such as http://127.0.0.1:8000/v1.
    model: name of the model there.
    prompts: most prompts that are compared, the first ones; each costs two calls per comparison.
    max_tokens: most tokens of a reply; a model that thinks aloud needs more.
    attempts: replies that are asked for until one can be read, and attempts per reply where the server fails.
    timeout_s: seconds until an attempt is given up.
    parallel: calls at a time.
    """

    url: str = ""
    model: str = ""
    prompts: Annotated[int, Range(low=2.0)] = 200
    max_tokens: Annotated[int, COUNT] = 64
    attempts: Annotated[int, COUNT] = 3
    timeout_s: Annotated[float, POSITIVE] = 60.0
    parallel: Annotated[int, COUNT] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.url.startswith(("http://", "https://")),
            "url",
            "must be the base URL of an API in OpenAI's format",
            "for example {path}=http://127.0.0.1:8000/v1",
        )
        self._require(bool(self.model), "model", "must name the judging model", "set {path}, or --judge-model NAME")
