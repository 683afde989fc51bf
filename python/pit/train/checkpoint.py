"""Orbax checkpoints of a stage: trained weights, optimizer, loader and meta data, written asynchronously.

Folders are `etils.epath` paths: of this machine, or `gs://bucket/...` with the extra `gcs`.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from pit.config import digest
from pit.errors import PitError
from pit.model.params import Params
from pit.train.update import TrainState

_BYTES = "curriculum"
"""Item of a checkpoint for the bytes of the loader."""


_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


class CheckpointError(PitError):
    """A checkpoint that is damaged, or does not belong to this model or run."""


def unreachable(place: epath.Path, error: Exception) -> Exception:
    """Return what to raise where a place cannot be read or written: an error of this machine's disk as it is."""
    if isinstance(error, OSError) and "://" not in os.fspath(place):
        return error
    return CheckpointError(
        f"{place}: cannot be reached ({type(error).__name__}: {str(error)[:200]}); check the bucket's name, your "
        "credentials (`gcloud auth application-default login`), and that gcsfs is installed "
        "(`pip install 'etils[epath-gcs]'`)"
    )


class Restored(NamedTuple):
    """Contents of a checkpoint."""

    state: TrainState
    loader: dict[str, Any]
    controllers: dict[str, Any]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage, `FOLDER/STEP/{params,opt,loader,curriculum,controllers,meta}`.

    Args:
        folder: where they are.
        keep: number of newest ones that stay.
        base: digest of the frozen weights under the trained ones, which are not saved; empty where all train.

    Raises:
        CheckpointError: the folder is in a bucket that cannot be reached, or a checkpoint in it is damaged.
        OSError: the folder of this machine cannot be read or made.
    """

    def __init__(self, folder: epath.PathLike, keep: int, *, base: str = "") -> None:
        self._base = base
        remote = "://" in os.fspath(folder)
        # `absolute()` of an address would put it under the working directory.
        self._folder = epath.Path(folder) if remote else epath.Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        names = ("params", "opt", "loader", _BYTES, "controllers", "meta")
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=names)
        except Exception as error:  # Orbax, gcsfs, google-auth and aiohttp have no error in common.
            if not remote:
                if isinstance(error, OSError):
                    raise
                raise self._damaged(_damaged_step(self._folder), _words(error)) from error
            raise unreachable(self._folder, error) from error

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None without one."""
        step: int | None = self._manager.latest_step()
        return step

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self, state: TrainState, loader: Mapping[str, Any], controllers: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> None:
        """Start writing a checkpoint at the state's step; a step that is already there is left alone.

        Args:
            state: trained weights and optimizer.
            loader: JSON values, and `bytes` (a curriculum's table can be large).
            controllers: what steers the steps from outside (KL coefficient, running statistics), as JSON values.
            meta: JSON values.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        values = {name: value for name, value in loader.items() if not isinstance(value, bytes)}
        blobs = {name: np.frombuffer(value, np.uint8) for name, value in loader.items() if isinstance(value, bytes)}
        meta = {**meta, "shapes": _shapes(state.params), "base": self._base, "bytes": bool(blobs)}
        meta["digest"] = _digest(meta, values, dict(controllers))
        more = {_BYTES: ocp.args.StandardSave(blobs)} if blobs else {}
        with self._space():
            written = self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    opt=ocp.args.StandardSave(state.optimizer),
                    loader=ocp.args.JsonSave(values),
                    controllers=ocp.args.JsonSave(dict(controllers)),
                    meta=ocp.args.JsonSave(meta),
                    **more,
                ),
            )
        if not written:
            raise CheckpointError(
                f"{self._folder}: step {step} was not written, because step {self.latest} is there already; "
                "save into an empty folder"
            )

    def restore(self, like: TrainState, stage_hash: str) -> Restored | None:
        """Return the newest checkpoint with the shapes and sharding of `like`; None where there is none.

        Raises:
            CheckpointError: it is damaged, of another architecture or base, or its stage was made from something else.
        """
        step = self.latest
        if step is None:
            return None
        meta = self._meta(step, like.params, stage_hash)
        try:
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(_abstract(like.params)),
                    opt=ocp.args.StandardRestore(_abstract(like.optimizer)),
                    loader=ocp.args.JsonRestore(),
                    controllers=ocp.args.JsonRestore(),
                    **({_BYTES: ocp.args.StandardRestore()} if meta["bytes"] else {}),
                ),
            )
        except Exception as error:  # Orbax and TensorStore have no error in common.
            raise self._damaged(step, _words(error)) from error
        if meta["digest"] != _digest(meta, items["loader"], items["controllers"]):
            raise self._damaged(step, "what steers the steps is not what was saved")
        state = TrainState(jax.device_put(jax.numpy.int32(step), like.step.sharding), items["params"], items["opt"])
        blobs = {name: np.asarray(value).tobytes() for name, value in (items.get(_BYTES) or {}).items()}
        return Restored(state, {**items["loader"], **blobs}, items["controllers"], meta)

    def restore_params(self, like: Mapping[str, Any], step: int, stage_hash: str) -> Params:
        """Return the weights of a step.

        Raises:
            CheckpointError: the newest checkpoint is of another step, or the one of that step is damaged, of another
                architecture or base, or its stage was made from something else.
        """
        if step != self.latest:
            raise CheckpointError(
                f"{self._folder}: its newest checkpoint is {self.latest}, but the stage finished at step {step}; put "
                f"{step} back, or delete done.json there and run the stage again, which goes on from what is there"
            )
        self._meta(step, like, stage_hash)
        try:
            items = self._manager.restore(
                step, args=ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(like)))
            )
        except Exception as error:  # Orbax and TensorStore have no error in common.
            raise self._damaged(step, _words(error)) from error
        params: Params = items["params"]
        return params

    def _meta(self, step: int, like: Mapping[str, Any], stage_hash: str) -> dict[str, Any]:
        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        except Exception as error:  # Orbax has no error of its own.
            raise self._damaged(step, _words(error)) from error
        fields = {"hash": str, "tokens": int, "shapes": dict, "bytes": bool, "digest": str}
        for name, kind in fields.items():
            if not isinstance(meta, dict) or not isinstance(meta.get(name), kind):
                raise self._damaged(step, f"its metadata lack {name!r}")
        saved, wanted = meta["shapes"], _shapes(like)
        for name in sorted(saved.keys() | wanted.keys()):
            if saved.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"{self._folder}/{step}: parameter {name} has shape {saved.get(name)} there, but the config asks "
                    f"for {wanted.get(name)}; use the config that wrote it, or another output folder"
                )
        base = meta.get("base", "")
        if base != self._base:
            raise CheckpointError(
                f"{self._folder}/{step}: base = {base!r}: its adapters were trained on that base, but the run "
                f"has base {self._base!r}; use the base that they were trained on, or another output folder"
            )
        if meta["hash"] != stage_hash:
            raise CheckpointError(
                f"{self._folder}/{step}: was trained on other data or with another config (hash {meta['hash']}, now "
                f"{stage_hash}); choose another --out, or delete {self._folder} to train the stage again"
            )
        checked: dict[str, Any] = meta
        return checked

    def _damaged(self, step: int | str, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self._folder}/{step}: cannot be read ({reason}); it is truncated or damaged: delete that folder, the "
            "checkpoint before it is then used"
        )

    def wait(self) -> None:
        """Block until everything that was saved is on disk.

        Raises:
            OSError: the disk is full, used up or read-only.
        """
        with self._space():
            self._manager.wait_until_finished()

    @contextmanager
    def _space(self) -> Iterator[None]:
        """Raise a disk that cannot be written to as its own error: Orbax's writers report it as text."""
        try:
            yield
        except Exception as error:
            for number in _OF_DISKS:
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number), str(self._folder)) from error
            raise

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._manager.close()


def _digest(meta: Mapping[str, Any], loader: Any, controllers: Any) -> str:
    """Return a digest of all JSON values of a checkpoint."""
    return digest({name: value for name, value in meta.items() if name != "digest"}, loader, controllers)


def _damaged_step(folder: epath.Path) -> str:
    """Return the name of the first checkpoint whose own metadata Orbax cannot read."""
    for step in sorted(path for path in folder.iterdir() if path.name.isdigit()):
        try:
            intact = isinstance(json.loads((step / "_CHECKPOINT_METADATA").read_text()), dict)
        except (OSError, ValueError, RecursionError):
            intact = False
        if not intact:
            return str(step.name)
    return "*"


def _words(error: Exception) -> str:
    """Return type and text of an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _shapes(params: Mapping[str, Any]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in params.items()}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=getattr(x, "sharding", None)), tree
    )
