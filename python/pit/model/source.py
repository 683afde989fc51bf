"""Places that a pretrained model comes from, as one interface: files to hash, config, tokens and tensors.

`HfFolder` is a folder of transformers; `pit.model.gguf_file` has the one for a GGUF file.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from pit.model.config_json import ConfigJson, read_json
from pit.model.errors import ModelFileError
from pit.model.tensor_files import WEIGHTS, Tensor, open_tensors, tensor_paths
from pit.model.token_facts import FILES, TOKENIZER, TokenFacts, read_token_facts


@runtime_checkable
class Source(Protocol):
    """Files of a pretrained model, read as transformers names its fields and tensors."""

    @property
    def path(self) -> Path:
        """The folder or the file."""
        ...

    @property
    def config(self) -> ConfigJson:
        """Fields of config.json."""
        ...

    @property
    def dequantised(self) -> tuple[str, ...]:
        """Types of quantised tensors that are dequantised, in the words of ggml."""
        ...

    def files(self) -> Mapping[str, Path]:
        """Return every file that anything is read from, under a name that does not depend on where it lies."""
        ...

    def token_facts(self, vocab_size: int) -> TokenFacts:
        """Return the facts about the tokens."""
        ...

    def tokenizer(self) -> bytes:
        """Return the content of a tokenizer.json."""
        ...

    def tensors(self, stack: ExitStack) -> Mapping[str, Tensor]:
        """Return all tensors by name; they can be read as long as the stack is open."""
        ...


@dataclass(frozen=True)
class HfFolder:
    """A folder as transformers' save_pretrained writes it."""

    path: Path
    config: ConfigJson

    @classmethod
    def open(cls, path: Path) -> "HfFolder":
        """Return the folder at a path.

        Raises:
            ModelFileError: there is no folder, or it has no config.json.
        """
        if not path.is_dir():
            raise ModelFileError(f"{path}: no such folder; name one with config.json and {WEIGHTS}")
        return cls(path, ConfigJson(path / "config.json", read_json(path / "config.json")))

    @property
    def dequantised(self) -> tuple[str, ...]:
        """No quantised folder is read."""
        return ()

    def files(self) -> dict[str, Path]:
        """Return config.json, the files of tensors, and those of the tokenizer that exist."""
        optional = {name: self.path / name for name in FILES if (self.path / name).is_file()}
        tensors = {path.name: path for path in tensor_paths(self.path)}
        return {"config.json": self.config.path, **optional, **tensors}

    def token_facts(self, vocab_size: int) -> TokenFacts:
        """Return the facts about the tokens."""
        return read_token_facts(self.path, self.config, vocab_size)

    def tokenizer(self) -> bytes:
        """Return the content of tokenizer.json.

        Raises:
            ModelFileError: the folder has none.
        """
        path = self.path / TOKENIZER
        if not path.is_file():
            remedy = "save the tokenizer again with transformers' fast tokenizers, or choose a folder that has one"
            raise ModelFileError(f"{path}: no such file; {remedy}")
        return path.read_bytes()

    def tensors(self, stack: ExitStack) -> Mapping[str, Tensor]:
        """Return all tensors by name; they can be read as long as the stack is open."""
        return open_tensors(self.path, stack)
