"""Weighted sampling with changing weights: the core's table and packages from PyPI, all doing the same work.

The work is a batch: weighted draws with replacement, then a new weight for each entry drawn. Every contender makes its
own random numbers, which are part of the work; the new weights are made before.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pit.data import _core

UNIT = 2**20


@dataclass
class Work:
    """Work of a contender.

    n: entries of the table.
    batch: draws per batch.
    weights: initial weights, in [0, 1).
    changed: weights that every batch sets.
    seed: seed of the draws.
    """

    n: int
    batch: int
    weights: np.ndarray
    changed: np.ndarray
    seed: int


def pit_table(work: Work) -> Callable[[], object]:
    """Return a batch of the core's table of integer weights."""
    table = _core.FeedbackCurriculum(
        seed=work.seed, examples=work.n, sources=[1], lag=1 << 20, memory=8, config_hash=0, data_hash=0
    )
    table.assign_weights((work.weights * UNIT).astype(np.uint32))
    changed = (work.changed * UNIT).astype(np.uint32)

    def batch() -> None:
        table.advance()
        ids, _ = table.draw(work.batch)
        table.set_weights(ids, changed)

    return batch


def torchrl_tree(work: Work) -> Callable[[], object]:
    """Return a batch of torchrl's C++ segment tree of doubles, used as its PrioritizedSampler does."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    tree = importlib.import_module("torchrl._torchrl").SumSegmentTreeFp64(work.n)
    tree.update(torch.arange(work.n), torch.from_numpy(work.weights))
    generator = torch.Generator().manual_seed(work.seed)
    changed = torch.from_numpy(work.changed)

    def batch() -> None:
        mass = torch.rand(work.batch, dtype=torch.float64, generator=generator) * tree.query(0, work.n)
        ids = tree.scan_lower_bound(mass).clamp_(max=work.n - 1)
        tree.update(ids, changed)

    return batch


def cpprb_buffer(work: Work) -> Callable[[], object]:
    """Return a batch of cpprb's prioritised replay buffer of one-float items, which it also gathers and weighs."""
    buffer = importlib.import_module("cpprb").PrioritizedReplayBuffer(work.n, {"x": {}}, alpha=1.0)
    np.random.seed(work.seed)
    buffer.add(x=np.zeros(work.n, np.float32), priorities=work.weights)

    def batch() -> None:
        ids = buffer.sample(work.batch)["indexes"]
        buffer.update_priorities(ids, work.changed)

    return batch


def torch_multinomial(work: Work) -> Callable[[], object]:
    """Return a batch of torch.multinomial over all weights; it keeps no structure, so a batch costs O(n)."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    weights, changed = torch.from_numpy(work.weights.copy()), torch.from_numpy(work.changed)
    generator = torch.Generator().manual_seed(work.seed)

    def batch() -> None:
        weights[torch.multinomial(weights, work.batch, replacement=True, generator=generator)] = changed

    return batch


SAMPLERS: dict[str, Callable[[Work], Callable[[], object]]] = {
    "pit": pit_table,
    "torchrl": torchrl_tree,
    "cpprb": cpprb_buffer,
    "torch.multinomial": torch_multinomial,
}


def installed(work: Work) -> dict[str, Callable[[], object]]:
    """Return a batch of each sampler whose package is installed."""
    result = {}
    for name, make in SAMPLERS.items():
        try:
            result[name] = make(work)
        except ImportError:
            continue
    return result
