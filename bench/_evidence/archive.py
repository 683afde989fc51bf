"""Raw results of the evidence: one archive per family, with a file of SHA-256 digests that names every member.

An archive is a closed record of what was measured, at the commits that its members name. Equal members give equal
bytes: no time of day, user or order of arrival is stored.
"""

import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pit.atomic import write_file


class ArchiveError(ValueError):
    """An archive that does not match its digests, or a member that would replace another one."""


def archive_of(results: Path, family: str) -> Path:
    """Return the archive of a family; its digests stand in a file with the ending `.sha256`."""
    return results / f"{family}.tar.xz"


def member_name(family: str, seed: int, variant: str) -> str:
    """Return the name of one trial in the archive of its family, and in a folder of loose results.

    >>> member_name("relay", 7, "staged")
    'relay-7-staged.json'
    """
    return f"{family}-{seed}-{variant}.json"


def read_members(archive: Path) -> dict[str, bytes]:
    """Return the content of every member by name; an archive that does not exist has none.

    Raises:
        ArchiveError: a member is missing, unknown, or has another digest than the file of digests says.
    """
    if not archive.is_file():
        return {}
    with tarfile.open(archive, "r:xz") as tar:
        members = {member.name: _content(tar, member) for member in tar.getmembers()}
    lines = _digests(archive).read_text(encoding="utf-8").splitlines()
    listed = {name: digest for digest, name in (line.split() for line in lines)}
    for name in sorted(listed.keys() | members.keys()):
        digest = hashlib.sha256(members[name]).hexdigest() if name in members else "missing"
        if listed.get(name) != digest:
            raise ArchiveError(
                f"{archive}: {name}: SHA-256 is {digest}, {_digests(archive).name} says {listed.get(name, 'nothing')}; "
                "restore both files from the same commit"
            )
    return members


def write_members(archive: Path, members: Mapping[str, bytes]) -> None:
    """Write an archive and its digests, members in the order of their names."""
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in sorted(members.items()):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        write_file(archive, lzma.compress(buffer.getvalue(), preset=6))
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(members.items())]
    write_file(_digests(archive), "".join(lines).encode())


def add_members(archive: Path, members: Mapping[str, bytes]) -> int:
    """Add members to an archive and return how many are new.

    Raises:
        ArchiveError: the archive has a member of the same name with other content.
    """
    known = read_members(archive)
    changed = sorted(name for name in known.keys() & members.keys() if known[name] != members[name])
    if changed:
        raise ArchiveError(
            f"{archive}: {', '.join(changed)}: the archive has other results of the same name; remove the new files "
            "or give the new study a family or seeds of its own"
        )
    new = members.keys() - known.keys()
    if new:
        write_members(archive, {**known, **members})
    return len(new)


def read_trials(archive: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """Return the results of an archive by (seed, variant)."""
    results = (json.loads(content) for content in read_members(archive).values())
    return {(result["seed"], result["variant"]): result for result in results}


def _digests(archive: Path) -> Path:
    return archive.with_name(archive.name.removesuffix(".tar.xz") + ".sha256")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise ArchiveError(f"{member.name}: the member is not a file; restore the archive from a commit")
    return file.read()
