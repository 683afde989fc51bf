"""Chat formats that other programs can read: PIT's role tokens as one, and any of them cut at the end of an answer."""

import json
import re
from typing import Any

from pit.data.chat.format import ChatFormat
from pit.data.errors import DataError
from pit.data.tokenizer import Tokenizer

# A conversation is x, x and an answer, or either of these with a user's request and a second answer. The library puts a
# space before a text that begins without one, so a text that begins with one gets another.
_SOURCE = """\
{%- set request = REQUEST -%}
{%- set roles = ROLES -%}
{%- set answered = messages[-1].role == "assistant" -%}
{%- set turns = messages[:-1] if answered else messages -%}
{%- set asked = turns | length >= 3 and turns[-1].role == "user" and turns[-1].content == request
    and turns[-2].role == "assistant" -%}
{%- macro text(content) -%}
{{- (" " if SPACED and content.startswith(" ") else "") ~ content -}}
{%- endmacro -%}
{%- for turn in (turns[:-2] if asked else turns) -%}
{{- roles[turn.role] ~ text(turn.content) -}}
{%- endfor -%}
{%- if asked or answered or add_generation_prompt -%}{{- INPUT -}}{%- endif -%}
{%- if asked -%}{{- text(turns[-2].content) ~ REFERENCE -}}{%- endif -%}
{%- if answered -%}{{- text(messages[-1].content) ~ OUTPUT -}}{%- endif -%}
"""


def role_format(tokenizer: Tokenizer, request: str) -> ChatFormat:
    """Return the format of a tokenizer with role tokens: its rendering has the tokens of every path.

    An answer and a user's turn that says `request` become a reference; any other turn is part of the input.

    Args:
        tokenizer: a tokenizer with role tokens.
        request: user's turn that asks for a better answer; it is not shown.

    Raises:
        DataError: the tokenizer has no role tokens.
    """
    if tokenizer.roles is None:
        raise DataError("tokenizer: has no role tokens, so it has a chat format of its own; use that")
    roles = tokenizer.roles
    values: dict[str, Any] = {
        "REQUEST": request,
        "ROLES": {name: getattr(roles, name) for name in ("system", "user", "assistant")},
        "SPACED": tokenizer.adds_space,
        "INPUT": roles.input,
        "REFERENCE": roles.reference,
        "OUTPUT": roles.output,
    }
    source = re.sub("|".join(values), lambda match: json.dumps(values[match[0]], ensure_ascii=False), _SOURCE)
    special = {"eos_token": roles.output, "pad_token": roles.pad}
    return ChatFormat(source, special, (tokenizer.role_ids["output"],))


def scored_source(source: str, eos: str) -> str:
    """Return a jinja template that renders the same, but nothing after the token that ends a last answer.

    A reward model reads its score at that token, and transformers at the last one.

    Args:
        source: a chat template.
        eos: text of the token.
    """
    # Jinja drops one line end at the end of a template and one after a tag, and with `+` no space before a tag.
    begin = "\n" if source.startswith("\n") else ""
    inner = source.removesuffix("\n")
    return (
        f"{{% set conversation %}}{begin}{inner}{{%+ endset %}}"
        f"{{% set eos = {json.dumps(eos, ensure_ascii=False)} %}}"
        '{% if messages[-1].role == "assistant" and eos in conversation %}'
        "{{ conversation.rsplit(eos, 1)[0] ~ eos }}"
        "{% else %}{{ conversation }}{% endif %}\n"
    )
