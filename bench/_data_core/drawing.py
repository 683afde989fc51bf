"""Figures of the keyed permutation and of weighted draws."""

import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import numpy as np

from _data_core.samplers import SAMPLERS, Work, installed
from _data_core.settings import Settings, ratio
from _measure import alternate, spread
from pit.data import _core


def permutation(settings: Settings) -> dict[str, Any]:
    """Measure `apply` on random indices; NumPy shuffles an array of ten million."""
    count, rng = settings.size.indices, np.random.default_rng(settings.seed)
    sizes = {"10^3": 10**3, "10^7": 10**7, "2^20+1": 2**20 + 1, "2^24+1": 2**24 + 1, "10^8": 10**8, "2^48": 2**48}
    contenders: dict[str, Callable[[], object]] = {}
    for name, n in sizes.items():
        contenders[name] = partial(_core.Permutation(n, settings.seed).apply, rng.integers(0, n, count))
    contenders["numpy"] = partial(rng.permutation, 10**7)
    seconds = alternate(contenders, settings.rounds, time.process_time)
    return {
        "million_indices_per_s": {name: spread(count / seconds[name] / 1e6) for name in sizes},
        "numpy_shuffle_of_10^7_million_per_s": spread(10 / seconds["numpy"]),
    }


def draws(settings: Settings) -> dict[str, Any]:
    """Measure batches of 4,096 draws, after each of which the drawn entries get new weights.

    A call is several batches, but one of multinomial.
    """
    rng = np.random.default_rng(settings.seed)
    entries = settings.size.entries
    work = Work(entries, 4096, rng.random(entries), rng.random(4096), settings.seed)
    batches = {name: 1 if name == "torch.multinomial" else settings.size.draws for name in SAMPLERS}
    contenders = {name: partial(repeat, batch, batches[name]) for name, batch in installed(work).items()}
    seconds = alternate(contenders, settings.rounds, time.process_time)
    per_batch = {name: s / batches[name] for name, s in seconds.items()}
    return {
        "million_draws_and_updates_per_s": {name: spread(work.batch / s / 1e6) for name, s in per_batch.items()},
        "pit_over": {name: ratio(s, per_batch["pit"]) for name, s in per_batch.items() if name != "pit"},
        "peers": {name: metadata.version(name) for name in ("torch", "torchrl", "cpprb") if find_spec(name)},
    }


def repeat(call: Callable[[], object], times: int) -> None:
    """Call a function `times` times."""
    for _ in range(times):
        call()
