"""What process 0 makes in the folder of a run, and all processes read.

On a disk that all hosts share nothing is copied. Elsewhere every host has a folder of its own, which is kept a copy of
process 0's: files pass through the root of the checkpoints, which all hosts reach.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from etils import epath

from pit import processes
from pit.atomic import new_file
from pit.processes import ProcessError
from pit.run.folder import Run
from pit.train.checkpoint import unreachable

READ = (
    "config.json",
    "tokenizer.json",
    "template.json",
    "store/*",
    "prepared.json",
    "search.json",
    "refresh/*.jsonl",
    "stages/*/reward.py",
    "stages/*/done.json",
)
"""Files in the folder of a run that every process reads, in the order of their copies: what vouches for others last."""

VISIBLE_S = 60.0
"""Seconds until a file that process 0 wrote must be visible to all: network disks remember what was not there."""

VISIBLE_OR_COPIED_S = 3.0
"""The same where the file can be copied instead."""

PLACE = "run"
"""Folder of the files under the root of the checkpoints."""

_PART = 1 << 24

Listing = dict[str, tuple[int, str]]
"""Size in bytes and digest of files by name; tables of the store, which can be large, have that of its manifest."""

SENT = "sent.json"
"""File in the bucket that lists the others there, so that each is sent once."""


def made_by_first(run: Run, make: Callable[[], None], purpose: str) -> None:
    """Let the first process alone make files in the run's folder, and wait until all processes have them.

    Where hosts have folders of their own, a file of `READ` that process 0 has not is removed from the others'.

    Args:
        run: the run; with `config.checkpoints` its folder may be another one on each host.
        make: makes the files.
        purpose: what is made, for messages.

    Raises:
        ProcessError: a process did not come in time, or does not see the files and has no way to copy them.
        CheckpointError: the bucket, through which they are copied, cannot be reached.
        Exception: the first process's own.
    """

    def made() -> bytes:
        make()
        return _in_json(listing(run.folder))

    wanted = _of_json(processes.from_first(made, purpose))
    root = run.config.checkpoints
    # Other programs may write in the folder meanwhile, as the jobs of one `pit run` do.
    differing = [] if processes.first() else _differing_in_time(run.folder, wanted, root)
    if root is None:
        missing = [name for name in differing if name in wanted and not (run.folder / name).is_file()]
        if missing:
            raise ProcessError(
                f"{run.folder / missing[0]}: process 0 has it, and this process does not see it; give a folder that "
                "all hosts share: --out FOLDER, or a bucket through which each gets a copy: --checkpoints "
                "gs://BUCKET/FOLDER"
            )
        return
    if not processes.agreed(bool(differing), f"need of copies of {purpose}"):
        return
    place = epath.Path(root) / PLACE
    sent = _of_json(processes.from_first(lambda: _in_json(_send(run.folder, place)), f"copies of {purpose}"))
    _fetch(run.folder, place, sent, [] if processes.first() else _differing(run.folder, sent))


def _in_json(listed: Listing) -> bytes:
    return json.dumps(listed).encode()


def _of_json(text: bytes) -> Listing:
    return {name: (size, digest) for name, (size, digest) in json.loads(text).items()}


def listing(folder: Path) -> Listing:
    """Return the files of `READ` in a folder, in its order, the manifest of the store after the tables."""
    listed: Listing = {}
    manifest = folder / "store" / "manifest.json"
    for pattern in READ:
        for path in sorted(folder.glob(pattern), key=lambda path: (path == manifest, path)):
            if path.is_file() and not path.name.startswith("."):
                vouches = manifest if path.parent == manifest.parent else path
                digest = hashlib.blake2b(vouches.read_bytes(), digest_size=16).hexdigest() if vouches.is_file() else ""
                listed[path.relative_to(folder).as_posix()] = (path.stat().st_size, digest)
    return listed


def _differing(folder: Path, wanted: Listing) -> list[str]:
    """Return names of files that are not as wanted, in the order of the listing, then those that should not be."""
    held = listing(folder)
    return [name for name in (*wanted, *(held.keys() - wanted.keys())) if held.get(name) != wanted.get(name)]


def _differing_in_time(folder: Path, wanted: Listing, root: str | None) -> list[str]:
    deadline = time.monotonic() + (VISIBLE_S if root is None else VISIBLE_OR_COPIED_S)
    while (differing := _differing(folder, wanted)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return differing


def _send(folder: Path, place: epath.Path) -> Listing:
    """Copy the files of a folder into the bucket, but for those that are there; return what they are now."""
    listed, index = listing(folder), place / SENT
    try:
        there = _of_json(index.read_bytes()) if index.exists() else {}
        # Until all are there, nothing says what is.
        index.unlink(missing_ok=True)
        for name in (name for name in listed if there.get(name) != listed[name]):
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("rb") as file, target.open("wb") as out:
                shutil.copyfileobj(file, out, _PART)
        index.write_bytes(_in_json(listed))
    except Exception as error:  # gcsfs, google-auth and aiohttp have no error in common.
        raise unreachable(place, error) from error
    return listed


def _fetch(folder: Path, place: epath.Path, wanted: Listing, names: list[str]) -> None:
    """Make files as wanted.

    Raises:
        ProcessError: what came is not what process 0 has.
    """
    for name in names:
        if name not in wanted:
            (folder / name).unlink(missing_ok=True)
            continue
        try:
            with (place / name).open("rb") as file, new_file(folder / name) as out:
                shutil.copyfileobj(file, out, _PART)
        except Exception as error:  # gcsfs, google-auth and aiohttp have no error in common.
            raise unreachable(place / name, error) from error
    wrong = _differing(folder, wanted) if names else []
    if wrong:
        raise ProcessError(f"{place / wrong[0]}: is not what process 0 sent; give each run a --checkpoints of its own")
