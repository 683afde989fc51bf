"""Changed settings of a run that exists: taken where nothing that has begun depends on them."""

from collections.abc import Iterator
from typing import Any

from pit.config import ConfigError, to_dict
from pit.run.folder import Run
from pit.run.stage import Job, Stage
from pit.stages.graph import STAGES, jobs_of


def adopt(run: Run) -> list[str]:
    """Write the config of a run into its folder if only settings of stages that have not begun differ.

    Returns:
        A line for each setting that changes.

    Raises:
        ConfigError: the folder belongs to a run with other settings that something in it depends on.
    """
    held, differing = run.held, run.differing
    if held is None or not differing:
        return []
    if not set(differing) <= {stage.section for stage in STAGES}:
        run.require_config()
    before = Run(run.folder, held)
    for job in jobs_of(held):
        if _begun(job, before) and not _stays(job, before, run):
            raise ConfigError(
                f"{run.folder}: is the folder of a run with other {', '.join(differing)}, on which {job.name} depends, "
                "and it has begun; choose another --out, or repeat the settings it was started with"
            )
    lines = [
        f"{path} = {new} instead of {old}: of a stage that has not begun"
        for path, old, new in _changes(to_dict(held), to_dict(run.config))
        if path.partition(".")[0] in differing
    ]
    run.replace_config()
    return lines


def _begun(job: Job, run: Run) -> bool:
    return run.stage_folder(job.name).exists() if isinstance(job, Stage) else job.done(run)


def _stays(job: Job, before: Run, after: Run) -> bool:
    """Return whether what a job has made is also what it makes of a changed config."""
    if isinstance(job, Stage):
        return job.included(after.config) and job.hash(after) == job.hash(before)
    return job.included(after.config) and job.done(after)


def _changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the path of each field that differs, with its values.

    >>> list(_changes({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}))
    [('a.c', 2, 3)]
    """
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for name in old:
            yield from _changes(old[name], new[name], f"{path}.{name}" if path else name)
    elif old != new:
        yield path, old, new
