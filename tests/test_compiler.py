"""Flags of compilers that the commands set."""

import os

import pytest

from pit import compiler


def test_tpu_programs_share_code_unless_the_user_has_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiler.TPU_FLAGS, raising=False)
    compiler.share_code()
    compiler.share_code()
    assert os.environ[compiler.TPU_FLAGS] == "--xla_tpu_enable_deduplicated_calls=true"
    for flags in ("", "--xla_tpu_other=1"):
        monkeypatch.setenv(compiler.TPU_FLAGS, flags)
        compiler.share_code()
        assert os.environ[compiler.TPU_FLAGS] == flags
