"""Reward models trained on with labelled samples of the models, between RL,0 and RL,1 (beyond the paper, optional).

The rewards of RL,1 and of inference are asked about answers that no preference of the data shows. Where someone can
label such answers, M_P^RL and RL,0's improver answer prompts of the rl fold, and R_P and R_PIT go on from where they
were, on a mix of data and these pairs.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from pit.config import RefreshConfig, derived_seed, digest
from pit.data import _core
from pit.data.atomic import write_file
from pit.data.errors import DataError
from pit.data.packing import Layout, pack_lists
from pit.data.store import Fold
from pit.model.params import copy
from pit.stages.context import Run, require_stage
from pit.stages.references import Prompts, Sampling
from pit.stages.reward import GAP, QUALITY, with_pairs
from pit.stages.supervised import Batches, Task, fit
from pit.train.log import make_reporter
from pit.types import Batch, Topology

Tokens = Sequence[Sequence[int]]

Labeller = Callable[[Tokens, Tokens, Tokens], Int64[np.ndarray, " n"]]
"""Of the contents of n inputs and two answers to each: 1 where the first is preferred, -1 the second, 0 a tie."""

NODE = "refresh-pairs"
REFRESHED = {"refresh-quality": QUALITY, "refresh-gap": GAP}
"""The stages, and the task that each goes on with."""

BLOCK = 128
"""Prompts sampled at once."""


class Pair(NamedTuple):
    """A labelled pair, as token contents."""

    prompt: list[int]
    better: list[int]
    worse: list[int]


def make_pairs(run: Run, labeller: Labeller) -> int | None:
    """Sample and label the pairs of a run, unless they are there; how many there are, None where nothing was done.

    Of each prompt M_P^RL writes two answers and RL,0's improver one from the first: two pairs, less ties and equals.

    Raises:
        DataError: no pair is left.
    """
    require_stage("refresh-gap", run.config)
    path = _path(run)
    if has_pairs(run):
        return None
    config, windows = run.config.refresh, run.config.windows
    sampling = Sampling(run.template.closings, windows.output - 1, config.rollout)
    policy, improver = run.trained("rl-policy"), run.trained("rl-first")
    fold, reporter, seed = run.fold("rl"), make_reporter(NODE), run.config.seed
    count, pairs = min(config.prompts, len(fold)), list[Pair]()
    for first in range(0, count, BLOCK):
        ids = list(range(first, min(first + BLOCK, count)))
        asked = Prompts(ids, [[int(t) for t in fold.row(i)[0]] for i in ids], None)
        one, two = (sampling.answers(policy, asked, config.temperature, _seed(seed, k)) for k in ("one", "two"))
        rewritten = sampling.answers(improver, asked._replace(references=one), config.temperature, _seed(seed, "new"))
        for other in (two, rewritten):
            pairs += labelled(asked.inputs, one, other, labeller)
        reporter.update(first + len(ids), count, f"{len(pairs):,} pairs")
    reporter.close()
    if not pairs:
        raise DataError(
            f"refresh.prompts = {config.prompts}: the labeller told no two answers apart, so nothing is to be learned; "
            "raise refresh.prompts or refresh.temperature, or set refresh.prompts=0 to keep the models as they are"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"made_of": pairs_hash(run)}), *(json.dumps(pair._asdict()) for pair in pairs)]
    write_file(path, ("\n".join(lines) + "\n").encode())
    return len(pairs)


def labelled(inputs: Tokens, first: Tokens, second: Tokens, labeller: Labeller) -> list[Pair]:
    """The pairs that differ and that the labeller does not call a tie, better answer first."""
    pairs = []
    for label, x, a, b in zip(labeller(inputs, first, second).tolist(), inputs, first, second, strict=True):
        if label and list(a) != list(b):
            better, worse = (a, b) if label > 0 else (b, a)
            pairs.append(Pair(list(x), list(better), list(worse)))
    return pairs


def pairs_hash(run: Run) -> str:
    """What the pairs depend on, beside who labelled them."""
    config = run.config
    asked = [config.refresh.prompts, config.refresh.temperature]
    return digest(asked, config.seed, run.store.hash, [run.stage_hash(name) for name in ("rl-policy", "rl-first")])


def has_pairs(run: Run) -> bool:
    """Whether the pairs of this config and data are there."""
    path = _path(run)
    if not path.is_file():
        return False
    with path.open(encoding="utf-8") as lines:
        return bool(json.loads(next(lines))["made_of"] == pairs_hash(run))


def read_pairs(run: Run) -> list[Pair]:
    """The labelled pairs of a run.

    Raises:
        DataError: they have not been made.
    """
    path = _path(run)
    if not has_pairs(run):
        raise DataError(f"{path}: holds no pairs of this config and data; run `{run.command(NODE)}` first")
    return [Pair(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def _path(run: Run) -> Path:
    return run.folder / "refresh" / "pairs.jsonl"


def _seed(seed: int, purpose: str) -> int:
    return derived_seed(seed, NODE, purpose)


class Mix(Iterator[list[Batch]]):
    """Endless steps of data pairs and new pairs; each step is a function of the seed and its number.

    Args:
        fold: the data pairs.
        pairs: the new ones.
        topology: the tree that each pair becomes.
        layout: static shape of a group.
        config: pairs of a step and the share of data among them.
        shards: data shards.
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
        shards: int,
        seed: int,
    ) -> None:
        self._fold, self._pairs, self._topology, self._layout = fold, pairs, topology, layout
        self._shards, self._seed, self._step = shards, seed, 0
        old = round(config.pairs * config.data_share)
        self._counts = {"old": old, "new": config.pairs - old}

    def __next__(self) -> list[Batch]:
        rows = [self._row(i) for i in self._places("old", len(self._fold))]
        rows += [self._pairs[i] for i in self._places("new", len(self._pairs))]
        self._step += 1
        columns = [[row[c] for row in rows] for c in range(3)]
        return pack_lists(columns, self._topology, self._layout, shards=self._shards)

    def _row(self, index: int) -> Pair:
        prompt, better, worse = ([int(t) for t in part] for part in self._fold.row(index))
        return Pair(prompt, better, worse)

    def _places(self, which: str, size: int) -> list[int]:
        """The next rows of one kind: every one once an epoch, in an order of its own each time."""
        count = self._counts[which]
        drawn = np.arange(self._step * count, (self._step + 1) * count, dtype=np.int64)
        places = np.empty_like(drawn)
        for epoch in np.unique(drawn // size).tolist():
            own = drawn // size == epoch
            order = _core.Permutation(size, _seed(self._seed, f"{which} {epoch}"))
            places[own] = order.apply(drawn[own] % size)
        found: list[int] = places.tolist()
        return found

    def state(self) -> dict[str, Any]:
        """The number of steps handed out."""
        return {"step": self._step}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after a saved state."""
        self._step = state["step"]


def run_refresh(run: Run, name: str, *, profile_steps: int = 0) -> None:
    """Train a reward model on, from the one that it refreshes; a tenth of the new pairs is held out to measure it.

    Raises:
        DataError: the pairs have not been made.
    """
    require_stage(name, run.config)
    base, config, shards = with_pairs(REFRESHED[name], run.config), run.config.refresh, run.config.mesh.shards
    task, pairs, layout = Task(name, base.fold, base.topology, base.loss), read_pairs(run), run.layout(config.packing)
    held_out = pairs[:: config.held_out_every]
    kept = [pair for i, pair in enumerate(pairs) if i % config.held_out_every] or held_out
    mix = Mix(run.fold(base.fold), kept, base.topology, layout, config, shards=shards, seed=run.config.seed)
    columns = [[pair[c] for pair in held_out] for c in range(3)]
    batches = Batches(mix, pack_lists(columns, base.topology, layout, shards=shards))
    fit(run, task, initial=copy(run.trained(base.stage)[1]), batches=batches, profile_steps=profile_steps)
