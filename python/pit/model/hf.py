"""Llama checkpoints in and out, as the folders of config.json and safetensors that Hugging Face's transformers reads.

A language model is a LlamaForCausalLM; a reward model is a LlamaForSequenceClassification with one label, whose score
is read at the last token that is not padding: the closing role token of the answer.
"""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pit.config import ModelConfig
from pit.model.hf_config import CAUSAL, REWARD, ModelFileError, Shape, llama_fields, read_config, read_json, refusal
from pit.model.params import Params

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_READABLE = ("F32", "BF16", "F16")
# Old conversions store the rotary frequencies, which follow from rope_theta.
_DERIVED = ".rotary_emb.inv_freq"


def load_llama(folder: str | Path) -> tuple[ModelConfig, int, Params]:
    """Read a LlamaForCausalLM or a one-label LlamaForSequenceClassification.

    Weights become float32, whatever the file holds (float32, bfloat16 or float16). The parameters fit
    `Decoder(config, vocab_size)`, or `RewardModel(config, vocab_size)` if one of them is named `score`.

    Args:
        folder: holds config.json, and model.safetensors or model.safetensors.index.json with its shards.

    Returns:
        Config, rows of the embedding, and flat parameters.

    Raises:
        ModelFileError: a file is missing or damaged, the architecture has parts that the decoder does not compute, or
            the tensors are not those that the config calls for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelFileError(f"{folder}: no such folder; name one with config.json and {WEIGHTS}")
    shape = read_config(folder / "config.json")
    with ExitStack() as stack:
        tensors = _open_tensors(folder, stack)
        weights = _layout(shape)
        _check_tensors(folder, weights, tensors, shape)
        params = {weight.name: jnp.asarray(weight.from_file(_read(tensors, weight.hf_name))) for weight in weights}
    return shape.config, shape.vocab_size, params


def save_llama(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    vocab_size: int,
    *,
    tokenizer: str | None = None,
    eos_ids: Sequence[int] = (),
    pad_id: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_positions: int = 4096,
) -> None:
    """Write a folder that transformers loads; it appears whole or not at all. Each option is a field of the folder.

    A reward model (its parameters hold `score`) loses its output table if it has one, which no score depends on.

    Args:
        folder: must be missing or empty.
        config: shape of the decoder.
        params: those of a Decoder or a RewardModel, as `pit.model.params.split` names them.
        vocab_size: rows of the embedding.
        tokenizer: text of a tokenizer.json to put beside the weights (`pit.data.tokenizer.Tokenizer.to_json`).
        eos_ids: tokens that end an answer.
        pad_id: token of padding; a reward model needs one, outside `eos_ids`.
        dtype: of the weights in the file.
        max_positions: longest input in tokens that other programs should accept; the weights do not depend on it.

    Raises:
        ModelFileError: the folder is taken, Llama cannot express the config, the parameters are not those of the
            config, or a token id or the tokenizer does not fit.

    Example:
        >>> import tempfile
        >>> from pit.model.decoder import Decoder
        >>> from pit.model.params import build
        >>> config = ModelConfig(width=4, layers=1, heads=2, kv_heads=1, head_dim=2, mlp=3)
        >>> folder = Path(tempfile.mkdtemp()) / "tiny"
        >>> save_llama(folder, config, build(Decoder, config, 7, seed=0)[1], 7, eos_ids=[1], pad_id=2)
        >>> load_llama(folder)[:2] == (config, 7)
        True
    """
    folder = Path(folder)
    shape = Shape(config, vocab_size, REWARD if "score" in params else CAUSAL)
    fields = llama_fields(shape, eos_ids=eos_ids, pad_id=pad_id, dtype=dtype, max_positions=max_positions)
    weights = _layout(shape)
    _check_params(weights, params, shape)
    texts = {"config.json": _json(fields)}
    if tokenizer is not None:
        texts |= {"tokenizer.json": tokenizer, "tokenizer_config.json": _tokenizer_config(tokenizer, fields)}
    with _new_folder(folder) as part:
        for name, text in texts.items():
            (part / name).write_text(text, encoding="utf-8")
        arrays = {weight.hf_name: weight.to_file(np.asarray(params[weight.name]), dtype) for weight in weights}
        save_file(arrays, part / WEIGHTS, metadata={"format": "pt"})
        # The library lets only the owner read it; it gets the mode of any new file.
        (part / WEIGHTS).chmod((part / "config.json").stat().st_mode)


@dataclass(frozen=True)
class _Weight:
    """One parameter under its name and shape here and in the file; torch keeps linear weights as [out, in]."""

    name: str
    shape: tuple[int, ...]
    hf_name: str
    hf_shape: tuple[int, ...]
    transposed: bool = False

    def from_file(self, value: np.ndarray) -> np.ndarray:
        return (value.T if self.transposed else value).reshape(self.shape).astype(np.float32)

    def to_file(self, value: np.ndarray, dtype: str) -> np.ndarray:
        turned = value.reshape(self.hf_shape[::-1]).T if self.transposed else value.reshape(self.hf_shape)
        # safetensors writes the buffer as it lies, strides ignored.
        return np.ascontiguousarray(turned.astype(jnp.dtype(dtype)))


def _layout(shape: Shape) -> list[_Weight]:
    """All parameters of a model: the one place that knows both names."""
    config, vocab, _ = shape
    reward = shape.architecture == REWARD
    d, f = config.width, config.mlp
    n, k, h = config.heads, config.kv_heads, config.head_dim
    own = "decoder." if reward else ""
    weights = [_Weight(f"{own}embedding", (vocab, d), "model.embed_tokens.weight", (vocab, d))]
    for i in range(config.layers):
        here, there = f"{own}layers.{i}", f"model.layers.{i}"
        weights += [
            _Weight(f"{here}.attention_norm.scale", (d,), f"{there}.input_layernorm.weight", (d,)),
            _Weight(f"{here}.attention.q", (d, n, h), f"{there}.self_attn.q_proj.weight", (n * h, d), True),
            _Weight(f"{here}.attention.k", (d, k, h), f"{there}.self_attn.k_proj.weight", (k * h, d), True),
            _Weight(f"{here}.attention.v", (d, k, h), f"{there}.self_attn.v_proj.weight", (k * h, d), True),
            _Weight(f"{here}.attention.o", (n, h, d), f"{there}.self_attn.o_proj.weight", (d, n * h), True),
            _Weight(f"{here}.mlp_norm.scale", (d,), f"{there}.post_attention_layernorm.weight", (d,)),
            _Weight(f"{here}.mlp.gate", (d, f), f"{there}.mlp.gate_proj.weight", (f, d), True),
            _Weight(f"{here}.mlp.up", (d, f), f"{there}.mlp.up_proj.weight", (f, d), True),
            _Weight(f"{here}.mlp.down", (f, d), f"{there}.mlp.down_proj.weight", (d, f), True),
        ]
    weights.append(_Weight(f"{own}final_norm.scale", (d,), "model.norm.weight", (d,)))
    if reward:
        weights.append(_Weight("score", (d,), "score.weight", (1, d)))
    elif not config.tied:
        weights.append(_Weight("output", (vocab, d), "lm_head.weight", (vocab, d)))
    return weights


@dataclass(frozen=True)
class _Tensor:
    """A tensor in an open safetensors file; what the header says about it is read, its data is not."""

    path: Path
    file: Any
    dtype: str
    shape: tuple[int, ...]


def _open_tensors(folder: Path, stack: ExitStack) -> dict[str, _Tensor]:
    """All tensors of a folder by name."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.exists() == index.exists():
        rule = "both are there, and they may differ" if index.exists() else "neither is there"
        remedy = "remove the stale one" if index.exists() else "save the model as safetensors"
        raise ModelFileError(f"{folder}: needs {WEIGHTS} or {INDEX}, {rule}; {remedy}")
    placed = None if single.exists() else _weight_map(index)
    names = [WEIGHTS] if placed is None else sorted(set(placed.values()))
    tensors: dict[str, _Tensor] = {}
    for path in (folder / name for name in names):
        for name, tensor in _open_file(path, stack).items():
            if placed is not None and placed.get(name) != path.name:
                rule = f"{index} places it in {placed.get(name, 'no file')}"
                raise refusal(f"{path}: tensor", name, rule, "fetch the index and its shards again, together")
            tensors[name] = tensor
    absent = sorted(set(placed or ()) - set(tensors))
    if absent:
        raise refusal(f"{index}: weight_map", absent[0], "its file lacks this tensor", "fetch the folder again")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise refusal(f"{index}: weight_map", placed, "must name the file of every tensor", "fetch the file again")
    for file in placed.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise refusal(f"{index}: weight_map", file, "must be the name of a file beside the index", "correct it")
    return placed


def _open_file(path: Path, stack: ExitStack) -> dict[str, _Tensor]:
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; fetch all shards that {INDEX} names")
    try:
        file = stack.enter_context(safe_open(path, framework="numpy"))
    except SafetensorError as error:
        raise ModelFileError(f"{path}: is damaged or no safetensors file ({error}); fetch it again") from error
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    return {name: _Tensor(path, file, each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}


def _read(tensors: Mapping[str, _Tensor], name: str) -> np.ndarray:
    value: np.ndarray = tensors[name].file.get_tensor(name)
    return value


def _check_tensors(folder: Path, weights: Sequence[_Weight], tensors: Mapping[str, _Tensor], shape: Shape) -> None:
    """The tensors are those of the layout, no more and no fewer, before gigabytes of them are read."""
    kind = f"a {shape.architecture} of this config.json"
    for weight in weights:
        tensor = tensors.get(weight.hf_name)
        if tensor is None:
            tie = "set tie_word_embeddings to true if it is the embedding"
            remedy = tie if weight.name == "output" else "fetch the folder again"
            raise ModelFileError(f"{folder}: tensor {weight.hf_name!r} is missing: {kind} has it; {remedy}")
        if tensor.shape != weight.hf_shape:
            rule = f"{kind} has {weight.hf_shape}"
            raise refusal(
                f"{tensor.path}: shape of {weight.hf_name!r}", tensor.shape, rule, "put the right config.json there"
            )
        if tensor.dtype not in _READABLE:
            rule = f"must be one of {', '.join(_READABLE)}"
            raise refusal(f"{tensor.path}: dtype of {weight.hf_name!r}", tensor.dtype, rule, "convert the checkpoint")
    extra = {name for name in tensors if not name.endswith(_DERIVED)} - {weight.hf_name for weight in weights}
    if shape.architecture == CAUSAL and shape.config.tied and "lm_head.weight" in extra:
        # Some tied checkpoints store the table twice.
        extra.remove("lm_head.weight")
        if not np.array_equal(_read(tensors, "lm_head.weight"), _read(tensors, "model.embed_tokens.weight")):
            rule = "config.json ties it to model.embed_tokens.weight, from which it differs"
            raise refusal(f"{folder}: tensor", "lm_head.weight", rule, "set tie_word_embeddings to false")
    if extra:
        raise refusal(f"{folder}: tensor", min(extra), f"{kind} has none of this name", "use a plain Llama")


def _check_params(weights: Sequence[_Weight], params: Params, shape: Shape) -> None:
    for weight in weights:
        if weight.name not in params:
            raise ModelFileError(f"params: {weight.name!r} is missing: its config has it; pass a model of this config")
        if params[weight.name].shape != weight.shape:
            rule = f"its config and vocab_size = {shape.vocab_size} make it {weight.shape}"
            raise refusal(f"params: shape of {weight.name!r}", params[weight.name].shape, rule, "pass the model's own")
    unused = {"decoder.output"} if shape.architecture == REWARD and not shape.config.tied else set()
    extra = set(params) - {weight.name for weight in weights} - unused
    if extra:
        raise refusal("params: name", min(extra), "its config has none such", "pass a model of this config")


def _tokenizer_config(tokenizer: str, fields: Mapping[str, Any]) -> str:
    """Tells transformers to take tokenizer.json as it is; by default it would rebuild a Llama's own."""
    try:
        inner = tokenizers.Tokenizer.from_buffer(tokenizer.encode())
    except ValueError as error:
        raise ModelFileError(
            f"tokenizer: not the text of a tokenizer.json ({error}); pass Tokenizer.to_json()"
        ) from error
    rows = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if rows > fields["vocab_size"]:
        rule = f"must fit into the embedding of {fields['vocab_size']} rows"
        raise refusal("tokenizer: largest id + 1", rows, rule, "pass the tokenizer that the model was trained with")
    eos, pad = fields["eos_token_id"], fields["pad_token_id"]
    first = eos[0] if isinstance(eos, list) else eos
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings["model_max_length"] = fields["max_position_embeddings"]
    pre_tokenizer = json.loads(tokenizer).get("pre_tokenizer") or {}
    if "add_prefix_space" in pre_tokenizer:
        # transformers 4 would turn it off in the tokenizer itself.
        settings["add_prefix_space"] = pre_tokenizer["add_prefix_space"]
    named = {"eos_token": first, "pad_token": pad}
    return _json(settings | {name: inner.id_to_token(each) for name, each in named.items() if each is not None})


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A fresh folder beside `path`, renamed to it on success and removed on failure."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ModelFileError(f"{path}: already exists and is not an empty folder; remove it or name another")
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
