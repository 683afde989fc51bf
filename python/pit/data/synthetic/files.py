"""Rows of a synthetic family, one after another or as files."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pit.data.atomic import new_folder
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
    """Rows `start` to `start + n - 1` of a family's data set named by `seed`."""
    family = FAMILIES[task]
    for index in range(start, start + n):
        yield family.preference_at(seed, index, fractions, key)


def generate_prompts(n: int, seed: int, *, task: str = "describe", start: int = 0) -> Iterator[str]:
    """The prompts of rows `start` to `start + n - 1`, without their answers."""
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
        out: folder to make; it must be absent or empty.
        n: rows, at least 1.
        seed: names the data set.
        task: name of the family.
        shards: files to spread the rows over, in order.
        fractions: share of each fold.
        key: key of the fold hash.

    Returns:
        The files, `train-00000-of-0000k.jsonl` onward.

    Raises:
        DataError: `out` holds something, or the counts are impossible.
    """
    if not 1 <= shards <= n:
        raise DataError(f"{n} rows in {shards} shards: rows and shards must be at least 1 and shards at most rows")
    names = [f"train-{shard:05d}-of-{shards:05d}.jsonl" for shard in range(shards)]
    with new_folder(out) as folder:
        for shard, name in enumerate(names):
            first, last = n * shard // shards, n * (shard + 1) // shards
            with (folder / name).open("w", encoding="utf-8") as file:
                for row in generate(last - first, seed, task=task, start=first, fractions=fractions, key=key):
                    record = {"prompt": row.prompt[0].content, "chosen": row.better, "rejected": row.worse}
                    file.write(json.dumps(record) + "\n")
    return [Path(out) / name for name in names]
