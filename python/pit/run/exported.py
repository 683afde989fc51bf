"""Facts of a run that an exported model keeps in its config.json, so that PIT lays out text for it as the run did."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pit.config import ConfigError
from pit.data.chat import ChatFormat, ChatTemplate
from pit.data.template import RoleTemplate, Template
from pit.data.tokenizer import Tokenizer
from pit.model.config_json import ConfigJson, read_json
from pit.model.token_facts import read_token_facts

FIELD = "pit"
"""Field of config.json; transformers keeps and does not use it."""


@dataclass(frozen=True)
class ExportFacts:
    """Facts of a run.

    stage: name of the stage that trained the model.
    reads_reference: whether the model reads a reference: an improver or a gap model.
    roles: whether the tokenizer is one with role tokens.
    request: user's turn that asks for a better answer.
    windows: most tokens of an input, a reference and an output.
    eos_ids: ids that end an answer; the first is the format's own.
    date: day that the chat template is told.
    """

    stage: str
    reads_reference: bool
    roles: bool
    request: str
    windows: tuple[int, int, int]
    eos_ids: tuple[int, ...]
    date: str

    def to_json(self) -> dict[str, Any]:
        """Return the value of the field."""
        return {**dataclasses.asdict(self), "windows": list(self.windows), "eos_ids": list(self.eos_ids)}

    @classmethod
    def of(cls, config_json: Mapping[str, Any], where: Path) -> "ExportFacts | None":
        """Return the facts in the fields of a config.json, None where PIT did not write it.

        Raises:
            ConfigError: the field holds something else.
        """
        values = config_json.get(FIELD)
        if values is None:
            return None
        kinds = {"stage": str, "reads_reference": bool, "roles": bool, "request": str, "date": str}
        kinds |= {"windows": list, "eos_ids": list}
        if (
            not isinstance(values, dict)
            or values.keys() != kinds.keys()
            or not all(isinstance(values[name], kind) for name, kind in kinds.items())
            or not all(type(number) is int for number in (*values["windows"], *values["eos_ids"]))
            or len(values["windows"]) != 3
        ):
            raise ConfigError(f"{where}: {FIELD} = {values!r}: is not what `pit export` writes; export the model again")
        return cls(**{**values, "windows": tuple(values["windows"]), "eos_ids": tuple(values["eos_ids"])})


def exported_template(folder: Path, facts: ExportFacts) -> Template:
    """Return the layout of text of an exported model: that of its run.

    Args:
        folder: the exported folder.
        facts: facts of its run.

    Raises:
        DataError: the tokenizer or the chat template cannot be used.
        ModelFileError: a file is damaged.
    """
    tokenizer = Tokenizer.load(folder / "tokenizer.json", pretrained=not facts.roles)
    if facts.roles:
        return RoleTemplate(tokenizer, facts.windows)
    config = ConfigJson(folder / "config.json", read_json(folder / "config.json"))
    tokens = read_token_facts(folder, config, config.integer("vocab_size"))
    format = ChatFormat(tokens.chat_template or "", dict(tokens.special_tokens), facts.eos_ids, facts.date)
    return ChatTemplate(tokenizer, format, facts.windows, facts.request)
