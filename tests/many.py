"""Several real processes of one command on this machine, each with its own CPU device, joined by gloo."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from compiling import users_environment

LONG_S = 1500.0


def free_port() -> int:
    """Return a port that nobody listens on at the moment."""
    with socket.socket() as open_one:
        open_one.bind(("localhost", 0))
        port: int = open_one.getsockname()[1]
        return port


def environment(devices: int, **more: str) -> dict[str, str]:
    """Return a user's environment with a number of CPU devices per process; every compilation is worth keeping."""
    return {
        **users_environment(devices),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **more,
    }


class Together:
    """Processes of one program; killed at the end of the block if they still run.

    Args:
        command: Python's arguments, without those that say which process it is; "{process}" in one is its number.
        count: number of processes.
        devices: devices of each.
        more: environment variables.
    """

    def __init__(self, command: Sequence[object], count: int, *, devices: int = 1, **more: str) -> None:
        group = [f"--coordinator=localhost:{free_port()}", f"--processes={count}"]
        self.processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    *(str(word).replace("{process}", str(number)) for word in command),
                    *group,
                    f"--process={number}",
                ],
                env=environment(devices, **more),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(count)
        ]

    def wait(self, timeout_s: float = LONG_S) -> tuple[list[int], list[str]]:
        """Return exit statuses and outputs of all processes."""
        outputs = [process.communicate(timeout=timeout_s)[0] for process in self.processes]
        return [process.returncode for process in self.processes], outputs

    # Six parameters: where and when, and what is sent to whom.
    def signal_after(
        self, log: Path, lines: int, process: int, number: signal.Signals, *, later_s: float = 0.0
    ) -> None:
        """Send a signal to one process as soon as a file has so many lines, or some seconds later."""
        deadline = time.monotonic() + LONG_S
        while not (log.exists() and log.read_bytes().count(b"\n") >= lines):
            assert time.monotonic() < deadline, f"{log} did not get {lines} lines"
            assert all(p.poll() is None for p in self.processes), [p.communicate()[0][-2000:] for p in self.processes]
            time.sleep(0.02)
        time.sleep(later_s)
        self.processes[process].send_signal(number)

    def __enter__(self) -> "Together":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def finished(command: Sequence[object], count: int, *, devices: int = 1, **more: str) -> list[str]:
    """Run a command in several processes to its end; return their outputs."""
    with Together(command, count, devices=devices, **more) as together:
        statuses, outputs = together.wait()
    assert statuses == [0] * count, "\n".join(output[-2000:] for output in outputs)
    return outputs


def metrics(folder: Path, stage: str) -> list[dict[str, float]]:
    """Return what a stage of a run measured, line by line, times apart."""
    lines = (folder / "stages" / stage / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("perf/")} for line in lines]


def draws(folder: Path, stage: str) -> list[tuple[list[int], list[int]]]:
    """Return the examples and sources that a stage of a run drew, step by step."""
    path = folder / "stages" / stage / "draws.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["id"], line["source"]) for line in lines]


def require_close(one: Path, other: Path, stage: str) -> None:
    """Raise unless a stage of two runs drew the same and measured the same, up to the rounding of sums."""
    assert draws(one, stage) == draws(other, stage)
    lines, like = metrics(one, stage), metrics(other, stage)
    assert [line.keys() for line in lines] == [line.keys() for line in like]
    for line, reference in zip(lines, like, strict=True):
        for name, value in line.items():
            message = f"{stage}: {name} of step {line['step']}"
            np.testing.assert_allclose(value, reference[name], rtol=1e-2, atol=1e-3, err_msg=message)
