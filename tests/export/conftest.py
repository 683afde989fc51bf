"""A run on a small chat model with adapters in every stage, and what it exports; tests read them and change nothing."""

from pathlib import Path

import finished_run
import pytest

from pit.export import export
from pit.run.folder import Run
from pit.stages import reward, rl, rl_iterated


@pytest.fixture(scope="package")
def run(tmp_path_factory) -> Run:
    """Adapters in every stage, on a chat model, and a request that is not the default."""
    changes = *finished_run.ADAPTERS, "template.request=Write it once more."
    run = finished_run.chat_run(tmp_path_factory.mktemp("chat"), "chatml", *changes)
    return finished_run.finish(run, "rl-policy", "rl-improver-1", "reward-gap")


@pytest.fixture(scope="package")
def improver(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "improver"
    export(run, rl_iterated.IMPROVER_1, folder)
    return folder


@pytest.fixture(scope="package")
def gap(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "gap"
    export(run, reward.GAP, folder)
    return folder


@pytest.fixture(scope="package")
def adapter(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "lora"
    export(run, rl.POLICY, folder, form="adapter")
    return folder
