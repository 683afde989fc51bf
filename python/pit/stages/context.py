"""What every stage of a run shares: its folder, config, tokenizer, store, mesh, and the finished stages before it."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from pit.config import ConfigError, PackingConfig, RunConfig, derived_seed, digest, from_dict, override, to_dict
from pit.data.atomic import write_file
from pit.data.packing import Layout
from pit.data.store import Fold, Store
from pit.data.template import Template
from pit.data.tokenizer import Tokenizer
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.params import Params, build
from pit.model.sharding import make_mesh, shard_params
from pit.train.checkpoint import CheckpointError, Checkpoints
from pit.train.log import CompileClock, peak_memory_bytes


@dataclass(frozen=True)
class StageSpec:
    """A training stage: the config section it reads, the stages before it, and which model it trains.

    needs: of any config; the first one is the stage that an RL stage starts from.
    """

    name: str
    section: str
    needs: tuple[str, ...]
    model: str
    title: str

    @property
    def start(self) -> str:
        """Stage whose weights an RL stage starts from."""
        return self.needs[0]


STAGES: dict[str, StageSpec] = {
    spec.name: spec
    for spec in (
        StageSpec("sft-policy", "sft_policy", (), "policy", "M_P fine-tuned on x -> y_w"),
        StageSpec("sft-improver", "sft_improver", (), "policy", "M_PIT fine-tuned on x, y_l -> y_w"),
        StageSpec("reward-quality", "quality", (), "reward_model", "R_P on pairs"),
        StageSpec("reward-gap", "gap", (), "reward_model", "R_PIT on the four orders of each pair"),
        StageSpec("reward-judge", "judge", (), "reward_model", "a judge on its own fold"),
        StageSpec("rl-policy", "rl_policy", ("sft-policy",), "policy", "M_P^RL against R_P"),
        StageSpec("rl-first", "rl_first", ("sft-improver",), "policy", "RL,0: references from the data"),
        StageSpec(
            "refresh-quality",
            "refresh",
            ("reward-quality", "rl-first", "rl-policy"),
            "reward_model",
            "R_P trained on with labelled samples",
        ),
        StageSpec(
            "refresh-gap",
            "refresh",
            ("reward-gap", "rl-first", "rl-policy"),
            "reward_model",
            "R_PIT trained on with labelled samples",
        ),
        StageSpec(
            "rl-second", "rl_second", ("rl-first", "rl-policy"), "policy", "RL,1: references sampled from M_P^RL"
        ),
        StageSpec(
            "rl-third",
            "rl_third",
            ("rl-second", "rl-policy"),
            "policy",
            "RL,2: references rewritten by RL,1",
        ),
    )
}
"""Algorithm 1 of the paper in order, a judge that no other stage sees, and what goes beyond the paper."""


def stages_of(config: RunConfig) -> tuple[str, ...]:
    """Names of the stages that a run has, in order: all but the optional ones that its config leaves out."""
    left_out = {"data": {"rl-second", "rl-third"}, "policy": {"rl-third"}, "own": set[str]()}[config.references]
    left_out |= set() if config.refresh.prompts else {"refresh-quality", "refresh-gap"}
    return tuple(name for name in STAGES if name not in left_out)


OPTIONS = {
    "rl-second": "references=policy",
    "rl-third": "references=own",
    "refresh-quality": "refresh.prompts=N, N > 0",
    "refresh-gap": "refresh.prompts=N, N > 0",
}
"""What a config must say for a run to have an optional stage."""


def require_stage(name: str, config: RunConfig) -> None:
    """Refuse a stage that the run has not.

    Raises:
        ConfigError: it is optional and the config leaves it out.
    """
    if name not in stages_of(config):
        raise ConfigError(f"stage {name}: is optional and no part of this run; start a run with --set {OPTIONS[name]}")


def improver_of(config: RunConfig) -> str:
    """The last stage of the improver: the one that answers at inference."""
    return {"data": "rl-first", "policy": "rl-second", "own": "rl-third"}[config.references]


INITIAL = {"policy": "sft-policy", "quality": "reward-quality"}
"""Stage whose weights a supervised stage starts from, by `TrainConfig.init`; the fine-tuned policy has none itself."""


def last_reward(kind: Literal["quality", "gap"], config: RunConfig) -> str:
    """The last stage of R_P ("quality") or of R_PIT ("gap")."""
    return f"{'refresh' if config.refresh.prompts else 'reward'}-{kind}"


def reward_of(name: str, config: RunConfig) -> str:
    """Stage of the reward model that an RL stage maximises: R_P for the policy and in the ablation, R_PIT otherwise.

    From RL,1 on it is the last one, of a refreshed model where there is one.
    """
    by_quality = name == "rl-policy" or getattr(config, STAGES[name].section).gap == "difference"
    kind: Literal["quality", "gap"] = "quality" if by_quality else "gap"
    return f"reward-{kind}" if name in ("rl-policy", "rl-first") else last_reward(kind, config)


def needs_of(name: str, config: RunConfig) -> tuple[str, ...]:
    """Stages that must be finished before `name`, the one it starts from included."""
    spec = STAGES[name]
    section = getattr(config, spec.section)
    start = INITIAL.get(getattr(section, "init", "random"))
    more = [] if start in (None, name) else [start]
    if name.startswith("rl-"):
        more.append(reward_of(name, config))
    if getattr(section, "policy_references", False) and "rl-policy" not in spec.needs:
        more.append("rl-policy")
    return (*spec.needs, *more)


class Run:
    """The folder of a run: config.json, tokenizer.json, store/, stages/NAME/{checkpoints, metrics.jsonl, done.json}.

    With `config.checkpoints` those are elsewhere, in NAME/ under that root, and outlive the folder: a run that is
    started again in an empty one prepares its data, finds them and goes on.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.config = folder, config

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """The run in a folder that `pit run` or `pit data prepare` made.

        Raises:
            ConfigError: the folder holds no run.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise ConfigError(f"{folder}: holds no run (no config.json); make one with `pit run RECIPE --out {folder}`")
        return cls(folder, from_dict(RunConfig, json.loads(path.read_text(encoding="utf-8"))))

    def with_settings(self, settings: Sequence[str]) -> "Run":
        """This run under other settings of what changes nothing that is trained (`FREE`); they are not written down.

        Raises:
            ConfigError: a setting is about something else, or cannot be.
        """
        changed = override(self.config, settings)
        other = [name for name, value in to_dict(changed).items() if value != to_dict(self.config)[name]]
        if not set(other) <= set(FREE):
            raise ConfigError(
                f"--set: {', '.join(name for name in other if name not in FREE)} of a run cannot be changed, only "
                f"{', '.join(FREE)}; start another run with the setting"
            )
        return Run(self.folder, changed)

    def save_config(self) -> None:
        """Write the resolved config.

        Raises:
            ConfigError: the folder belongs to a run with another config.
        """
        path = self.folder / "config.json"
        if path.is_file():
            saved = from_dict(RunConfig, json.loads(path.read_text(encoding="utf-8")))
            differing = [k for k, v in to_dict(self.config).items() if v != to_dict(saved)[k] and k not in FREE]
            if differing:
                raise ConfigError(
                    f"{self.folder}: is the folder of a run with other {', '.join(differing)}; choose another --out, "
                    "or repeat the settings it was started with"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(to_dict(self.config), indent=2) + "\n").encode())

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run."""
        return Tokenizer.load(self.folder / "tokenizer.json")

    @cached_property
    def template(self) -> Template:
        """The layout of trees under the run's windows."""
        windows = self.config.windows
        return Template(self.tokenizer, (windows.input, windows.reference, windows.output))

    @cached_property
    def store(self) -> Store:
        """The token store, refused if it was made with another tokenizer."""
        return Store.open(self.folder / "store", tokenizer_hash=self.tokenizer.hash)

    @cached_property
    def mesh(self) -> Mesh:
        """The device mesh."""
        return make_mesh(self.config.mesh)

    def fold(self, name: str) -> Fold:
        """One fold of the store."""
        return self.store.fold(name)

    def layout(self, packing: PackingConfig) -> Layout:
        """Static shape of a packed group."""
        return Layout(
            closings=self.template.closings,
            pad=self.template.pad,
            row_length=packing.row_length,
            rows=packing.rows,
            trees=packing.trees,
        )

    def stage_folder(self, name: str) -> Path:
        """Folder of one stage."""
        return self.folder / "stages" / name

    def command(self, name: str) -> str:
        """What to type to run one stage."""
        return f"pit {name.replace('-', ' ', 1)} --run {self.folder}"

    def checkpoints(self, name: str, *, keep: int) -> Checkpoints:
        """The checkpoints of one stage, in its folder or under the root that the config names."""
        root = self.config.checkpoints
        folder = self.stage_folder(name) / "checkpoints" if root is None else epath.Path(root) / name
        return Checkpoints(folder, keep)

    def stage_hash(self, name: str) -> str:
        """What the result of a stage depends on: config, model, data, seed and the stages before it."""
        spec, config = STAGES[name], self.config
        return digest(
            name,
            getattr(config, spec.section),
            getattr(config, spec.model),
            config.windows,
            config.seed,
            config.mesh.shards,
            self.store.hash,
            [self.stage_hash(need) for need in needs_of(name, config)],
        )

    def done(self, name: str) -> dict[str, Any] | None:
        """Record of a finished stage, None if it is not finished or was made from something else."""
        path = self.stage_folder(name) / "done.json"
        if not path.is_file():
            return None
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record if record["hash"] == self.stage_hash(name) else None

    def model(self, name: str) -> tuple[nnx.GraphDef[Any], Params]:
        """Graph definition and freshly initialised weights of the model that a stage trains."""
        spec = STAGES[name]
        kind: type[Any] = Decoder if spec.model == "policy" else RewardModel
        seed = derived_seed(self.config.seed, name)
        graphdef, params = build(kind, getattr(self.config, spec.model), self.tokenizer.vocab_size, seed)
        return graphdef, shard_params(params, self.mesh)

    def trained(self, name: str) -> tuple[nnx.GraphDef[Any], Params]:
        """Graph definition and weights of a finished stage.

        Raises:
            CheckpointError: the stage has not finished with this config and data.
        """
        if self.done(name) is None:
            raise CheckpointError(
                f"{self.stage_folder(name)}: stage {name} has not finished with this config and data; run "
                f"`{self.command(name)}` first"
            )
        graphdef, like = self.model(name)
        with self.checkpoints(name, keep=1) as checkpoints:
            return graphdef, checkpoints.restore_params(like)


FREE = ("workers", "board", "evaluate")
"""Parts of a config that change nothing of what is trained, so that they may change while a run is on."""


class StageClock:
    """Writes the record of a finished stage: its hash, steps, tokens, seconds, compile time and peak memory."""

    def __init__(self, run: Run, name: str) -> None:
        self._run, self._name = run, name
        self._begin, self._compile = time.perf_counter(), CompileClock()
        self.tokens = 0

    def finish(self, steps: int, **extra: Any) -> None:
        """Mark the stage as finished."""
        record = {
            "hash": self._run.stage_hash(self._name),
            "steps": steps,
            "tokens": self.tokens,
            "seconds": round(time.perf_counter() - self._begin, 3),
            "compile_seconds": round(self._compile.seconds, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "process": os.getpid(),
            **extra,
        }
        write_file(self._run.stage_folder(self._name) / "done.json", (json.dumps(record, indent=2) + "\n").encode())
