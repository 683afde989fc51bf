"""Rows of a synthetic family, as a stream or as files."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pit.atomic import naming, new_folder
from pit.data.errors import DataError
from pit.data.folds import DEFAULT_FRACTIONS, DEFAULT_KEY
from pit.data.synthetic.family import FAMILIES
from pit.types import Preference


def generate(
    n: int,
    seed: int,
    *,
    task: str = "describe",
    start: int = 0,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    key: str = DEFAULT_KEY,
) -> Iterator[Preference]:
    """Yield rows `start` to `start + n - 1` of a family's data set `seed`."""
    family = FAMILIES[task]
    for index in range(start, start + n):
        yield family.preference_at(seed, index, fractions, key)


def generate_prompts(n: int, seed: int, *, task: str = "describe", start: int = 0) -> Iterator[str]:
    """Yield the prompts of rows `start` to `start + n - 1`, without answers."""
    for index in range(start, start + n):
        yield FAMILIES[task].prompt_at(seed, index)


def write(
    out: str | Path,
    n: int,
    seed: int,
    *,
    task: str = "describe",
    shards: int = 1,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    key: str = DEFAULT_KEY,
) -> list[Path]:
    """Write `n` rows as JSONL with the columns prompt, chosen and rejected; the folder appears whole or not at all.

    Args:
        out: new folder; it must be absent or empty.
        n: number of rows, at least 1.
        seed: seed of the data set.
        task: name of the family.
        shards: number of files, which hold the rows in order.
        fractions: share of each fold.
        key: key of the fold hash.

    Returns:
        The files, `train-00000-of-0000k.jsonl` onward.

    Raises:
        DataError: `out` is not empty, or not 1 <= shards <= n.
    """
    if not 1 <= shards <= n:
        raise DataError(f"{n} rows in {shards} shards: give at least 1 shard, and at least one row per shard")
    names = [f"train-{shard:05d}-of-{shards:05d}.jsonl" for shard in range(shards)]
    with new_folder(out) as folder:
        for shard, name in enumerate(names):
            first, last = n * shard // shards, n * (shard + 1) // shards
            with naming(folder / name), (folder / name).open("w", encoding="utf-8") as file:
                for row in generate(last - first, seed, task=task, start=first, fractions=fractions, key=key):
                    record = {"prompt": row.prompt[0].content, "chosen": row.better, "rejected": row.worse}
                    file.write(json.dumps(record) + "\n")
    return [Path(out) / name for name in names]
