"""A chat format: the jinja template of a pretrained model and its special tokens, rendered as transformers renders it.

Templates come with the model's files. They run in jinja2's immutable sandbox.
"""

import dataclasses
import datetime
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pit.atomic import write_file
from pit.data.errors import DataError
from pit.types import Message

FAULTS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""Exceptions of a template: those of jinja, and those of the expressions in it."""

_TELLS_DAY = re.compile(r"""strftime_now\(\s*(["'])((?:(?!\1)[^\\\n])*)\1\s*\)""")
"""Call of a template that tells the day, and its pattern."""


class _Generation(Extension):
    """The tag `generation`, which marks what an assistant wrote; its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the nodes between the tag and its end."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    """Return JSON text without the HTML escapes of jinja's own filter."""
    return json.dumps(value, ensure_ascii=False, **options)


@dataclass(frozen=True)
class ChatFormat:
    """The chat template of a pretrained model, with all that it reads.

    source: text of the jinja template.
    special_tokens: texts of special tokens by the names that the template uses, such as "bos_token" and "eos_token".
    eos_ids: ids that end an answer, as the model's generation_config.json lists them; may be empty.
    date: day that the template is told, YYYY-MM-DD, so that a run renders the same on every day.
    """

    source: str
    special_tokens: Mapping[str, str]
    eos_ids: tuple[int, ...] = ()
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())

    def render(self, messages: Sequence[Message], *, opening: bool) -> str:
        """Return the text of a conversation.

        Args:
            messages: its turns.
            opening: whether the opening of an answer of the assistant follows.

        Raises:
            DataError: the template refuses the conversation, or has a fault.
        """
        turns = [message._asdict() for message in messages]
        try:
            # Templates that know the switch open an answer without a place for thinking; others ignore it.
            return self._compiled.render(
                messages=turns,
                tools=None,
                documents=None,
                add_generation_prompt=opening,
                enable_thinking=False,
                **self.special_tokens,
            )
        except FAULTS as error:
            roles = ", ".join(message.role for message in messages)
            raise DataError(
                f"the chat template refuses a conversation of {roles}: {error}; change the prompt's messages, or give "
                "another chat template"
            ) from error

    @property
    def dated_source(self) -> str:
        """The source with the day of the format written out, so that other programs render the same on every day.

        >>> ChatFormat("It is {{ strftime_now('%d %b %Y') }}.", {}, date="2024-07-26").dated_source
        "It is {{ '26 Jul 2024' }}."
        """
        tell = self._strftime()
        return _TELLS_DAY.sub(lambda call: f"{call[1]}{tell(call[2])}{call[1]}", self.source)

    @property
    def hash(self) -> str:
        """Hex digest of the format."""
        return hashlib.sha256(self._json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the format as JSON, whole or not at all."""
        write_file(path, (self._json() + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> "ChatFormat":
        """Read a format.

        Raises:
            DataError: the file does not hold one.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            special, ids = values["special_tokens"], values["eos_ids"]
            texts = [values["source"], values["date"], *special.values()]
            if not all(isinstance(text, str) for text in texts) or not all(type(each) is int for each in ids):
                raise ValueError("a text or an id is of another type")
            datetime.date.fromisoformat(values["date"])
            return cls(**{**values, "eos_ids": tuple(ids)})
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}: is not a chat format ({error}); prepare the run again, which writes the file"
            ) from error

    def _json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, ensure_ascii=False)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise_exception, strftime_now=self._strftime())
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template is not valid jinja ({error}); give the text of one") from error

    def _strftime(self) -> Callable[[str], str]:
        day = datetime.datetime.fromisoformat(self.date)
        return lambda pattern: day.strftime(pattern)
