"""Runs on small data of a user, and what a finished preparation leaves behind."""

import json

from pit.config import override
from pit.recipes import recipe
from pit.run.folder import Run


def rows(word, n=60, **more):
    return [{"prompt": f"{word} {i}?", "chosen": f"good {i}", "rejected": f"bad {i}", **more} for i in range(n)]


def put(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run_on(data, *settings, out="run"):
    """Return a run on a file or folder of data, in a folder next to it."""
    config = override(recipe("tiny"), [f"data.path={data}", "tokenizer.vocab_size=300", *settings])
    return Run(data.parent / out, config)


def hash_of(run):
    return Run(run.folder, run.config).store.hash


def train(run, name="sft-policy"):
    """Leave the record of a trained stage."""
    put(run.stage_folder(name) / "done.json", [{"hash": "h"}])


def state_of(folder):
    """Return every file of a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
