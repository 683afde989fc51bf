"""A small world in which every joint can be watched: real stages, sessions and data; models that only bear a name.

All weights of a model are one number, which says what trained it. Nothing is compiled: samples are drawn from a hash of
their random numbers, scores come from `World.score`, and updates change nothing but the step. It is a
little over 400 lines because every patch of the real code has its place in one class.
"""

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from pit.config import ImproverSftConfig, PackingConfig, RunConfig, override
from pit.evaluate import gold
from pit.losses.total import Total
from pit.model.decoder import Decoder
from pit.model.model import Model, on_base
from pit.recipes.demo import tiny
from pit.rl import readings
from pit.rollout import sample as sampling
from pit.rollout import score as scoring
from pit.rollout.sample import Samples
from pit.run import folder as folders
from pit.run import session as sessions
from pit.run import stage as stages
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.stages import supervised
from pit.stages.graph import STAGES
from pit.stages.prepare import prepare
from pit.train.checkpoint import Checkpoints, Restored
from pit.train.log import PROGRESS_VARIABLE
from pit.train.update import REFUSED, TrainState
from pit.types import Closings

NUMBER = {stage.name: float(i + 1) for i, stage in enumerate(STAGES)}
NAME = {number: name for name, number in NUMBER.items()}
FRESH = 99.0
"""Weights that no stage has trained."""

BASE = 98.0
"""Weights of the base of all adapters."""

STEPS = 3
"""Steps of every stage here."""

ROWS = 240

OFFLINE = ("dpo", "srpo")


def named(name: str) -> Stage:
    """Return a stage by its name."""
    return next(stage for stage in STAGES if stage.name == name)


@functools.cache
def config(*settings: str) -> RunConfig:
    """Return the config of a world: the smallest recipe, a few steps per stage, with more settings."""
    supervised_sections = ("sft_policy", "sft_improver", "reward_quality", "reward_gap", "reward_judge", *OFFLINE)
    rl_sections = ("rl_policy", "rl_improver_0", "rl_improver_1", "rl_improver_2")
    steps = [f"{name}.steps={STEPS}" for name in (*supervised_sections, *rl_sections, "refresh")]
    saved = [f"{name}.checkpoint_every=1" for name in (*supervised_sections, *rl_sections, "refresh")]
    return override(_base(), [*steps, *saved, *settings])


@functools.cache
def _base() -> RunConfig:
    """Rows that hold every tree whole, so that each can be read off a row."""
    base = tiny()
    rows = PackingConfig(row_length=256, rows=4, window=16, trees=16)
    packed = {
        name: dataclasses.replace(getattr(base, name), packing=rows)
        for name in ("sft_policy", "sft_improver", "reward_quality", "reward_gap", "reward_judge", "refresh", *OFFLINE)
    }
    assert isinstance(packed["sft_improver"], ImproverSftConfig)
    return dataclasses.replace(base, data=dataclasses.replace(base.data, synthetic_rows=ROWS), **packed)


def temporary_folder() -> Path:
    """Return a new folder that is removed at the end."""
    path = tempfile.mkdtemp(prefix="pit-wiring-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


@functools.cache
def _prepared() -> Run:
    run = Run(temporary_folder(), _base())
    with mock.patch.dict("os.environ", {PROGRESS_VARIABLE: "json"}):
        prepare(run)
    return run


def run_of(*settings: str) -> Run:
    """Return a run in a new folder, with the data of all others."""
    run, data = Run(temporary_folder(), config(*settings)), _prepared()
    run.__dict__.update(tokenizer=data.tokenizer, template=data.template, store=data.store, mesh=data.mesh)
    return run


def trained_by(params: Mapping[str, Any]) -> str:
    """Return the name of the stage that trained some weights, or their adapters; "fresh" for none."""
    weight = next((name for name in params if ".adapters." in name), next(iter(params)))
    number = float(np.asarray(params[weight]).ravel()[0])
    return NAME.get(number, "fresh")


class Ask(NamedTuple):
    """One call of the sampler: what was asked of which model, of which weights, under which random numbers."""

    where: str
    model: str
    seed: int
    ids: list[int]
    n: int
    prefixes: list[list[int]]
    temperature: float | list[float]
    tokens: np.ndarray
    weights: frozenset[str]


class Scoring(NamedTuple):
    """One leaf that a reward model scored: its model, and the segments of its path."""

    where: str
    model: str
    path: tuple[tuple[int, ...], ...]


class Group(NamedTuple):
    """Microbatches that went into an update or a held-out measure, with the rows of the fold in their slots."""

    where: str
    kind: str
    arrays: list[dict[str, np.ndarray]]
    examples: list[list[int]]


class Memory(Checkpoints):
    """Checkpoints of a stage in memory; as weights they give back the stage's number."""

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name, self.saved = world, name, world.saved.setdefault(name, {})

    def save(self, state: TrainState, loader: Any, controllers: Any, meta: Any) -> None:
        """Keep a step."""
        # As on disk: JSON, and bytes.
        copied = json.loads(json.dumps(dict(controllers)))
        self.saved.setdefault(int(state.step), Restored(state, dict(loader), copied, dict(meta)))

    def restore(self, like: TrainState, stage_hash: str) -> Restored | None:
        """Return the newest step."""
        if not self.saved:
            return None
        restored = self.saved[max(self.saved)]
        assert restored.meta["hash"] == stage_hash
        return restored

    @property
    def latest(self) -> int | None:
        """Return the newest step."""
        return max(self.saved, default=None)

    def restore_params(self, like: Any, step: int, stage_hash: str) -> Any:
        """Return weights that name their stage."""
        del stage_hash
        assert step == max(self.saved, default=0)
        return filled(like, NUMBER[self.name])

    def wait(self) -> None:
        """Do nothing."""

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


def filled(like: Mapping[str, Any], number: float) -> dict[str, Any]:
    """Return weights of one number."""
    return {
        name: jax.device_put(np.full(value.shape, number, value.dtype), getattr(value, "sharding", None))
        for name, value in like.items()
    }


def role_tokens(closings: Closings) -> tuple[int, ...]:
    """Return the role tokens that close an input, a reference and an output."""
    return (*closings.input, *closings.reference, closings.eos)


def path_of(batch: Any, row: int, end: int, closings: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the segments from the root to a leaf, each without its closing token."""
    tokens, index = [], end
    while True:
        tokens.append(int(batch.token[row, index]))
        before = int(batch.previous[row, index])
        if before == index:
            break
        index = before
    segments: list[list[int]] = [[]]
    for token in reversed(tokens):
        if token in closings:
            segments.append([])
        else:
            segments[-1].append(token)
    return tuple(map(tuple, segments[:-1]))


class World:
    """Everything that was asked for while it was watched.

    Attributes:
        asks: calls of the sampler.
        scorings: leaves that reward models scored.
        kls: names of the policy and of the anchor of each reading.
        groups: microbatches of updates and of held-out measures.
        starts: name of the weights that each stage started from.
        updates: trained and frozen weights that the update of each stage began with.
        measured: all weights of each held-out measure, by stage.
        folds: folds that the run was asked for, by stage.
        numbers: seeds of initial weights, orders and draws.
        refused: steps of each stage whose update is refused.
        score: score of a path by a model, a function of its name and the segments.
    """

    def __init__(self) -> None:
        self.where = ""
        self.asks: list[Ask] = []
        self.scorings: list[Scoring] = []
        self.kls: list[tuple[str, str, str]] = []
        self.groups: list[Group] = []
        self.starts: dict[str, str] = {}
        self.updates: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.measured: dict[str, dict[str, Any]] = {}
        self.folds: dict[str, list[str]] = {}
        self.numbers: list[tuple[str, str, int]] = []
        self.saved: dict[str, dict[int, Restored]] = {}
        self.refused: set[int] = set()
        self.score = lambda model, path: float(sum(path[-1]) % 17) / 8 + (len(path) == 3) * len(path[1]) / 16
        self.closings = role_tokens(_prepared().template.closings)

    # Samples.

    def sample(self, model, prefixes, request_ids, *, n, capacity, strategy, eos_ids, seed, config=None, watch=None):
        """Answer a call of the sampler by tokens that are a hash of model, prefix and random numbers."""
        rows = sampling.Tokens.of(prefixes).rows()
        ids, name = [int(i) for i in request_ids], trained_by(model.params)
        token = np.zeros((len(rows), n, capacity), np.int32)
        length = np.zeros((len(rows), n), np.int32)
        finished = np.zeros((len(rows), n), bool)
        for g, (prefix, request) in enumerate(zip(rows, ids, strict=True)):
            for k in range(n):
                dice = _dice(name, prefix, request, seed, k)
                count = int(dice.integers(1, 7))
                token[g, k, :count] = dice.integers(200, 440, count)
                finished[g, k] = dice.random() < 0.7
                if finished[g, k]:
                    token[g, k, count - 1] = eos_ids[0]
                length[g, k] = count
        for step in range(1, capacity + 1 if watch else 0):
            watch(token, np.minimum(length, step))
        logp = np.where(np.arange(capacity) < length[:, :, None], np.float32(-1), np.float32(0))
        each = strategy if isinstance(strategy, list) else [strategy]
        temperature = [getattr(one, "temperature", 0.0) for one in each]
        temperature = temperature if isinstance(strategy, list) else temperature[0]
        self.asks.append(Ask(self.where, name, seed, ids, n, rows, temperature, token, frozenset(model.params)))
        return Samples(token, length, finished, logp, logp, 1.0, model.version)

    # Scores.

    def scores(self, scorer, batch, contents):
        """Score the leaves of a batch by hand."""
        del contents
        batch = batch.local
        name, result = trained_by(scorer.model.params), np.zeros(batch.leaf.shape[:2], np.float32)
        for slot, leaf in np.argwhere(batch.leaf[:, :, 0] >= 0):
            row, end = batch.leaf[slot, leaf]
            path = path_of(batch, int(row), int(end), self.closings)
            self.scorings.append(Scoring(self.where, name, path))
            result[slot, leaf] = self.score(name, path)
        return result

    # The rest of training.

    def read(self, reader, params, trees, n):
        """Give the policy's tokens 1 nat, and the anchor's a quarter more."""
        self.kls.append((self.where, trained_by(params), trained_by(reader._anchor.params)))
        capacity = _prepared().config.windows.output - 1
        logp, anchored = [], []
        for arrays in trees.arrays:
            there = np.arange(capacity) < np.asarray(arrays["length"])[:, :, None]
            logp.append(jnp.asarray(np.where(there, np.float32(-1), np.float32(0))))
            anchored.append({"anchor_logp": jnp.asarray(np.where(there, np.float32(-1.25), np.float32(0)))})
        whole = trees.unpacked(logp, n)
        of_anchor = trees.unpacked([extra["anchor_logp"] for extra in anchored], n)
        return readings.Readings(whole, of_anchor, np.zeros_like(whole), anchored)

    def anchored(self, anchor, batch):
        """Give every output 1 nat under the anchor."""
        self.kls.append((self.where, self.starts.get(self.where, ""), trained_by(anchor.model.params)))
        return {**batch, stages.ANCHORED: jnp.full(batch["leaf"].shape[:2], jnp.float32(-1))}

    def group(self, kind, arrays, examples):
        """Keep microbatches."""
        kept = [{name: np.asarray(value) for name, value in part.items()} for part in arrays]
        self.groups.append(Group(self.where, kind, kept, [np.asarray(ids).tolist() for ids in examples]))

    def update(self):
        """Return a class in the place of `Update`."""
        world = self

        class Update(sessions.Update):
            def __init__(self, loss, optimizer, frozen=None):
                self.loss, self.frozen = loss, frozen or {}

            def start(self, params):
                world.starts[world.where] = trained_by(params)
                world.updates[world.where] = (params, self.frozen)
                return TrainState(jnp.int32(0), params, ())

            def __call__(self, state, batches):
                step = int(state.step) + 1
                refused = jnp.float32(step in world.refused)
                one = jnp.float32(1)
                totals = {"loss": Total(one, one), REFUSED: Total(refused, one)}
                return state._replace(step=jnp.int32(step)), totals

            def sums(self, params, batch):
                return None

        return Update

    def guard(self):
        """Return a class in the place of `Guard`, which keeps the microbatches and saves no causes."""
        world = self

        class Guard(sessions.Guard):
            def __call__(self, state, batches, examples):
                world.group("train", batches, examples)
                return super().__call__(state, batches, examples)

            def _save_cause(self, last):
                return self._folder

        return Guard

    def evaluation(self):
        """Return a class in the place of `Evaluation`."""
        world = self

        class Evaluation(supervised.Evaluation):
            def __init__(self, loss, frozen=None):
                self.frozen = frozen or {}

            def __call__(self, params, batches):
                world.measured[world.where] = {**self.frozen, **params}
                world.group("held out", list(batches), [])
                return {"loss": 1.0}

        return Evaluation

    @contextlib.contextmanager
    def watched(self, where: str, *, reads: bool = False) -> Iterator["World"]:
        """Watch all that happens in a block, under a name; with `reads`, policies and anchors are really read."""
        before, self.where = self.where, where
        fold = Run.fold

        def folds(run: Run, name: str) -> Any:
            self.folds.setdefault(self.where, []).append(name)
            return fold(run, name)

        def built(cls: Any, kind: Any, shape: Any, vocab_size: int, seed: int) -> Any:
            self.numbers.append((self.where, "weights", seed))
            return _fresh(kind, shape, vocab_size, _prepared().mesh)

        patches: list[Any] = [
            mock.patch.dict("os.environ", {PROGRESS_VARIABLE: "json"}),
            mock.patch.object(sampling, "sample", self.sample),
            mock.patch.object(scoring.ModelScorer, "_scores", lambda scorer, *rest: self.scores(scorer, *rest)),
            contextlib.nullcontext()
            if reads
            else mock.patch.object(readings.PolicyAndAnchor, "read", lambda reader, *rest: self.read(reader, *rest)),
            mock.patch.object(supervised.Anchor, "__call__", lambda anchor, batch: self.anchored(anchor, batch)),
            mock.patch.object(sessions, "Update", self.update()),
            mock.patch.object(sessions, "Guard", self.guard()),
            mock.patch.object(supervised, "Evaluation", self.evaluation()),
            mock.patch.object(Run, "checkpoints", lambda run, name, *, keep, base: Memory(self, name)),
            mock.patch.object(Run, "fold", folds),
            mock.patch.object(
                Stage,
                "record",
                lambda stage, run: {"hash": "", "steps": max(self.saved.get(stage.name, ()), default=0)},
            ),
            mock.patch.object(Model, "build", classmethod(built)),
            mock.patch.object(Model, "abstract", staticmethod(_shapes)),
            mock.patch.object(stages, "adapted", _adapted),
            mock.patch.object(folders, "load_base", _base_of),
        ]
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            try:
                yield self
            finally:
                self.where = before

    def work(self, run: Run, name: str) -> None:
        """Do one stage, to its end or from its newest checkpoint in memory."""
        with self.watched(name):
            named(name).work(run, gold.services())

    def of(self, name: str, kind: str = "train") -> list[Group]:
        """Return the microbatches of a stage."""
        return [group for group in self.groups if group.where == name and group.kind == kind]

    def asked(self, name: str) -> list[Ask]:
        """Return the calls of the sampler by a stage."""
        return [ask for ask in self.asks if ask.where == name]


def _dice(*facts: Any) -> np.random.Generator:
    content = json.dumps(facts).encode()
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big"))


_SHAPES = Model.abstract


@functools.cache
def _shapes(kind: Any, shape: Any, vocab_size: int, mesh: Any, adapter: Any = None) -> Any:
    return _SHAPES(kind, shape, vocab_size, mesh, adapter)


def _base_of(shape: RunConfig, vocab_size: int, seed: Any, mesh: Any) -> Model[Any]:
    graphdef, shapes = _shapes(Decoder, shape.policy, vocab_size, mesh)
    return Model(graphdef, filled(shapes, BASE), frozenset())


def _adapted(kind: Any, shape: Any, base: Model[Any], adapter: Any, seed: int) -> Model[Any]:
    graphdef, shapes = _shapes(kind, shape, base.params["embedding"].shape[0], _prepared().mesh, adapter)
    return Model(graphdef, on_base(base, filled(shapes, FRESH)), frozenset(shapes))


@functools.cache
def _fresh(kind: Any, shape: Any, vocab_size: int, mesh: Any) -> Model[Any]:
    graphdef, shapes = _shapes(kind, shape, vocab_size, mesh)
    return Model(graphdef, filled(shapes, FRESH))


_memory: dict[Any, Any] = {}


def remembered(key: Any, make: Callable[[], Any]) -> Any:
    """Return what was made before under that key; it is read by several tests, and changed by none."""
    if key not in _memory:
        _memory[key] = make()
    return _memory[key]


def worked(name: str, *settings: str) -> tuple[World, Run]:
    """Return a world in which one stage of a run was done."""

    def make() -> tuple[World, Run]:
        world, run = World(), run_of(*settings)
        world.work(run, name)
        return world, run

    result: tuple[World, Run] = remembered((name, settings), make)
    return result


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """Make everything again in this block, and forget it afterwards: the code is another one here."""
    kept = dict(_memory)
    _memory.clear()
    try:
        yield
    finally:
        _memory.clear()
        _memory.update(kept)
