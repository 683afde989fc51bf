"""One of several processes that train together: prints its draws, and writes the state for a restart.

Arguments: coordinator, processes, this process, first step, last step, folder. Run by test_curriculum_processes.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from pit.config import MeshConfig, PackingConfig
from pit.data.curriculum import Adaptive, DrawLoader, Learnability
from pit.data.loader import Loader
from pit.data.packing import Layout
from pit.data.store import Store
from pit.data.template import gap
from pit.model.sharding import make_mesh, row_sharding, shards_of
from pit.train.feed import to_device
from pit.types import Closings

EXAMPLES, COUNT, SHARDS = 24, 8, 4


def main() -> None:
    coordinator, count, index, first, last, folder = sys.argv[1:7]
    jax.distributed.initialize(coordinator, num_processes=int(count), process_id=int(index))
    print(json.dumps(train(int(first), int(last), Path(folder))), flush=True)


def train(first: int, last: int, folder: Path) -> dict[str, object]:
    """Return this process's draws and batches of steps [first, last); write the state of `last` to the folder."""
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    draws = DrawLoader(curriculum(), COUNT, prefetch=1, **processes)
    mesh = make_mesh(MeshConfig(data=SHARDS))
    fold = Store.open(folder / "store").fold("reward")
    packing = PackingConfig(row_length=64, rows=2, microbatches=2, window=8, trees=6)
    layout = Layout(closings=Closings.roles(1, 2, 3), pad=0, row_length=64, rows=2, trees=6)
    batches = Loader(fold, gap(), layout, packing, shards=shards_of(mesh), seed=3, config_hash="c")
    if first:
        draws.restore((folder / f"draws-{first}").read_bytes(), first)
        batches.restore(json.loads((folder / f"batches-{first}").read_text()))
    result = {"draws": [], "tokens": [], "sums": []}
    sharding = row_sharding(mesh)
    for _ in range(first, last):
        step = next(draws)
        share = draws.share(step)
        result["draws"].append([share.ids.tolist(), share.sources.tolist()])
        gaps = multihost_utils.process_allgather(gaps_of(share.ids), tiled=True)
        draws.update(step, np.asarray(gaps))
        microbatches = next(batches)
        result["tokens"].append([batch.local.token.tolist() for batch in microbatches])
        arrays = to_device(microbatches[0], sharding)
        result["sums"].append([int(arrays["token"].sum()), int(arrays["leaf"].sum())])
    if jax.process_index() == 0:
        (folder / f"draws-{last}").write_bytes(draws.state())
        (folder / f"batches-{last}").write_text(json.dumps(batches.state()))
    multihost_utils.sync_global_devices("saved")
    draws.close()
    batches.close()
    return result


def curriculum() -> Adaptive:
    return Adaptive(
        Learnability(),
        shares=(0, 1, 1, 0),
        examples=EXAMPLES,
        steps=20,
        lag=2,
        memory=8,
        difficulty=None,
        seed=1,
        config_hash=1,
        data_hash=2,
    )


def gaps_of(ids: np.ndarray) -> np.ndarray:
    """Return gaps of two samples: both of an odd example win, one of an even example loses."""
    return np.stack([np.ones(len(ids)), np.where(ids % 2, 1.0, -1.0)], axis=1).astype(np.float32)


if __name__ == "__main__":
    main()
