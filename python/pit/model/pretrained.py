"""Pretrained models in: a folder of transformers or a GGUF file as one value, read without more than is asked for.

`pit.model.saving` writes folders. Everything here holds for all families; their differences are in
`pit.model.families`.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from pit.config import ModelConfig
from pit.model.adapted_source import AdaptedSource, base_of, is_adapter
from pit.model.decoder import Decoder
from pit.model.errors import ModelFileError, refusal
from pit.model.gguf_file import GgufFile
from pit.model.hub import SCHEME, fetch
from pit.model.layout import Weight
from pit.model.model import Model
from pit.model.params import Params
from pit.model.saving import save_pretrained
from pit.model.shape import Shape, check_tensors, read_shape
from pit.model.source import HfFolder, Source
from pit.model.tensor_files import Tensor
from pit.model.token_facts import TokenFacts

__all__ = ["Pretrained", "load_pretrained", "save_pretrained"]

_PIECE = 64 * 2**20
"""Bytes of a file that are hashed at a time; pieces are hashed on several cores."""

_AHEAD = 2
"""Tensors that are read while one is placed."""


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A pretrained language model in its files; its weights are read by `load`.

    Example:
        >>> import tempfile
        >>> from pit.model.params import build
        >>> config = ModelConfig(width=4, layers=1, heads=2, kv_heads=1, head_dim=2, mlp=3)
        >>> folder = Path(tempfile.mkdtemp()) / "tiny"
        >>> save_pretrained(folder, config, build(Decoder, config, 7, seed=0)[1], 7, eos_ids=[1])
        >>> pretrained = Pretrained.open(folder)
        >>> pretrained.config == config, pretrained.vocab_size, pretrained.eos_ids, pretrained.chat_template
        (True, 7, (1,), None)
    """

    source: Source
    shape: Shape
    tokens: TokenFacts

    def __repr__(self) -> str:
        return f"Pretrained({str(self.path)!r})"

    @classmethod
    def open(cls, path: str | Path, adapter: str | Path | None = None) -> "Pretrained":
        """Open a model and check its config and the headers of its tensors; no weight is read.

        Args:
            path: a folder with config.json and model.safetensors, or model.safetensors.index.json with its shards; or
                a GGUF file, whose quantised tensors are dequantised; or a name on a hub, `hf:owner/name` (see
                `pit.model.hub.fetch`); or a folder of PEFT, whose adapters are merged into the model that it names.
            adapter: a folder of PEFT, or its name on a hub, whose adapters are merged into the model.

        Raises:
            ModelFileError: a file is missing or damaged, no family has the architecture, the decoder does not compute
                all parts of it, or the tensors differ from those of the config.
        """
        source = _source(path, adapter)
        shape = read_shape(source.config)
        if shape.reward:
            rule = "a run starts from a language model (...ForCausalLM)"
            raise source.config.refusal("architectures", [shape.architecture], rule, "name the model it was made from")
        with ExitStack() as stack:
            check_tensors(source.path, source.tensors(stack), shape)
        return cls(source, shape, source.token_facts(shape.vocab_size))

    @classmethod
    def described(cls, path: Path) -> "Pretrained":
        """Return a model of which only config.json is there; its shape can be asked for, and nothing else.

        Raises:
            ModelFileError: there is no config.json, or no family has its architecture.
        """
        source = HfFolder.open(path)
        return cls(source, read_shape(source.config), TokenFacts(None, {}, None, ()))

    @property
    def path(self) -> Path:
        """The folder or the file."""
        return self.source.path

    @property
    def config(self) -> ModelConfig:
        """Shape of the decoder; `compute_dtype`, `remat` and `longest_path` have their defaults."""
        return self.shape.config

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; may exceed the largest token id."""
        return self.shape.vocab_size

    @property
    def chat_template(self) -> str | None:
        """The jinja text that renders a conversation, or None."""
        return self.tokens.chat_template

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Text of bos_token, eos_token, pad_token and unk_token, as far as the tokenizer has them."""
        return self.tokens.special_tokens

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer, as generation_config.json, config.json or the tokenizer names them."""
        return self.tokens.eos_ids

    @property
    def bos_id(self) -> int | None:
        """Token that opens a text, or None."""
        return self.tokens.bos_id

    @cached_property
    def digest(self) -> str:
        """Hex digest of all bytes that anything here is read from: config, weights, tokenizer, template.

        It reads every file once (about a second per gigabyte and core), and does not depend on where they lie.
        """
        total = hashlib.blake2b(digest_size=16)
        for name, path in sorted(self.source.files().items()):
            total.update(f"{name}\0{_hash_of(path)}\0".encode())
        return total.hexdigest()

    @property
    def adapted(self) -> tuple[AdaptedSource, ...]:
        """Folders of adapters that are merged into the model, the last one first."""
        folders: list[AdaptedSource] = []
        source = self.source
        while isinstance(source, AdaptedSource):
            folders.append(source)
            source = source.base
        return tuple(folders)

    @property
    def unadapted(self) -> Path:
        """The folder or the file of the model under all adapters."""
        return self.adapted[-1].base.path if self.adapted else self.path

    @property
    def dequantised(self) -> tuple[str, ...]:
        """Types of quantised tensors that `load` dequantises, in the words of ggml; empty for none."""
        return self.source.dequantised

    def tokenizer(self) -> bytes:
        """Return the content of a tokenizer.json of the `tokenizers` library.

        Raises:
            ModelFileError: the model comes without one.
        """
        return self.source.tokenizer()

    def load(
        self, mesh: Mesh, dtype: Literal["float32", "bfloat16"] = "float32", config: ModelConfig | None = None
    ) -> Model[Decoder]:
        """Read the weights, one tensor after the other, each straight onto the devices that hold its shards.

        The host holds a few tensors at a time, and no device more than its own shards.

        Args:
            mesh: devices, see `pit.model.sharding.make_mesh`.
            dtype: of all weights in memory.
            config: `self.config` with other fields that no weight depends on, such as `compute_dtype`; None for it.

        Raises:
            ModelFileError: the files changed since `open`, or the config has other weights.
            ConfigError: an axis of the mesh does not divide a weight.
        """
        config = self.config if config is None else config
        graphdef, places = Model.abstract(Decoder, config, self.vocab_size, mesh)
        weights = {weight.name: weight for weight in self.shape.weights}
        shapes = {name: weight.shape for name, weight in weights.items()}
        if shapes != {name: place.shape for name, place in places.items()}:
            raise refusal("config", config, f"{self.path} has other weights", "change only fields without weights")
        with ExitStack() as stack:
            tensors = self.source.tensors(stack)
            check_tensors(self.path, tensors, self.shape)
            values = _read_ahead([tensors[weights[name].file_name] for name in places])
            params = {
                name: _placed(weights[name], value, place, dtype)
                for (name, place), value in zip(places.items(), values, strict=True)
            }
        return Model(graphdef, params)


def _read_ahead(tensors: Sequence[Tensor]) -> Iterator[np.ndarray]:
    """Yield the data of the tensors in order, and read (or dequantise) the next ones meanwhile."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        waiting = deque(pool.submit(tensor.read) for tensor in tensors[:_AHEAD])
        for tensor in tensors[_AHEAD:]:
            value = waiting.popleft().result()
            waiting.append(pool.submit(tensor.read))
            yield value
        while waiting:
            yield waiting.popleft().result()


def _placed(weight: Weight, value: np.ndarray, place: jax.ShapeDtypeStruct, dtype: str) -> Array:
    """Return a parameter whose shards are cut from a tensor of the file and converted one by one."""
    value = weight.from_file(value)

    def shard(index: Any) -> np.ndarray:
        return np.array(value[index], dtype=jnp.dtype(dtype), order="C")

    return jax.make_array_from_callback(weight.shape, place.sharding, shard)


def load_pretrained(folder: str | Path) -> tuple[ModelConfig, int, Params]:
    """Read a language model (...ForCausalLM) or a reward model (...ForSequenceClassification with one label).

    Weights become float32 on the default device, whatever the file holds (float32, bfloat16 or float16). The
    parameters fit `Decoder(config, vocab_size)`, or `RewardModel(config, vocab_size)` if one of them is named `score`.

    Args:
        folder: holds config.json, and model.safetensors or model.safetensors.index.json with its shards.

    Returns:
        Config, rows of the embedding, and flat parameters.

    Raises:
        ModelFileError: a file is missing or damaged, no family has the architecture, the decoder does not compute all
            parts of it, or the tensors differ from those of the config.
    """
    source = _source(folder)
    shape = read_shape(source.config)
    with ExitStack() as stack:
        tensors = source.tensors(stack)
        check_tensors(source.path, tensors, shape)
        params = {
            weight.name: jnp.asarray(weight.from_file(tensors[weight.file_name].read()).astype(np.float32))
            for weight in shape.weights
        }
    return shape.config, shape.vocab_size, params


def _source(path: str | Path, adapter: str | Path | None = None) -> Source:
    """Return what a path or a name on a hub stands for."""
    place = _place(path)
    if adapter is not None:
        return AdaptedSource(_source(place), _place(adapter), place)
    if is_adapter(place):
        return AdaptedSource(_source(base_of(place)), place, place)
    return GgufFile.open(place) if place.suffix == ".gguf" else HfFolder.open(place)


def _place(path: str | Path) -> Path:
    return fetch(str(path)) if str(path).startswith(SCHEME) else Path(path)


def _hash_of(path: Path) -> str:
    """Return the digest of a file: of the digests of its pieces, which are read on several cores."""

    def piece(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.blake2b(file.read(_PIECE), digest_size=32).digest()

    try:
        with ThreadPoolExecutor() as pool:
            pieces = pool.map(piece, range(0, path.stat().st_size, _PIECE))
            return hashlib.blake2b(b"".join(pieces), digest_size=32).hexdigest()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}); fetch it again") from error
