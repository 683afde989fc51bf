"""Ends of a command: every error is one clear line and an exit status, whoever raised it.

An `OSError` gets the remedy of its number; an exception that nobody expected is named with its place, and its traceback
goes to a file.
"""

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pit.data._core import CoreError
from pit.errors import PitError

_PACKAGE = Path(__file__).parents[1]

FULL: Mapping[int, str] = MappingProxyType(
    {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
)
"""Errors of a disk that takes no more."""

REMEDIES: Mapping[int, str] = MappingProxyType(
    {
        errno.ENOSPC: "free some space, then run the command again",
        errno.EDQUOT: "free some space or raise the quota, then run the command again",
        errno.EROFS: "mount it writable, or give a folder on another disk",
        errno.ENOENT: "check the path",
        errno.EACCES: "change its permissions, or give a path that you may use",
        errno.EPERM: "change its permissions, or give a path that you may use",
        errno.ENAMETOOLONG: "give a shorter name",
        errno.ENOTDIR: "a file stands where the path needs a folder: move it, or give another path",
        errno.EEXIST: "a file stands in the way: move it, or give another path",
        errno.EISDIR: "a folder stands where the path needs a file: move it, or give another path",
        errno.ENOTEMPTY: "move the contents of the folder, or give another path",
        errno.ELOOP: "its symbolic links lead back to themselves: correct them",
        errno.EMFILE: "allow more open files (ulimit -n 4096)",
        errno.ENFILE: "the system has too many open files: close some programs",
        errno.ENOMEM: "free some memory, or use a machine with more",
        errno.EIO: "the device fails: check the disk, and copy what matters elsewhere",
        errno.ESTALE: "the network disk was remounted: run the command again",
        errno.ENODEV: "check that the disk is mounted",
        errno.ENXIO: "check that the disk is mounted",
        errno.EBUSY: "wait until no other program uses it, then run the command again",
        errno.ETXTBSY: "wait until no other program uses it, then run the command again",
        errno.ENOLCK: "the disk gives no locks: put the run on a local disk",
        errno.EOPNOTSUPP: "the disk cannot do that: put the run on a local disk",
        errno.EINVAL: "check the path, and that its disk is a local one",
        errno.EFBIG: "the disk or a limit (ulimit -f) allows no file of that size: raise it, or use another disk",
        errno.EPIPE: "whoever read the output went away",
        errno.ECONNREFUSED: "check the network, then run the command again",
        errno.ECONNRESET: "check the network, then run the command again",
        errno.ETIMEDOUT: "check the network, then run the command again",
        errno.ENETUNREACH: "check the network, then run the command again",
        errno.EHOSTUNREACH: "check the network, then run the command again",
    }
)
"""Remedies of errors of the operating system, by number."""

_OF_LIBRARIES: Mapping[str, str] = MappingProxyType(
    {
        "RESOURCE_EXHAUSTED": "lower packing.rows or packing.row_length of the stage, or use more devices (mesh.fsdp)",
        "Unable to initialize backend": "correct the environment variable JAX_PLATFORMS, or unset it",
        "Gloo": "another process of this run ended: look at its output, then run the same command on all hosts again",
        "Unknown backend": "correct the environment variable JAX_PLATFORMS, or unset it",
    }
)
"""Words in errors of JAX that users can mend, and what to do."""


def message_of(error: BaseException) -> str:
    """Return the one line about an error: name, value, rule and remedy."""
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, PitError | CoreError | FloatingPointError):
        return str(error)
    if isinstance(error, MemoryError):
        return "the memory of this machine is used up; run fewer jobs at a time (workers = 1), or use a larger machine"
    for words, remedy in _OF_LIBRARIES.items():
        if words in str(error):
            return f"{_first_line(error)}; {remedy}"
    return _unexpected(error)


def fills_disk(error: BaseException) -> bool:
    """Return whether the error is a full disk; writers that still hold data would each complain on the way out."""
    return isinstance(error, OSError) and error.errno in FULL


def _of_system(error: OSError) -> str:
    if error.errno is None:
        # Raised by a library, with a text of its own.
        return f"{_first_line(error)}; check the file or address, then run the command again"
    remedy = REMEDIES.get(error.errno, "mend that, then run the command again")
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name and not isinstance(name, int)]
    if error.errno in FULL:
        return f"{FULL[error.errno]}{f' ({names[0]})' if names else ''}; {remedy}"
    reason = error.strerror or os.strerror(error.errno)
    return f"{' -> '.join(names)}: {reason}; {remedy}" if names else f"{reason}; {remedy}"


def _unexpected(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)] or frames
    place = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    return (
        f"{type(error).__name__}{place}: {_first_line(error)}; PIT did not expect this: please report it with the "
        f"output of `pit env`{_kept_traceback(error)}"
    )


def _kept_traceback(error: BaseException) -> str:
    """Write the traceback to a new file and return words that name it; none where no file can be written."""
    text = "".join(traceback.format_exception(error))
    try:
        handle, name = tempfile.mkstemp(prefix="pit-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{sys.version}\n{text}")
    except OSError:
        return ""
    return f" and {name}, which holds the traceback"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"
