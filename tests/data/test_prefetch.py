"""Prefetching loaders end with their process, with their owner, and when they are closed."""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest
from store_cases import environment, random_batch, write_store

from pit.config import PackingConfig
from pit.data.curriculum import Adaptive, CurriculumError, DrawLoader, Learnability
from pit.data.errors import DataError
from pit.data.loader import Loader
from pit.data.packing import Layout
from pit.data.store import Store
from pit.data.template import improver_sft
from pit.types import Closings, Shards


def loader_of(folder):
    packing = PackingConfig(row_length=64, rows=4, microbatches=1, window=4, trees=4)
    layout = Layout(closings=Closings.roles(1, 2, 3), pad=0, row_length=64, rows=4, trees=4)
    fold = Store.open(folder).fold("sft")
    return Loader(fold, improver_sft(), layout, packing, shards=Shards.all_local(1), seed=0, config_hash="")


def draws_of(folder):
    settings = {"examples": 24, "steps": 20, "lag": 2, "memory": 8, "seed": 1, "config_hash": 1, "data_hash": 2}
    return DrawLoader(Adaptive(Learnability(), shares=(0, 1, 1, 0), difficulty=None, **settings), 8, prefetch=1)


MAKE = {"batches": loader_of, "draws": draws_of}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store") / "s", [[random_batch(40, 5, 0)]])


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-thread-prefetch")]


def test_a_process_ends_cleanly_while_loaders_prefetch(folder):
    """The thread of the draws then waits in the curriculum for feedback, that of the batches at a full queue."""
    code = (
        "import sys; from pathlib import Path; from test_prefetch import MAKE\n"
        "loaders = [make(Path(sys.argv[1])) for make in MAKE.values()]\n"
        "for loader in loaders: next(loader)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("kind", MAKE)
def test_closing_or_dropping_a_loader_ends_its_thread(folder, kind):
    before = len(prefetch_threads())
    with MAKE[kind](folder) as loader:
        next(loader)
        assert len(prefetch_threads()) == before + 1
        state = loader.state()
    assert len(prefetch_threads()) == before
    loader.close()  # closing twice does no harm
    assert loader.state() == state
    with pytest.raises((DataError, CurriculumError), match="the loader is closed"):
        next(loader)
    dropped = MAKE[kind](folder)
    next(dropped)
    del dropped
    gc.collect()
    assert len(prefetch_threads()) == before


def test_a_closed_loader_resumes_from_its_state(folder):
    with loader_of(folder) as loader:
        next(loader)
    with loader_of(folder) as resumed, loader_of(folder) as whole:
        resumed.restore(loader.state())
        next(whole)
        for one, other in zip(next(resumed), next(whole), strict=True):
            assert np.array_equal(one.local.token, other.local.token)
