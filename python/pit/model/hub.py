"""Models named on a hub of Hugging Face, fetched into its cache on this machine: `hf:owner/name`.

The environment variables of `huggingface_hub` apply: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.
"""

import os
import re
from pathlib import Path

from pit.model.errors import ModelFileError, refusal
from pit.model.tensor_files import INDEX
from pit.model.token_facts import FILES

SCHEME = "hf:"
_NAME = re.compile(r"hf:(?P<repo>[^/@:]+/[^/@:]+)(/(?P<file>[^@:]+\.gguf))?(@(?P<revision>[^:]+))?")
_PATTERNS = ("config.json", *FILES, INDEX, "model*.safetensors", "adapter_config.json", "adapter_model.safetensors")


def hub_name(path: str | Path) -> str | None:
    """Return the name `owner/name` of a model on a hub: of `hf:owner/name`, or of its place in the cache; else None.

    >>> hub_name("hf:owner/name@main"), hub_name("/c/models--owner--name/snapshots/0a1b"), hub_name("owner/name")
    ('owner/name', 'owner/name', None)
    """
    named = _NAME.fullmatch(str(path))
    if named is not None:
        return named["repo"]
    folders = [re.fullmatch(r"models--(.+?)--(.+)", part) for part in Path(path).parts]
    return next((f"{match[1]}/{match[2]}" for match in folders if match is not None), None)


def fetch(name: str) -> Path:
    """Return the folder or file of a model in the cache; what the cache lacks is downloaded.

    Args:
        name: `hf:owner/name` for a folder with safetensors, `hf:owner/name/FILE.gguf` for a GGUF file; either may end
            in `@revision`.

    Raises:
        ModelFileError: the name has another form, or the model cannot be fetched.
    """
    # Imported here, because a process that fetches nothing starts sooner without it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    parts = _NAME.fullmatch(name)
    if parts is None:
        rule = "must have the form hf:owner/name, hf:owner/name@revision, or hf:owner/name/FILE.gguf"
        raise refusal("model", name, rule, "correct it, or name a folder")
    file = parts["file"]
    try:
        patterns = [file] if file else list(_PATTERNS)
        # The library reads the variable once, when it is imported.
        endpoint = os.environ.get("HF_ENDPOINT")
        folder = Path(
            snapshot_download(parts["repo"], revision=parts["revision"], allow_patterns=patterns, endpoint=endpoint)
        )
    except (OSError, HTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        remedy = "check the name and the network, log in with `hf auth login` if access is granted, or name a folder"
        raise ModelFileError(f"{name}: cannot be fetched ({reason}); {remedy}") from error
    path = folder / file if file else folder
    if not path.exists() or not any(folder.iterdir()):
        raise ModelFileError(f"{name}: has no {file or 'config.json'}; name a file that the model has")
    return path
