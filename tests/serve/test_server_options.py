"""Options of servers: which server and model are asked, under which settings, and what is refused."""

import importlib.util
import json

import click
import pytest
from click.testing import CliRunner
from test_chat_client import GOOD, Server

from pit.cli.serve import MOST_NAMES, key_from, policy_of, serve
from pit.config import ConfigError
from pit.types import Message

HELLO = (Message("user", "Hello?"),)


def listed(*names: str) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps({"data": [{"id": name} for name in names]}).encode()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PIT_TEST_KEY", " secret\n")
    return "PIT_TEST_KEY"


def test_the_only_model_answers_with_the_servers_own_settings(key: str) -> None:
    server = Server(listed("other"), GOOD)
    with server.started() as url:
        ask = policy_of(url, None, key, None)
        assert ask is not None
        assert ask(HELLO) == "Hi."
    (listing, asking) = server.requests
    assert listing[1]["Authorization"] == asking[1]["Authorization"] == "Bearer secret"
    assert asking[2] == {"model": "other", "messages": [{"role": "user", "content": "Hello?"}]}


def test_a_named_model_is_not_looked_up_and_a_temperature_is_asked_for() -> None:
    server = Server(GOOD)
    with server.started() as url:
        ask = policy_of(url, "mine", None, 0.5)
        assert ask is not None
        ask(HELLO)
    ((path, _, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("mine", 0.5)


@pytest.mark.parametrize(
    ("names", "told"), [((), "none"), (("a", "b"), "a, b"), (tuple("abcdefghijkl"), ", ".join("abcdefghij") + ", ...")]
)
def test_one_of_several_models_must_be_named(names: tuple[str, ...], told: str) -> None:
    assert MOST_NAMES == 10
    with Server(listed(*names)).started() as url, pytest.raises(ConfigError) as error:
        policy_of(url, None, None, None)
    assert str(error.value) == f"--policy = {url}: has the models {told}; name one of them with --policy-model"


def test_without_a_server_its_other_options_are_refused() -> None:
    assert policy_of(None, None, None, None) is None
    for options in (("m", None), (None, "VAR")):
        with pytest.raises(click.UsageError, match="belong to --policy URL"):
            policy_of(None, *options, None)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    present = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else present(name))
    result = CliRunner().invoke(serve, ["--run", "runs/none"])
    assert str(result.exception) == (
        "pit serve needs uvicorn, which this Python lacks; install the extra: pip install 'pit-jax[serve]'"
    )


def test_a_key_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_from(None) is None
    for value in (None, "", " "):
        if value is None:
            monkeypatch.delenv("PIT_TEST_KEY", raising=False)
        else:
            monkeypatch.setenv("PIT_TEST_KEY", value)
        with pytest.raises(ConfigError, match="PIT_TEST_KEY: is not set or empty; set it to the key"):
            key_from("PIT_TEST_KEY")


@pytest.mark.parametrize(
    ("value", "place"), [("two\nlines", 4), ("a b", 2), ("caf\u00e9", 4), ("\u202ekey", 1), ("k\x7f", 2)]
)
def test_a_key_that_no_header_holds_is_refused_and_not_repeated(
    value: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIT_TEST_KEY", value)
    with pytest.raises(ConfigError) as error:
        key_from("PIT_TEST_KEY")
    assert str(error.value) == (
        f"--api-key-env = PIT_TEST_KEY: character {place} of the key is a space, a line end or not ASCII, which a "
        "header with a key cannot hold; set it to the key alone"
    )
