"""OpenAI's chat API as data: a request read from JSON, held to its rules, and the objects of responses.

A field that would change the answer and is not supported is refused by name; fields that change nothing are passed
over (https://platform.openai.com/docs/api-reference/chat).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pit.config import ImproveConfig
from pit.data.errors import DataError
from pit.data.readers.columns import messages
from pit.data.readers.report import RowError
from pit.data.readers.streams import parsed
from pit.data.template import Template
from pit.errors import PitError
from pit.rollout.strategy import Strategy, sampling
from pit.serve.question import Question, checked, question

ModelName = Literal["policy", "improved"]

MODELS: tuple[ModelName, ...] = ("policy", "improved")
"""Models of the API: the answers of the policy, and such answers after the passes of the improver."""

MOST_CHOICES = 16
"""Largest `n` of a request."""

MOST_STOPS = 4
"""Largest number of `stop` texts, as OpenAI's servers have it."""

HOTTEST = 2.0
COOLEST = 0.01
"""Largest temperature, and smallest one above 0."""

UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "dry_multiplier": (0,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "grammar": ("",),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "json_schema": (),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "tfs_z": (1,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_a": (0,),
    "top_k": (0, -1),
    "top_logprobs": (0,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields of this and other servers that would change the answer, with the values that ask for nothing, besides null."""


class ApiError(PitError):
    """A request that is not answered, as an error of the API.

    Args:
        message: the reason and the remedy.
        status: HTTP status.
        param: field of the request that is meant, None for none.
        code: short name of the error for programs.
        headers: headers of the response.
    """

    # Five parameters: the parts of an error object, and its status.
    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    def body(self) -> dict[str, Any]:
        """Return the error object of the API."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class ChatRequest:
    """A request that can be answered.

    model: who answers.
    question: the conversation, for `improved` perhaps with the answer that is to be improved.
    strategy: choice of each token.
    seed: seed of the random numbers, None for one that nobody knows before.
    limit: most tokens of an answer, its end included; None for as many as the window holds.
    stop: texts before which an answer ends.
    choices: number of answers.
    stream: whether the answer comes in pieces; include_usage: whether the last piece counts tokens.
    """

    model: ModelName
    question: Question
    strategy: Strategy
    seed: int | None
    limit: int | None
    stop: tuple[str, ...]
    choices: int
    stream: bool
    include_usage: bool


def chat_request(body: bytes, template: Template, config: ImproveConfig) -> ChatRequest:
    """Return the request in a body.

    Args:
        body: JSON text.
        template: layout of conversations; its windows bound them.
        config: sampling where the request names none.

    Raises:
        ApiError: it is not JSON, or breaks a rule.
    """
    fields = parsed(body)
    if isinstance(fields, RowError):
        raise ApiError(f"the body is not a JSON object as it should be: {fields}; send one object")
    _refuse_unsupported(fields)
    model = _model(fields)
    stream = _value(fields, "stream", bool, "true or false") or False
    return ChatRequest(
        model=model,
        question=_question(fields, model, template),
        strategy=_strategy(fields, config),
        seed=_seed(fields),
        limit=_limit(fields),
        stop=_stop(fields),
        choices=_count(fields, "n", MOST_CHOICES) or 1,
        stream=stream,
        include_usage=_include_usage(fields, stream=stream),
    )


def _refuse_unsupported(fields: Mapping[str, object]) -> None:
    for name, neutral in UNSUPPORTED.items():
        value = fields.get(name)
        if value is not None and not any(type(value) is type(each) and value == each for each in _loosened(neutral)):
            raise ApiError(
                f"{name!r} is not supported by this server and would change the answer; leave it out",
                param=name,
                code="unsupported_parameter",
            )


def _loosened(values: tuple[object, ...]) -> tuple[object, ...]:
    """Return values, and whole numbers also as floats."""
    return (*values, *(float(each) for each in values if type(each) is int))


def _model(fields: Mapping[str, object]) -> ModelName:
    name = fields.get("model")
    for model in MODELS:
        if name == model:
            return model
    if isinstance(name, str) and name:
        raise ApiError(
            f"the model {name!r} does not exist; ask for one of {', '.join(MODELS)}",
            status=404,
            param="model",
            code="model_not_found",
        )
    raise ApiError(f"'model' is missing or not text; give one of {', '.join(MODELS)}", param="model")


def _question(fields: Mapping[str, object], model: ModelName, template: Template) -> Question:
    """Return the conversation, which must fit into the windows.

    Raises:
        ApiError: it cannot be read, answered, or held by the windows.
    """
    try:
        turns, answer = messages(fields.get("messages"), "messages"), None
        if turns and turns[-1].role == "assistant":
            if model != "improved":
                raise ApiError(
                    f"the conversation ends with an answer, which the model {model!r} does not continue; end with a "
                    "user's message, or ask for the model 'improved', which improves the answer",
                    param="messages",
                )
            turns, answer = turns[:-1], turns[-1].content
        if not turns or turns[-1].role != "user":
            raise ApiError(
                "the conversation has no user's message at its end, before the answer that is to be improved if there "
                "is one; add one",
                param="messages",
            )
        answer = checked(turns, answer)
        _require_fits("conversation", template.prompt_size(turns), template.windows[0])
        if answer is not None:
            _require_fits("answer", template.answer_size(answer), template.windows[2])
        return question(turns, answer, template)
    except (RowError, DataError) as error:
        raise ApiError(f"the conversation cannot be answered: {error}", param="messages") from error


def _require_fits(name: str, tokens: int, window: int) -> None:
    if tokens > window:
        raise ApiError(
            f"the {name} has {tokens} tokens, but this model's window holds {window}; shorten it",
            param="messages",
            code="context_length_exceeded",
        )


def _strategy(fields: Mapping[str, object], config: ImproveConfig) -> Strategy:
    temperature = _number(
        fields, "temperature", lambda x: x == 0 or COOLEST <= x <= HOTTEST, f"0 (greedy), or {COOLEST} to {HOTTEST:g}"
    )
    top_p = _number(fields, "top_p", lambda x: 0 < x <= 1, "above 0 and at most 1")
    return sampling(
        config.temperature if temperature is None else temperature,
        top_k=config.top_k,
        top_p=config.top_p if top_p is None else None if top_p == 1 else top_p,
        min_p=config.min_p,
    )


def _seed(fields: Mapping[str, object]) -> int | None:
    seed: int | None = _value(fields, "seed", int, "a whole number")
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise ApiError(f"'seed' is {seed}, but must be a whole number of 64 bits", param="seed")
    return seed


def _limit(fields: Mapping[str, object]) -> int | None:
    names = ("max_tokens", "max_completion_tokens")
    old, new = (_count(fields, name) for name in names)
    if old is not None and new is not None and old != new:
        raise ApiError(f"'max_tokens' is {old} and 'max_completion_tokens' {new}; give one of them", param=names[1])
    return old if new is None else new


def _stop(fields: Mapping[str, object]) -> tuple[str, ...]:
    value = fields.get("stop")
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if (
        not isinstance(texts, list)
        or len(texts) > MOST_STOPS
        or not all(isinstance(text, str) and text for text in texts)
    ):
        raise ApiError(f"'stop' must be a text that is not empty, or a list of at most {MOST_STOPS}", param="stop")
    return tuple(texts)


def _include_usage(fields: Mapping[str, object], *, stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise ApiError("'stream_options' is for streams; leave it out, or set 'stream' to true", param="stream_options")
    if not isinstance(options, dict):
        raise ApiError("'stream_options' must be an object", param="stream_options")
    return _value(options, "include_usage", bool, "true or false") or False


def _value(fields: Mapping[str, object], name: str, kind: type, rule: str) -> Any:
    """Return a field of one type, None where it is missing or null."""
    value = fields.get(name)
    if value is not None and type(value) is not kind:
        raise ApiError(f"{name!r} is of type {type(value).__name__}, but must be {rule}", param=name)
    return value


def _count(fields: Mapping[str, object], name: str, most: int | None = None) -> int | None:
    rule = "a whole number of at least 1" if most is None else f"a whole number from 1 to {most}"
    value: int | None = _value(fields, name, int, rule)
    if value is not None and not 1 <= value <= (value if most is None else most):
        raise ApiError(f"{name!r} is {value}, but must be {rule}", param=name)
    return value


def _number(fields: Mapping[str, object], name: str, holds: Callable[[float], bool], rule: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ApiError(f"{name!r} is of type {type(value).__name__}, but must be a number: {rule}", param=name)
    if not holds(value):
        raise ApiError(f"{name!r} is {value}, but must be {rule}", param=name)
    return float(value)
