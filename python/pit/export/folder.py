"""The export of a stage: its weights, merged or as adapters, with everything that another program needs of the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pit.atomic import RUN_PARTS, require_absent_or_empty
from pit.export.card import Card, card_of
from pit.export.errors import ExportError
from pit.export.speech import Speech, format_of, generation_config, speech_of
from pit.model.adapters import merged, stacked
from pit.model.hub import hub_name
from pit.model.peft import save_adapter
from pit.model.saving import FileDtype, save_pretrained, tokenizer_settings, written_shape
from pit.model.token_facts import GENERATION, SETTINGS, TEMPLATE, TOKENIZER
from pit.run.exported import FIELD, ExportFacts
from pit.run.folder import Run
from pit.run.stage import REWARD_MODEL, Stage
from pit.types import SegmentKind

Form = Literal["merged", "adapter"]
"""Form of an export: whole weights for transformers, or adapters for PEFT."""

CARD = "README.md"
MAX_POSITIONS = 4096
"""Longest input that an exported model declares where its base declares none."""


@dataclass(frozen=True)
class _Export:
    """One stage of one run, and what was asked for."""

    run: Run
    stage: Stage
    form: Form
    base: str | None
    folder: Path

    @property
    def reward(self) -> bool:
        return self.stage.trains == REWARD_MODEL

    @property
    def reads_reference(self) -> bool:
        segments = self.stage.topology(self.run.config).segments
        return any(segment.kind == SegmentKind.REFERENCE for segment in segments)

    @property
    def own_code(self) -> bool:
        shape = self.stage.trains.config(self.run.config)
        return bool(written_shape(shape, self.run.vocab_size, reward=self.reward)[0].family.files)

    @property
    def request(self) -> str:
        return self.run.config.template.request


# Six parameters: the model, its place, and the choices of the command.
def export(
    run: Run,
    stage: Stage,
    folder: Path,
    *,
    form: Form = "merged",
    dtype: FileDtype = "float32",
    base: str | None = None,
) -> None:
    """Write the model of a finished stage; the folder appears whole or not at all.

    Args:
        run: the run.
        stage: one of its stages.
        folder: must be missing or empty.
        form: whole weights, or adapters alone.
        dtype: of the weights in the file; adapters are merged in float32 before, and adapters alone stay float32.
        base: name of the pretrained model for the card and for PEFT; None: as the run knows it.

    Raises:
        CheckpointError: the stage has not finished.
        ConfigError: the run does not include the stage.
        PlaceError: the folder is a link, or not empty.
        ExportError: the stage has no adapters, PEFT could not find their base, or a base is named where there is none.
        ModelFileError: no family of transformers can express the model, or a weight is too large for the dtype.
    """
    stage.require(run.config)
    require_absent_or_empty(folder)
    _require_outside(run, folder)
    task = _Export(run, stage, form, base, folder)
    if base is not None and run.config.base.path is None:
        raise ExportError(f"--base {base}: the run started from random weights, not from a model; leave --base out")
    if task.form == "adapter":
        _require_adapter(task, dtype)
    speech = speech_of(run.template, task.request, reward=task.reward)
    record = stage.finished_record(run)
    text = card_of(_card(task, speech, record))
    (_write_adapter if task.form == "adapter" else _write_merged)(task, speech, text, dtype)


def _write_merged(task: _Export, speech: Speech, card: str, dtype: FileDtype) -> None:
    run, stage = task.run, task.stage
    model, adapter = stage.load(run), stage.adapter(run.config)
    files = {CARD: card}
    if not task.reward:
        cache = not task.own_code
        files[GENERATION] = generation_config(speech, run.config.improve, run.template.capacity, cache=cache)
    save_pretrained(
        task.folder,
        stage.trains.config(run.config),
        model.params if adapter is None else merged(model.params, adapter),
        run.vocab_size,
        tokenizer=run.tokenizer.to_json(),
        chat_template=speech.chat_template,
        special_tokens=speech.special_tokens,
        eos_ids=speech.eos_ids,
        bos_id=speech.bos_id,
        pad_id=speech.pad_id,
        dtype=dtype,
        max_positions=_max_positions(task),
        fields={FIELD: _facts(task).to_json()},
        files=files,
    )


def _write_adapter(task: _Export, speech: Speech, card: str, dtype: str) -> None:
    run, stage = task.run, task.stage
    model, adapter = stage.load(run), stage.adapter(run.config)
    assert adapter is not None, "required before"
    tokenizer = run.tokenizer.to_json()
    settings = tokenizer_settings(tokenizer, run.vocab_size, _max_positions(task), speech.special_tokens)
    files = {CARD: card, TOKENIZER: tokenizer, TEMPLATE: speech.chat_template, SETTINGS: settings}
    if not task.reward:
        files[GENERATION] = generation_config(speech, run.config.improve, run.template.capacity)
    shape, params = stage.trains.config(run.config), model.trained
    # What the run found merged into its base comes along, so that the files fit the model under it.
    for source in () if run.pretrained is None else run.pretrained.adapted:
        under = source.adapter()
        adapter, params = stacked(under.params, under.config, params, adapter)
    save_adapter(task.folder, shape, adapter, params, base=_base_for_peft(task), files=files)


def _require_adapter(task: _Export, dtype: str) -> None:
    """Raise unless the stage has adapters on a base that PEFT can load.

    Raises:
        ExportError: it has not.
    """
    name, config = task.stage.name, task.run.config
    if task.stage.adapter(config) is None:
        raise ExportError(f"--adapter: stage {name} trained all its weights and has no adapters; leave --adapter out")
    if dtype != "float32":
        raise ExportError(f"--dtype {dtype}: adapters are written in float32, as they were trained; leave it out")
    path = config.base.path
    if path is None:
        raise ExportError(
            f"--adapter: the base of stage {name} has random weights that no file holds; export it with --merged"
        )
    if task.base is None and _bottom(path, task.run).endswith(".gguf"):
        raise ExportError(
            f"--adapter: base.path = {path}: PEFT loads no GGUF file; name the model that it was made from with --base "
            "OWNER/NAME, or export with --merged"
        )


def _require_outside(run: Run, folder: Path) -> None:
    """Raise if the folder lies among the files of the run that PIT reads back.

    Raises:
        ExportError: it does.
    """
    place, home = folder.resolve(), run.folder.resolve()
    if home in place.parents and place.relative_to(home).parts[0] in RUN_PARTS:
        raise ExportError(f"{folder}: lies among the files of the run {run.folder}; name a folder elsewhere")


def _base_name(task: _Export) -> str | None:
    """Return the name of the base on a hub, None where it has none or is not known."""
    path = task.run.config.base.path
    return task.base or (None if path is None else hub_name(_bottom(path, task.run)))


def _base_for_peft(task: _Export) -> str:
    path = task.run.config.base.path
    assert path is not None, "required before"
    return _base_name(task) or str(Path(_bottom(path, task.run)).resolve())


def _bottom(path: str, run: Run) -> str:
    """Return the path, or the name on a hub, of the model under all adapters; `path` is that of the run's base."""
    pretrained = None if path.endswith(".gguf") else run.pretrained
    return str(pretrained.unadapted) if pretrained is not None and pretrained.adapted else path


def _max_positions(task: _Export) -> int:
    """Return the longest input of the model: as its base declares, but at least the run's longest path."""
    shape, pretrained = task.stage.trains.config(task.run.config), task.run.pretrained
    if shape.learned_positions:
        return shape.learned_positions
    declared = None if pretrained is None else pretrained.source.config.values.get("max_position_embeddings")
    return max(declared if isinstance(declared, int) else MAX_POSITIONS, task.run.template.path(referenced=True))


def _facts(task: _Export) -> ExportFacts:
    """Return the facts that PIT reads back from an exported model."""
    template = task.run.template
    return ExportFacts(
        stage=task.stage.name,
        reads_reference=task.reads_reference,
        roles=template.tokenizer.roles is not None,
        request=task.request,
        windows=template.windows,
        eos_ids=template.eos_ids,
        date=format_of(template, task.request).date,
    )


def _card(task: _Export, speech: Speech, record: Mapping[str, Any]) -> Card:
    path, pretrained = task.run.config.base.path, task.run.pretrained
    return Card(
        run=task.run,
        stage=task.stage,
        name=task.folder.resolve().name,
        reads_reference=task.reads_reference,
        adapter=task.form == "adapter",
        base=_base_name(task),
        base_to_load=_base_for_peft(task) if task.form == "adapter" else None,
        base_file=None if path is None else Path(_bottom(path, task.run)).name,
        base_adapters=() if pretrained is None else tuple(source.folder.name for source in pretrained.adapted),
        thinks=speech.thinks,
        pad_id=speech.pad_id,
        own_code=task.own_code,
        record=record,
    )
