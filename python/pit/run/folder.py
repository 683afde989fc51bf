"""The folder of a run: config, tokenizer, token store, mesh, and a folder per stage."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from etils import epath
from jax.sharding import Mesh

from pit.atomic import write_file
from pit.config import FREE, ConfigError, PackingConfig, RolloutConfig, RunConfig, from_dict, override, to_dict
from pit.data.chat import ChatFormat, ChatTemplate
from pit.data.errors import DataError
from pit.data.packing import Layout
from pit.data.store import Fold, Store
from pit.data.template import RoleTemplate, Template
from pit.data.tokenizer import Tokenizer
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.model.pretrained import Pretrained
from pit.model.sharding import make_mesh, shards_of
from pit.records import read_object
from pit.rollout.protocol import SamplerProtocol
from pit.rollout.sample import Sampler
from pit.run.base import digest_of_base, load_base, pretrained_of
from pit.seeds import Seed
from pit.train.checkpoint import Checkpoints
from pit.types import FOLDS, Shards

FORMAT_FILE = "template.json"
"""File of the chat format, in the folder of a run that starts from a pretrained model."""


class Run:
    """The folder of a run: config.json, tokenizer.json, store/, stages/NAME/{checkpoints, metrics.jsonl, done.json}.

    A run that starts from a pretrained model also has its chat format, template.json.

    With `config.checkpoints` the checkpoints are in NAME/ under that root and outlive the folder: a run that is started
    again in an empty folder prepares its data, finds its checkpoints and resumes from them.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.config = folder, config

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open a folder that `pit run` or `pit data prepare` made.

        Raises:
            ConfigError: the folder holds no run, or its config breaks a rule.
            DamagedFileError: its config is damaged.
        """
        path = folder / "config.json"
        if not path.is_file():
            fault = "holds no run (no config.json)" if folder.exists() else "no such folder"
            command = shlex.join(["pit", "run", "demo", "--out", str(folder)])
            raise ConfigError(f"{folder}: {fault}; name the folder of a run, or make one, for example with `{command}`")
        return cls(folder, _read(path))

    def with_settings(self, settings: Sequence[str]) -> "Run":
        """Return this run under other settings that change nothing of what is trained (`FREE`); they are not saved.

        Raises:
            ConfigError: a setting concerns something else, or is invalid.
        """
        changed = override(self.config, settings)
        refused = [name for name in _differing(changed, self.config) if name not in FREE]
        if refused:
            raise ConfigError(
                f"--set: {', '.join(refused)} of a run cannot be changed, only {', '.join(FREE)}; start another run "
                f"with the setting: {self._other(settings)}"
            )
        return Run(self.folder, changed)

    def _other(self, settings: Sequence[str]) -> str:
        """Return the command that starts a run of this config with other settings in a new folder."""
        config, out = self.folder / "config.json", self.folder.with_name(f"{self.folder.name}-2")
        words = ["pit", "run", "--config", str(config), "--out", str(out)]
        return shlex.join([*words, *(word for setting in settings for word in ("--set", setting))])

    @property
    def held(self) -> RunConfig | None:
        """The config in the folder; None for a new one."""
        path = self.folder / "config.json"
        return _read(path) if path.is_file() else None

    @property
    def differing(self) -> list[str]:
        """Parts of the config that differ from the folder's and may not change at any time."""
        held = self.held
        return [] if held is None else [name for name in _differing(self.config, held) if name not in FREE]

    def require_config(self) -> None:
        """Raise unless the folder is new, or belongs to a run with this config.

        Raises:
            ConfigError: it belongs to a run with another config.
        """
        differing = self.differing
        if differing:
            raise ConfigError(
                f"{self.folder}: is the folder of a run with other {', '.join(differing)}; choose another --out, or "
                "repeat the settings it was started with"
            )

    def save_config(self) -> None:
        """Write the resolved config.

        Raises:
            ConfigError: the folder belongs to a run with another config.
        """
        self.require_config()
        self.replace_config()

    def replace_config(self) -> None:
        """Write the resolved config in the place of the folder's, whatever that says."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(self.folder / "config.json", (json.dumps(to_dict(self.config), indent=2) + "\n").encode())

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run.

        Raises:
            DataError: the file is gone or damaged.
        """
        try:
            return Tokenizer.load(self.folder / "tokenizer.json", pretrained=self.format is not None)
        except DataError as error:
            raise DataError(f"{error}; the data make it again: `{prepare_command(self.folder)}`") from error

    @cached_property
    def template(self) -> Template:
        """The layout of text as trees under the run's windows."""
        return self.template_of(self.tokenizer, self.format)

    def template_of(self, tokenizer: Tokenizer, format: ChatFormat | None) -> Template:
        """Return the layout of text under the run's windows in a chat format, or in role tokens without one.

        Raises:
            DataError: the chat format cannot be used with the tokenizer.
        """
        windows = self.config.windows
        sizes = (windows.input, windows.reference, windows.output)
        if format is None:
            return RoleTemplate(tokenizer, sizes)
        return ChatTemplate(tokenizer, format, sizes, self.config.template.request)

    def adopt(self, tokenizer: Tokenizer, format: ChatFormat) -> None:
        """Write the tokenizer and the chat format of a pretrained model, before the data are prepared."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(self.folder / "tokenizer.json")
        self.dated(format).save(self.folder / FORMAT_FILE)

    def dated(self, format: ChatFormat) -> ChatFormat:
        """Return a format with the day of the one that the folder holds, so that it is the same on every day."""
        held = self.format
        return format if held is None else dataclasses.replace(format, date=held.date)

    @cached_property
    def store(self) -> Store:
        """The token store; a store of another tokenizer is refused."""
        return Store.open(self.folder / "store", tokenizer_hash=self.template.hash)

    @cached_property
    def mesh(self) -> Mesh:
        """The device mesh."""
        return make_mesh(self.config.mesh)

    @cached_property
    def shards(self) -> Shards:
        """Shards of the rows of a batch, and which of them this process has."""
        return shards_of(self.mesh)

    @cached_property
    def base(self) -> Model[Decoder]:
        """The frozen decoder under all adapters of the run, loaded once."""
        return load_base(self.config, self.vocab_size, self.seed, self.mesh)

    @property
    def base_digest(self) -> str:
        """Digest of the base, which is not loaded for it."""
        return digest_of_base(self.config, self.vocab_size, self.seed)

    @property
    def pretrained(self) -> Pretrained | None:
        """The pretrained model that the run's models start from, None for random weights."""
        return pretrained_of(self.config)

    @cached_property
    def vocab_size(self) -> int:
        """Rows of the embedding of every model: those of the pretrained one, or the tokens of the tokenizer."""
        return self.tokenizer.vocab_size if self.pretrained is None else self.pretrained.vocab_size

    @property
    def format(self) -> ChatFormat | None:
        """The chat format that the folder holds, None without one."""
        path = self.folder / FORMAT_FILE
        try:
            return ChatFormat.load(path) if path.is_file() else None
        except DataError as error:
            raise DataError(f"{error}: delete it, then `{prepare_command(self.folder)}`") from error

    @property
    def prepared(self) -> bool:
        """Whether the token store is there."""
        return (self.folder / "store" / "manifest.json").is_file()

    @property
    def seed(self) -> Seed:
        """The root of all random numbers of the run."""
        return Seed((self.config.seed,))

    def fold(self, name: str) -> Fold:
        """Return one fold of the store.

        Raises:
            DataError: it has no rows, so that no stage can read it.
        """
        fold = self.store.fold(name)
        if len(fold) == 0:
            rows = ", ".join(f"{other} {len(self.store.fold(other)):,}" for other in FOLDS)
            raise DataError(
                f"{self.folder}: fold {name!r} has no rows (rows by fold: {rows}); give more preferences, or start a "
                f"run with a larger share of it: --set data.folds.{name}=..."
            )
        return fold

    def layout(self, packing: PackingConfig) -> Layout:
        """Return the static shape of a packed group."""
        return Layout(
            closings=self.template.closings,
            pad=self.template.pad,
            row_length=packing.row_length,
            rows=packing.rows,
            trees=packing.trees,
        )

    def sampler(self, rollout: RolloutConfig) -> SamplerProtocol:
        """Return the sampler of answers in the run's output window, as the interface that all jobs ask."""
        template = self.template
        return Sampler(template.closings, template.capacity, rollout, template.eos_ids[1:], template.served)

    def stage_folder(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.folder / "stages" / name

    def checkpoints(self, name: str, *, keep: int, base: str = "") -> Checkpoints:
        """Open the checkpoints of a stage, in its folder or under the root that the config names.

        Args:
            name: name of the stage.
            keep: number of newest ones that stay.
            base: digest of the stage's frozen weights, empty where it trains all.
        """
        root = self.config.checkpoints
        folder = self.stage_folder(name) / "checkpoints" if root is None else epath.Path(root) / name
        return Checkpoints(folder, keep, base=base)


def prepare_command(folder: Path) -> str:
    """Return the command that prepares the data of the run in a folder."""
    return shlex.join(["pit", "data", "prepare", "--config", str(folder / "config.json"), "--out", str(folder)])


def _read(path: Path) -> RunConfig:
    remedy = "correct it, or delete it and repeat the command that started the run, which writes it again"
    values = read_object(path, remedy)
    try:
        return from_dict(RunConfig, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; {remedy}") from error


def _differing(one: RunConfig, other: RunConfig) -> list[str]:
    values = to_dict(other)
    return [name for name, value in to_dict(one).items() if value != values[name]]
