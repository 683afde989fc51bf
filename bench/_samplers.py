"""Weighted sampling with changing weights: the core's table and what PyPI has, each doing the same work.

The work is a batch: so many weighted draws with replacement, then a new weight for each entry drawn. Random numbers are
part of it, each contender's own; new weights are made before.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pit.data import _core

UNIT = 2**20


@dataclass
class Work:
    """n: entries; batch: draws of a batch; weights: at first, in [0, 1); changed: those that batches set."""

    n: int
    batch: int
    weights: np.ndarray
    changed: np.ndarray
    seed: int


def pit_table(work: Work) -> Callable[[], object]:
    """The core's integer weights."""
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
    """Torchrl's C++ segment tree of doubles, as its PrioritizedSampler uses it."""
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
    """Prioritised replay buffer of cpprb, of items of one float; it also gathers them and weighs them."""
    buffer = importlib.import_module("cpprb").PrioritizedReplayBuffer(work.n, {"x": {}}, alpha=1.0)
    np.random.seed(work.seed)
    buffer.add(x=np.zeros(work.n, np.float32), priorities=work.weights)

    def batch() -> None:
        ids = buffer.sample(work.batch)["indexes"]
        buffer.update_priorities(ids, work.changed)

    return batch


def torch_multinomial(work: Work) -> Callable[[], object]:
    """torch.multinomial over all weights: no structure is kept, every batch costs O(n)."""
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
    """A batch of each sampler whose package is installed."""
    result = {}
    for name, make in SAMPLERS.items():
        try:
            result[name] = make(work)
        except ImportError:
            continue
    return result
