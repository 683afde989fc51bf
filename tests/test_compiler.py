"""Flags of compilers that the commands set."""

import os
from importlib.metadata import PackageNotFoundError

import pytest

from pit import compiler


@pytest.fixture(autouse=True)
def no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiler.TPU_FLAGS, raising=False)
    monkeypatch.setattr(compiler, "version", lambda name: "0.0.52")


def test_tpu_programs_share_code_unless_the_user_has_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.share_code()
    compiler.share_code()
    assert os.environ[compiler.TPU_FLAGS] == "--xla_tpu_enable_deduplicated_calls=true"
    for flags in ("", "--xla_tpu_other=1"):
        monkeypatch.setenv(compiler.TPU_FLAGS, flags)
        compiler.share_code()
        assert os.environ[compiler.TPU_FLAGS] == flags


def test_a_libtpu_that_may_not_know_the_flag_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "version", lambda name: "0.0.99")
    compiler.share_code()

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(compiler, "version", absent)
    compiler.share_code()
    assert compiler.TPU_FLAGS not in os.environ
