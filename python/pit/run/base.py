"""The base of a run: the model that its models start from, and the one frozen decoder under their adapters.

It is a pretrained language model where the config names one, and has random weights otherwise.
"""

from functools import cache
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh

from pit.config import ConfigError, RunConfig, TemplateConfig, digest
from pit.data.chat import ChatFormat
from pit.data.errors import DataError
from pit.data.tokenizer import Tokenizer
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.model.pretrained import Pretrained
from pit.run.exported import ExportFacts
from pit.seeds import Seed


@cache
def open_pretrained(path: str, adapter: str | None = None) -> Pretrained:
    """Return the pretrained model of a path, with the adapters of a folder if one is given, opened once per process.

    Raises:
        ModelFileError: it is missing, or cannot be read.
    """
    return Pretrained.open(path, adapter)


def pretrained_of(config: RunConfig) -> Pretrained | None:
    """Return the pretrained model that a run starts from, None for random weights.

    Raises:
        ModelFileError: it is missing, or cannot be read.
    """
    return None if config.base.path is None else open_pretrained(config.base.path, config.base.adapter)


def exported_facts(model: Pretrained) -> ExportFacts | None:
    """Return the facts of the run that a model was exported from; None where `pit export` did not write it.

    Raises:
        ConfigError: its config.json holds something else in their place.
    """
    return ExportFacts.of(model.source.config.values, model.source.config.path)


def has_role_tokens(model: Pretrained) -> bool:
    """Return whether a model was exported from a run with PIT's own tokenizer, whose role tokens lay out text."""
    facts = exported_facts(model)
    return facts is not None and facts.roles


def chat_of(model: Pretrained, settings: TemplateConfig) -> tuple[Tokenizer, ChatFormat]:
    """Return the tokenizer and the chat format of a pretrained model.

    Args:
        model: the model.
        settings: `path` names a chat template in the place of the model's own.

    Raises:
        ConfigError: there is no chat template, or the model has PIT's role tokens.
        DataError: the chat template cannot be read, or the tokenizer cannot be used.
        ModelFileError: the model has no tokenizer.
    """
    if has_role_tokens(model):
        raise ConfigError(
            f"base.path = {model.path}: was exported from a run with PIT's own tokenizer, so it has role tokens and no "
            "chat format; start from it with another recipe, for example `pit run hh --model`"
        )
    source = model.chat_template if settings.path is None else _text_of(Path(settings.path))
    if source is None:
        raise ConfigError(
            f"base.path = {model.path}: the model has no chat template; name a jinja file: --set template.path=FILE"
        )
    format = ChatFormat(source, dict(model.special_tokens), model.eos_ids)
    return Tokenizer.pretrained(model.tokenizer().decode()), format


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"template.path = {path}: cannot be read ({error}); name a jinja file") from error


def load_base(config: RunConfig, vocab_size: int, seed: Seed, mesh: Mesh) -> Model[Decoder]:
    """Return the frozen decoder under adapters on the mesh, none of whose weights trains.

    Args:
        config: the run; `base` names the weights and their dtype, `policy` is their shape.
        vocab_size: rows of the embedding.
        seed: root of the run's random numbers.
        mesh: place of the weights.
    """
    pretrained = pretrained_of(config)
    if pretrained is not None:
        loaded = pretrained.load(mesh, config.base.dtype, config.policy)
        return Model(loaded.graphdef, loaded.params, frozenset())
    fresh = Model.build(Decoder, config.policy, vocab_size, _weights(seed).number).sharded(mesh)
    dtype = jnp.dtype(config.base.dtype)
    return Model(fresh.graphdef, {name: value.astype(dtype) for name, value in fresh.params.items()}, frozenset())


def digest_of_base(config: RunConfig, vocab_size: int, seed: Seed) -> str:
    """Return a digest of everything that the weights of `load_base` depend on, without making them.

    It does not depend on where a pretrained model lies.
    """
    pretrained = pretrained_of(config)
    weights = list(_weights(seed).path) if pretrained is None else pretrained.digest
    return digest(config.base.dtype, config.policy, vocab_size, weights)


def _weights(seed: Seed) -> Seed:
    return seed.of("base", "weights")
