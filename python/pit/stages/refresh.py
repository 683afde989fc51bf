"""Reward models trained on with labelled samples of the models, between RL,0 and RL,1 (beyond the paper, optional).

The rewards of RL,1 and of inference judge answers of a kind that no preference of the data shows. Where someone can
label such answers, M_P^RL and RL,0's improver answer prompts of the rl fold, and R_P and R_PIT are trained further on a
mix of data and these pairs.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pit import processes
from pit.atomic import write_file
from pit.config import ConfigError, RefreshConfig, RunConfig, digest
from pit.data import _core
from pit.data.errors import DataError
from pit.data.local import pack_local
from pit.data.packing import Layout
from pit.data.readers import read_preferences
from pit.data.store import Fold
from pit.data.template import gap, quality
from pit.data.tokens import Sequences, Tokens
from pit.data.usable import flaw
from pit.records import DamagedFileError, read_lines
from pit.rl.records import Labeller
from pit.run.copies import made_by_first
from pit.run.folder import Run
from pit.run.session import Session
from pit.run.stage import REWARD_MODEL, Job, Role, Services, Stage
from pit.seeds import Seed
from pit.stages import reward, rl
from pit.stages.supervised import Batches, supervised_stage
from pit.train.log import make_reporter
from pit.types import LocalBatch, Shards, Topology

BLOCK = 128
"""Prompts sampled at once."""


class Pair(NamedTuple):
    """A labelled pair, as token contents."""

    prompt: list[int]
    better: list[int]
    worse: list[int]


def make_pairs(run: Run, labeller: Labeller) -> int | None:
    """Sample and label the pairs of a run; return their number, or None where they exist already.

    M_P^RL writes two answers to each prompt, and RL,0's improver rewrites the first: two pairs, less ties and equals.

    Raises:
        ConfigError: the run does not refresh its reward models.
        DataError: no pair is left.
    """
    PAIRS.require(run.config)
    if has_pairs(run):
        return None
    config, fold, seed = run.config.refresh, run.fold("rl"), run.seed.of(PAIRS.name)
    sampler, temperature = run.sampler(config.rollout), config.temperature
    policy, improver = rl.POLICY.load(run), rl.IMPROVER_0.load(run)
    reporter, pairs = make_reporter(PAIRS.name), list[Pair]()
    count = min(config.prompts, len(fold))
    for first in range(0, count, BLOCK):
        ids = range(first, min(first + BLOCK, count))
        inputs = fold.columns(ids)[0]
        one, two = (
            sampler.answers(policy, ids, inputs, strategy=temperature, seed=seed.of(purpose).number)
            for purpose in ("first", "second")
        )
        rewritten = sampler.answers(improver, ids, inputs, one, strategy=temperature, seed=seed.of("rewritten").number)
        # All processes sample; the first one labels and writes, because a labeller need not say the same twice.
        for other in (two, rewritten) if processes.first() else ():
            pairs += labelled(inputs, one, other, labeller)
        reporter.update(first + len(ids), count, f"{len(pairs):,} pairs")
    reporter.close()
    made_by_first(run, lambda: _write(run, pairs), PAIRS.name)
    return len(pairs)


def take_pairs(run: Run, path: Path) -> int | None:
    """Take the pairs of a file of labelled answers; return their number, or None where they were taken already.

    Raises:
        DataError: the file cannot be read, or no row of it can be used.
    """
    if has_pairs(run):
        return None
    rows, report = read_preferences(path)
    encoded = run.template.encode_rows(list(rows))
    pairs = [Pair(row.prompt, row.better, row.worse) for row in encoded if row is not None and flaw(row) is None]
    if not pairs:
        raise DataError(
            f"refresh.path = {str(path)!r}: none of its {report.rows:,} rows can be used; give preferences between "
            "different answers (docs/data.md lists the formats)"
        )
    made_by_first(run, lambda: _write(run, pairs), PAIRS.name)
    return len(pairs)


def _file_digest(run: Run) -> tuple[str, ...]:
    """Return a digest of the file that `refresh.path` names; nothing without one.

    Raises:
        DataError: it cannot be read.
    """
    path = run.config.refresh.path
    if path is None:
        return ()
    try:
        return (hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest(),)
    except OSError as error:
        raise DataError(
            f"refresh.path = {path!r}: cannot be read ({error.strerror}); name a file of preferences"
        ) from error


def _write(run: Run, pairs: Sequence[Pair]) -> None:
    """Write the pairs of a run.

    Raises:
        DataError: there is none.
    """
    if not pairs:
        raise DataError(
            f"refresh.prompts = {run.config.refresh.prompts}: the labeller called all pairs of answers ties, so there "
            "is nothing to learn; raise refresh.prompts or refresh.temperature, or set refresh.prompts=0 to keep the "
            "models"
        )
    head = {"made_of": pairs_hash(run), "digest": digest([pair._asdict() for pair in pairs])}
    lines = [json.dumps(head), *(json.dumps(pair._asdict()) for pair in pairs)]
    write_file(_path(run), ("\n".join(lines) + "\n").encode())


def labelled(
    inputs: Sequences,
    first: Sequences,
    second: Sequences,
    labeller: Labeller,
) -> list[Pair]:
    """Return the pairs of different answers that the labeller does not call a tie, better answer first."""
    pairs, columns = [], [Tokens.of(column) for column in (inputs, first, second)]
    for label, x, a, b in zip(labeller(*columns).tolist(), *(column.rows() for column in columns), strict=True):
        if label and a != b:
            better, worse = (a, b) if label > 0 else (b, a)
            pairs.append(Pair(x, better, worse))
    return pairs


def pairs_hash(run: Run) -> str:
    """Return a digest of everything that the pairs depend on, except for the labeller."""
    config = run.config
    if config.refresh.path is not None:
        return digest(run.store.hash, *_file_digest(run))
    settings = [config.refresh.prompts, config.refresh.temperature]
    return digest(settings, config.seed, run.store.hash, [rl.POLICY.hash(run), rl.IMPROVER_0.hash(run)])


def has_pairs(run: Run) -> bool:
    """Return whether the pairs of this config and data exist."""
    path = _path(run)
    if not path.is_file():
        return False
    return bool(next(_lines(run), {}).get("made_of") == pairs_hash(run))


def read_pairs(run: Run) -> list[Pair]:
    """Return the labelled pairs of a run.

    Raises:
        DataError: they have not been made.
        DamagedFileError: they are not those that were made.
    """
    path = _path(run)
    if not has_pairs(run):
        raise DataError(f"{path}: holds no pairs of this config and data; run `{PAIRS.command(run)}` first")
    head, *pairs = _lines(run)
    if head.get("digest") != digest(pairs):
        raise DamagedFileError(f"{path}: is damaged, its pairs are not those that were made; {_remedy(run)}")
    return [Pair(**values) for values in pairs]


def _lines(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the objects in the file of the pairs; the first says what they were made of."""
    return (values for _, values in read_lines(_path(run), _remedy(run)))


def _remedy(run: Run) -> str:
    return f"delete {_path(run)}, and make the pairs again with `{PAIRS.command(run)}`"


def _path(run: Run) -> Path:
    return run.folder / "refresh" / "pairs.jsonl"


class Mix(Iterator[list[LocalBatch]]):
    """Endless steps of data pairs and new pairs; each step is a function of the seed and its number.

    Args:
        fold: data pairs.
        pairs: new pairs.
        topology: tree that each pair becomes.
        layout: static shape of a group.
        config: pairs per step and the share of data among them.
        shards: shards of the rows.
        seed: root of the permutations.
    """

    def __init__(
        self,
        fold: Fold,
        pairs: Sequence[Pair],
        topology: Topology,
        layout: Layout,
        config: RefreshConfig,
        *,
        shards: Shards,
        seed: Seed,
    ) -> None:
        self._fold, self._pairs, self._topology, self._layout = fold, pairs, topology, layout
        self._shards, self._seed, self._step = shards, seed, 0
        old = round(config.pairs * config.data_share)
        self._counts = {"old": old, "new": config.pairs - old}

    def __next__(self) -> list[LocalBatch]:
        old = self._fold.columns(self._places("old", len(self._fold)))
        new = [self._pairs[i] for i in self._places("new", len(self._pairs))]
        self._step += 1
        columns = [[*column, *(pair[c] for pair in new)] for c, column in enumerate(old)]
        return pack_local(columns, self._topology, self._layout, self._shards)

    def _places(self, which: str, size: int) -> list[int]:
        """Return the next rows of one kind: every row once per epoch, in another order each time."""
        count = self._counts[which]
        drawn = np.arange(self._step * count, (self._step + 1) * count, dtype=np.int64)
        places = np.empty_like(drawn)
        for epoch in np.unique(drawn // size).tolist():
            of_epoch = drawn // size == epoch
            order = _core.Permutation(size, self._seed.of(which, epoch).number)
            places[of_epoch] = order.apply(drawn[of_epoch] % size)
        return [int(place) for place in places]

    def close(self) -> None:
        """Release nothing: all rows are in memory or mapped."""

    def state(self) -> dict[str, Any]:
        """Return the number of steps handed out."""
        return {"step": self._step}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume after a saved state."""
        self._step = state["step"]


def mixed_batches(session: Session, topology: Topology) -> Batches:
    """Return a mix of data and new pairs; every n-th new pair is held out to measure by.

    Raises:
        DataError: the pairs have not been made.
    """
    run, config, shards = session.run, session.settings, session.run.shards
    pairs, layout = read_pairs(run), run.layout(config.packing)
    held_out = held_out_of(pairs, config)
    kept = [pair for i, pair in enumerate(pairs) if i % config.held_out_every] or held_out
    seed = run.seed.of(session.stage.name, "order")
    mix = Mix(run.fold(session.stage.fold), kept, topology, layout, config, shards=shards, seed=seed)
    columns = [[pair[c] for pair in held_out] for c in range(3)]
    return Batches(mix, pack_local(columns, topology, layout, shards))


def held_out_of(pairs: Sequence[Pair], config: RefreshConfig) -> list[Pair]:
    """Return every n-th of the new pairs, which are measured by and not trained on."""
    return list(pairs[:: config.held_out_every])


def _label(run: Run, services: Services) -> None:
    if run.config.refresh.path is not None:
        count = take_pairs(run, Path(run.config.refresh.path))
    elif services.labeller is None:
        raise ConfigError(f"{PAIRS.name}: needs a labeller; call pit.stages.refresh.make_pairs with one of your own")
    else:
        count = make_pairs(run, services.labeller(run))
    make_reporter(PAIRS.name).note("up to date" if count is None else f"{count:,} labelled pairs")


def _included(config: RunConfig) -> bool:
    return config.refresh.asked


def _sampled(config: RunConfig) -> dict[Role, Stage]:
    """Return the models that write the pairs; none where a file holds them."""
    return {} if config.refresh.path is not None else {"writer": rl.POLICY, "rewriter": rl.IMPROVER_0}


PAIRS = Job(
    name="refresh-pairs",
    title="samples of the models, labelled",
    work=_label,
    after=lambda config: tuple(_sampled(config).values()),
    included=_included,
    option="refresh.prompts=256",
    finished=has_pairs,
)

QUALITY = supervised_stage(
    name="refresh-quality",
    title="R_P trained on with labelled samples",
    section="refresh",
    trains=REWARD_MODEL,
    fold="reward",
    topology=quality(),
    loss=lambda graphdef, config: reward.quality_loss(graphdef),
    inputs=lambda config: {"start": reward.QUALITY, **_sampled(config)},
    sources=_file_digest,
    batches=mixed_batches,
    after=lambda config: (PAIRS,),
    included=_included,
    option=PAIRS.option,
)

GAP = supervised_stage(
    name="refresh-gap",
    title="R_PIT trained on with labelled samples",
    section="refresh",
    trains=REWARD_MODEL,
    fold="reward",
    topology=gap(),
    loss=lambda graphdef, config: reward.gap_loss(graphdef, config.reward_gap.ordered_pairs),
    inputs=lambda config: {"start": reward.GAP, **_sampled(config)},
    sources=_file_digest,
    batches=mixed_batches,
    after=lambda config: (PAIRS,),
    included=_included,
    option=PAIRS.option,
)


def last_quality(config: RunConfig) -> Stage:
    """Return the stage of the last R_P: refreshed, where the run refreshes it."""
    return QUALITY if QUALITY.included(config) else reward.QUALITY


def last_gap(config: RunConfig) -> Stage:
    """Return the stage of the last R_PIT: refreshed, where the run refreshes it."""
    return GAP if GAP.included(config) else reward.GAP
