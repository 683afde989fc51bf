"""Processes that meet, agree, miss one of them, and end together: real ones, without devices."""

import signal
from pathlib import Path

import pytest
from many import Together, finished

from pit import processes
from pit.processes import Members, ProcessError

PROGRAM = Path(__file__).parent / "meetings.py"


def test_two_processes_agree_and_the_first_works_for_both(tmp_path: Path) -> None:
    outputs = finished([PROGRAM, "agreement", tmp_path], 2)
    for output in outputs:
        assert output.splitlines()[-3:] == ["False True False", "of 0", "['by-0']"]


def test_hosts_without_a_common_disk_get_copies_through_the_bucket(tmp_path: Path) -> None:
    stale = tmp_path / "host-1" / "stages" / "before"
    stale.mkdir(parents=True)
    (stale / "done.json").touch()
    (stale / "metrics.jsonl").touch()
    with Together([PROGRAM, "copies", tmp_path], 2) as together:
        statuses, outputs = together.wait(120)
    assert statuses == [1, 1]
    names = "['config.json', 'refresh/pairs.jsonl', 'stages/sft/done.json', 'store/input.arrow', 'store/manifest.json']"
    assert f"{names} False\n" in outputs[0]
    # What process 0 has not is no part of the run; logs of a host's own are left alone.
    assert f"{names} True\n" in outputs[1]
    message = "process 0 has it, and this process does not see it; give a folder that all hosts share: --out FOLDER, or"
    assert f"error: {tmp_path}/host-1/search.json: {message}" in outputs[1]


def test_all_hear_that_one_has_another_value(tmp_path: Path) -> None:
    with Together([PROGRAM, "difference", tmp_path], 2) as together:
        statuses, outputs = together.wait()
    assert statuses == [1, 1]
    for output in outputs:
        assert (
            "error: config: process 1 has value 1, but process 0 has value 0; give all processes the same command, but "
            "for --process, and the same files\n"
        ) in output


def test_an_error_of_the_first_process_ends_the_others_that_wait_for_it(tmp_path: Path) -> None:
    with Together([PROGRAM, "alone", tmp_path], 2) as together:
        statuses, outputs = together.wait(60)
    assert statuses == [1, 1]
    assert "error: the file is gone\n" in outputs[0]
    assert "process 0 failed: the file is gone; run the same command on all hosts again" in outputs[1]


def test_who_does_not_come_is_named(tmp_path: Path) -> None:
    with Together([PROGRAM, "absent", tmp_path], 2, PIT_STALL_S="2") as together:
        statuses, outputs = together.wait(55)
    assert statuses == [1, 1]
    message = "step 3: process 1 of 2 did not come within 2 s; look at its output, then start all again"
    assert f"error: {message}\n" in outputs[0]
    assert f"process 1: process 0 failed: {message}" in outputs[1]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(victim: int, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text(str(victim))
    with Together([PROGRAM, "killed", tmp_path], 2, PIT_HEARTBEAT_S="5") as together:
        statuses, _ = together.wait(120)
    assert statuses[victim] == -signal.SIGKILL
    # An error status, or that of an abort: JAX itself ends a process whose others are gone.
    assert statuses[1 - victim] != 0


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            Members("host0:1234", 4, None),
            "--coordinator = host0:1234, --processes = 4, --process = None: must be given all three; for example "
            "--coordinator HOST:1234 --processes 4 --process 0",
        ),
        (
            Members("host0", 4, 0),
            "--coordinator = 'host0': must be HOST:PORT of process 0; for example host0:1234",
        ),
        (Members("host0:1234", 4, 4), "--process = 4: must be from 0 to 3, as --processes = 4"),
    ],
)
def test_members_that_are_no_group_are_refused(members: Members, message: str) -> None:
    with pytest.raises(ProcessError) as caught:
        processes.start(members)
    assert str(caught.value) == message


def test_a_program_of_one_process_waits_for_nobody(tmp_path: Path) -> None:
    assert (processes.many(), processes.first()) == (False, True)
    assert processes.agreed(True, "stop")
    assert not processes.agreed(False, "stop")
    assert processes.from_first(lambda: b"own", "value") == b"own"
    processes.by_first(lambda: (tmp_path / "made").touch(), "file")
    processes.meet("end")
    processes.require_same("config", "any")
    assert (tmp_path / "made").exists()
