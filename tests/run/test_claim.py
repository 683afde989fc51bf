"""A stage belongs to one process at a time, and is free again when that process ends, however it ends."""

import signal
import subprocess
import sys
import time

import pytest

from pit.run.session import BusyError, claim

HOLDER = """
import sys, time
from pathlib import Path
from pit.run.session import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_another_process_is_refused_and_says_what_to_do(holder, tmp_path):
    with pytest.raises(BusyError) as caught, claim(tmp_path, wait_s=0.2):
        pass
    assert str(caught.value) == (
        f"{tmp_path}: another process has worked on this stage for 0.2 s; wait for it to end or stop it, then run the "
        "command again"
    )


def test_a_killed_process_frees_its_stage_and_who_waits_gets_it(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    with claim(tmp_path, wait_s=30.0):
        pass
    with claim(tmp_path, wait_s=0.0):
        pass
    assert time.monotonic() - begin < 30
