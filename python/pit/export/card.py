"""The model card of an export: front matter for a hub, and how the model is used without PIT.

`card.md.j2` lays out the page; what it says of a run is gathered here.
"""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from pit.config import digest, to_dict
from pit.evaluate.schema import FILE_NAME, LENGTH_BASELINE, Results, read_results
from pit.run.folder import Run
from pit.run.stage import REWARD_MODEL, Stage
from pit.stages import refresh, sft
from pit.stages.graph import improver_of
from pit.types import FOLDS

PAPER = "2310.00898"
TAGS = ("pit", "self-improvement", f"arxiv:{PAPER}")

_KINDS: Mapping[tuple[bool, bool], tuple[str, str]] = {
    (False, False): ("policy", "It answers prompts."),
    (False, True): ("improver", "It reads a prompt and an answer, and writes a better answer: its second turn."),
    (True, False): ("reward model", "It scores an answer to a prompt; larger is better."),
    (True, True): (
        "gap model",
        "It reads a prompt, a reference and an answer, and scores how much better the answer is than the reference.",
    ),
}
"""Name and description of a model, by whether it is a reward model and whether it reads a reference."""


@dataclass(frozen=True)
class Card:
    """Facts of a card.

    run, stage: origin of the model.
    name: name of the folder.
    reads_reference: whether the model reads a reference.
    adapter: whether the folder holds adapters.
    base: name of the pretrained model on a hub, None where it has none.
    base_to_load: name or path from which PEFT loads the base of adapters.
    base_file: name of the pretrained model's folder or file, None for random weights.
    base_adapters: names of the folders of adapters that the run found merged into that model.
    thinks: whether the chat template knows the switch for thinking.
    pad_id: token of padding.
    own_code: whether the folder holds code of its own, because transformers has no such model.
    record: record of the finished stage.
    """

    run: Run
    stage: Stage
    name: str
    reads_reference: bool
    adapter: bool
    base: str | None
    base_to_load: str | None
    base_file: str | None
    base_adapters: tuple[str, ...]
    thinks: bool
    pad_id: int
    own_code: bool
    record: Mapping[str, Any]

    @property
    def reward(self) -> bool:
        """Whether the model is a reward model."""
        return self.stage.trains == REWARD_MODEL


def front_matter(card: Card) -> dict[str, Any]:
    """Return the fields by which a hub finds the model; the language is not known."""
    fields: dict[str, Any] = {"library_name": "peft" if card.adapter else "transformers"}
    if card.base is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", card.base):
        fields |= {"base_model": card.base, "base_model_relation": "adapter" if card.adapter else "finetune"}
    fields["pipeline_tag"] = "text-classification" if card.reward else "text-generation"
    kind = _KINDS[card.reward, card.reads_reference][0].replace(" ", "-")
    return fields | {"tags": [*TAGS, kind, *(["reward-model"] if card.reward and kind != "reward-model" else [])]}


def card_of(card: Card) -> str:
    """Return the text of a README.md."""
    run, config = card.run, card.run.config
    kind, purpose = _KINDS[card.reward, card.reads_reference]
    improve, windows = config.improve, run.template.windows
    by_gap = improve.accept_by == "gap_model"
    return (
        _environment()
        .get_template("card.md.j2")
        .render(
            card=card,
            front=yaml.safe_dump(front_matter(card), sort_keys=False, allow_unicode=True),
            kind=kind,
            purpose=purpose,
            paper=PAPER,
            request=config.template.request,
            improve=improve,
            windows=windows,
            accepting=(refresh.last_gap(config) if by_gap else sft.IMPROVER).name,
            improver=improver_of(config).name,
            store=run.store.hash,
            rows={name: len(run.store.fold(name)) for name in FOLDS},
            settings=yaml.safe_dump(to_dict(card.stage.settings(config)), sort_keys=False),
            results=_results(run),
            LENGTH=LENGTH_BASELINE,
        )
    )


def _results(run: Run) -> Results | None:
    """Return the measurements of a run; None where it has none, or those of another config."""
    if not (run.folder / FILE_NAME).is_file():
        return None
    results = read_results(run.folder)
    return results if results.config_hash == digest(run.config) else None


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    environment.filters["thousands"] = "{:,}".format
    environment.filters["python"] = lambda text: json.dumps(text, ensure_ascii=False)
    return environment
