"""The command `pit serve`, and the options of commands that use the server of another model."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pit.cli.options import open_run, run_option, search_options
from pit.config import ConfigError
from pit.types import Message

MOST_NAMES = 10
"""Models of a server that an error names."""

POLICY_TIMEOUT_S = 300.0
"""Seconds until an attempt to get an answer of another server is given up."""

NEEDED = ("starlette", "uvicorn")
"""Packages that the command needs, the extra `serve`."""


@click.command("serve")
@run_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@search_options
@click.option("--batch", type=click.IntRange(min=1), help="Most answers that are drawn together [the run's config].")
@click.option("--queue", "room", type=click.IntRange(min=16), default=256, show_default=True, help="Most that wait.")
@click.option("--api-key-env", metavar="VAR", help="Environment variable with the key that requests must have.")
@click.option(
    "--drain", "drain_s", type=click.FloatRange(0, 3600), default=30.0, show_default=True,
    help="Seconds that requests get to end after SIGTERM or Ctrl-C.",
)  # fmt: skip
@click.option(
    "--warmup", "warm", is_flag=True,
    help="Compile for batches of many sizes before the first request, for about a minute.",
)  # fmt: skip
# Nine parameters: the options of the command.
def serve(
    folder: Path,
    host: str,
    port: int,
    room: int,
    api_key_env: str | None,
    drain_s: float,
    warm: bool,
    budget: int | None,
    **changes: Any,
) -> None:
    r"""Serve a finished run over HTTP, as OpenAI's chat API has it.

    The model `policy` answers; `improved` answers and improves the answer, or improves the assistant's message that
    the conversation ends with. Needs the extra `serve`: pip install 'pit-jax[serve]'.

    Example:
      pit serve --run runs/demo
      curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{"model": "improved",
        "messages": [{"role": "user", "content": "Describe this red small cheap lamp: price and size. End fondly."}]}'
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"pit serve needs {' and '.join(missing)}, which this Python lacks; install the extra: "
            "pip install 'pit-jax[serve]'"
        )
    from pit.serve.server import Address, serve

    key = key_from(api_key_env)
    given = {name: value for name, value in changes.items() if value is not None}
    serve(open_run(folder), given, Address(host, port, key, room, drain_s), budget=budget, warm=warm)


def key_from(variable: str | None) -> str | None:
    """Return the key in an environment variable; None where no variable is named.

    Raises:
        ConfigError: the variable is not set, or empty, or holds a character that no header can hold.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"--api-key-env = {variable}: is not set or empty; set it to the key: export {variable}=...")
    wrong = next((place for place, character in enumerate(key, 1) if not "!" <= character <= "~"), None)
    if wrong is not None:
        raise ConfigError(
            f"--api-key-env = {variable}: character {wrong} of the key is a space, a line end or not ASCII, which a "
            "header with a key cannot hold; set it to the key alone"
        )
    return key


def policy_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name the server of another policy."""
    url = click.option("--policy", metavar="URL", help="Let a server with OpenAI's chat API give the first answers.")
    model = click.option("--policy-model", metavar="NAME", help="Its model [the only one that it has].")
    key = click.option("--api-key-env", metavar="VAR", help="Environment variable with the server's API key.")
    return url(model(key(command)))


def policy_of(
    url: str | None, model: str | None, variable: str | None, temperature: float | None
) -> Callable[[tuple[Message, ...]], str] | None:
    """Return a function that lets a server answer; None where no server is named.

    Args:
        url: base URL of the server.
        model: its model; the only one that it has if not given.
        variable: environment variable with its key.
        temperature: temperature that is asked for; the server's own if not given.

    Raises:
        click.UsageError: there is no URL, but another option of a server.
        ConfigError: the key is not set, or it is not clear which model is meant.
        ChatError: the server cannot be asked for its models.
    """
    if url is None:
        if model is not None or variable is not None:
            raise click.UsageError("--policy-model and --api-key-env belong to --policy URL; give it too.")
        return None
    from pit.chat_client import ChatClient

    key = key_from(variable)
    if model is None:
        names = ChatClient(url, "", key=key).models()
        if len(names) != 1:
            told = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "") or "none"
            raise ConfigError(f"--policy = {url}: has the models {told}; name one of them with --policy-model")
        model = names[0]
    client = ChatClient(url, model, key=key, timeout_s=POLICY_TIMEOUT_S)
    parameters = {} if temperature is None else {"temperature": temperature}
    return lambda messages: client.complete(messages, **parameters).text
