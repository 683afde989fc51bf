"""Tokens of an exported model: chat template, special tokens and ends of answers, as transformers reads them."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pit.config import ImproveConfig
from pit.data.chat import ChatFormat, ChatTemplate, role_format, scored_source
from pit.data.template import Template
from pit.export.errors import ExportError


class Speech(NamedTuple):
    """Facts about the tokens of an exported model, as `pit.model.pretrained.save_pretrained` takes them.

    chat_template: jinja text, which tells the day that the run was told; that of a reward model shows nothing after the
        token at which a score is read.
    special_tokens: texts of special tokens by their names.
    eos_ids: ids that end an answer.
    bos_id: token that opens a text, or None.
    pad_id: token of padding; for a reward model another one than the token at which a score is read.
    """

    chat_template: str
    special_tokens: Mapping[str, str]
    eos_ids: tuple[int, ...]
    bos_id: int | None
    pad_id: int

    @property
    def thinks(self) -> bool:
        """Whether the chat template knows the switch for thinking, which PIT turns off."""
        return "enable_thinking" in self.chat_template


def speech_of(template: Template, request: str, *, reward: bool) -> Speech:
    """Return the facts about the tokens of a run's models.

    Args:
        template: layout of the run.
        request: user's turn that asks for a better answer.
        reward: whether they are for a reward model.

    Raises:
        ExportError: a reward model's tokenizer has no token for padding beside the one that ends an answer.
    """
    format = format_of(template, request)
    ids = {text: token_id for token_id, text in template.tokenizer.added.items()}
    bos = ids.get(format.special_tokens.get("bos_token", ""))
    if not reward:
        return Speech(format.dated_source, format.special_tokens, template.eos_ids, bos, template.pad)
    eos = template.closings.eos
    pad = _padding(format, ids, eos)
    special = {**format.special_tokens, "pad_token": template.tokenizer.added[pad]}
    return Speech(scored_source(format.dated_source, template.tokenizer.added[eos]), special, (eos,), bos, pad)


def format_of(template: Template, request: str) -> ChatFormat:
    """Return the chat format of a layout; role tokens are one too."""
    return template.format if isinstance(template, ChatTemplate) else role_format(template.tokenizer, request)


def _padding(format: ChatFormat, ids: Mapping[str, int], eos: int) -> int:
    """Return the token that pads the inputs of a reward model.

    transformers reads a score at the last token that is not padding, which has to be the answer's end.
    """
    named = [ids.get(format.special_tokens.get(name, "")) for name in ("pad_token", "unk_token", "bos_token")]
    pad = next((token_id for token_id in (*named, *sorted(ids.values())) if token_id not in (None, eos)), None)
    if pad is None:
        raise ExportError(
            f"tokenizer: has no special token beside {list(ids)}, and a reward model needs one for padding that ends "
            "no answer; start a run from a model whose tokenizer has one"
        )
    return pad


def generation_config(speech: Speech, improve: ImproveConfig, capacity: int, *, cache: bool = True) -> str:
    """Return the text of a generation_config.json: the sampling of the run's own inference.

    Args:
        speech: facts about the tokens.
        improve: settings of the inference.
        capacity: most tokens of an answer, its end included.
        cache: whether the model keeps keys and values.
    """
    values: dict[str, Any] = {
        "bos_token_id": speech.bos_id,
        "do_sample": improve.temperature > 0,
        "eos_token_id": list(speech.eos_ids),
        "max_new_tokens": capacity,
        "pad_token_id": speech.pad_id,
    }
    if not cache:
        values["use_cache"] = False
    if improve.temperature > 0:
        # transformers would keep the 50 likeliest tokens where the file says nothing.
        values |= {"temperature": improve.temperature, "top_k": improve.top_k or 0, "top_p": improve.top_p or 1.0}
        values |= {} if improve.min_p is None else {"min_p": improve.min_p}
    return json.dumps({name: value for name, value in values.items() if value is not None}, indent=2) + "\n"
