"""The base of a run: models start from the pretrained weights that the config names, shared where they are frozen."""

import dataclasses

import numpy as np
import pytest

from pit.config import AdapterConfig, BaseConfig, RunConfig
from pit.model.decoder import Decoder
from pit.model.errors import ModelFileError
from pit.model.params import build
from pit.model.pretrained import save_pretrained
from pit.recipes.demo import tiny
from pit.run.folder import Run
from pit.stages import reward, sft

VOCAB = 40


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A pretrained folder of the shape of `tiny`, and its weights."""
    folder = tmp_path_factory.mktemp("models") / "small"
    params = build(Decoder, tiny().policy, VOCAB, seed=7)[1]
    save_pretrained(folder, tiny().policy, params, VOCAB, eos_ids=[1])
    return folder, {name: np.asarray(value) for name, value in params.items()}


def run_of(folder, tmp_path, **sections) -> Run:
    """A run that starts from a folder; it needs no data until something is trained."""
    config: RunConfig = dataclasses.replace(tiny(), base=BaseConfig(path=str(folder)), **sections)
    return Run(tmp_path, config)


def adapters(config: RunConfig) -> dict[str, object]:
    """Sections of two stages, with adapters."""
    adapter = AdapterConfig(rank=2)
    return {name: dataclasses.replace(getattr(config, name), adapter=adapter) for name in ("sft_policy", "reward_gap")}


def test_without_adapters_models_train_copies_of_the_pretrained_weights(weights, tmp_path):
    folder, saved = weights
    run = run_of(folder, tmp_path)
    policy, gap = sft.POLICY.fresh(run), reward.GAP.fresh(run)
    assert policy.trained.keys() == saved.keys()
    assert gap.trained.keys() == {"score", *(f"decoder.{name}" for name in saved)}
    for name, value in saved.items():
        np.testing.assert_array_equal(policy.params[name], value)
        np.testing.assert_array_equal(gap.params[f"decoder.{name}"], value)
        assert gap.params[f"decoder.{name}"] is not policy.params[name]
    quality = reward.QUALITY.fresh(run)
    assert not np.array_equal(quality.params["score"], gap.params["score"])


def test_with_adapters_models_share_the_frozen_pretrained_weights(weights, tmp_path):
    folder, saved = weights
    run = run_of(folder, tmp_path, **adapters(tiny()))
    policy, gap = sft.POLICY.fresh(run), reward.GAP.fresh(run)
    for name, value in saved.items():
        assert policy.params[name] is run.base.params[name] is gap.params[f"decoder.{name}"]
        np.testing.assert_array_equal(policy.params[name], value)
        assert name not in policy.trained
    # A is random and B is 0: the model starts as the pretrained one.
    assert all(not np.any(value) for name, value in policy.trained.items() if name.endswith(".b"))


def test_frozen_weights_may_be_bfloat16_and_trained_ones_are_not(weights, tmp_path):
    run = run_of(weights[0], tmp_path, **adapters(tiny()))
    half = Run(tmp_path, dataclasses.replace(run.config, base=dataclasses.replace(run.config.base, dtype="bfloat16")))
    policy, improver = sft.POLICY.fresh(half), sft.IMPROVER.fresh(half)
    assert {str(value.dtype) for value in policy.frozen.values()} == {"bfloat16"}
    assert {str(value.dtype) for value in (*policy.trained.values(), *improver.params.values())} == {"float32"}


def test_the_digest_is_of_the_bytes_and_not_of_the_place(weights, tmp_path):
    folder, _ = weights
    params = build(Decoder, tiny().policy, VOCAB, seed=7)[1]
    moved, other = tmp_path / "moved", tmp_path / "other"
    save_pretrained(moved, tiny().policy, params, VOCAB, eos_ids=[1])
    save_pretrained(other, tiny().policy, build(Decoder, tiny().policy, VOCAB, seed=8)[1], VOCAB, eos_ids=[1])
    digests = [run_of(path, tmp_path).base_digest for path in (folder, moved, other)]
    assert digests[0] == digests[1] != digests[2]


def test_the_vocabulary_is_that_of_the_embedding(weights, tmp_path):
    assert run_of(weights[0], tmp_path).vocab_size == VOCAB


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=str(tmp_path / "absent")):
        sft.POLICY.fresh(run_of(tmp_path / "absent", tmp_path))
