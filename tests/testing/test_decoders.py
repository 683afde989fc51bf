"""Reward models of transformers and adapters of PEFT read without torch, and language models as reward models."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
import small_model
from click.testing import CliRunner
from path_twins import jit

from pit.config import AdapterConfig
from pit.model.adapters import merged, trainable_names
from pit.model.decoder import Decoder
from pit.model.errors import ModelFileError
from pit.model.heads import RewardModel, row_logprobs
from pit.model.model import Model, adapted
from pit.model.params import build, merge
from pit.model.peft import save_adapter
from pit.model.pretrained import Pretrained, save_pretrained
from pit.testing.adapters import Difference, as_scorer
from pit.testing.decoders import DecoderClassifier, reads
from pit.testing.errors import CheckError
from pit.testing.invariants import ALL
from pit.testing.language import Choice, LanguageModel, Likelihood, open_language
from pit.testing.models import open_folder
from pit.testing.scorers import Item, Method, gaps, methods_of
from pit.testing.served import Variant
from pit.types import Message

ASK = (Message("user", "describe the red lamp"),)
OUTPUTS = ["it is small", "a b c four", "it is small, cheap and red"]
BY_NAME = {invariant.name: invariant for invariant in ALL}
SHAPE = dataclasses.replace(small_model.SHAPE, layers=1)
ADAPTER = AdapterConfig(rank=2)


@pytest.fixture(autouse=True)
def _quick_programs():
    with mock.patch.object(jax, "jit", jit):
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    tokenizer, format = small_model.cases.tokenizer("gemma"), small_model.cases.chat_format("gemma")
    folder = tmp_path_factory.mktemp("base") / "base"
    params = build(Decoder, SHAPE, tokenizer.vocab_size, seed=1)[1]
    text = {"tokenizer": tokenizer.to_json(), "chat_template": format.source, "special_tokens": format.special_tokens}
    save_pretrained(folder, SHAPE, params, tokenizer.vocab_size, **text, eos_ids=format.eos_ids)
    return folder


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """Return the folder of a reward model with a chat template, and its module."""
    tokenizer, format = small_model.cases.tokenizer("gemma"), small_model.cases.chat_format("gemma")
    graphdef, params = build(RewardModel, SHAPE, tokenizer.vocab_size, 3)
    params = {**params, "score": params["score"] * 3}
    folder = tmp_path_factory.mktemp("reward") / "reward"
    save_pretrained(
        folder,
        SHAPE,
        params,
        tokenizer.vocab_size,
        tokenizer=tokenizer.to_json(),
        eos_ids=format.eos_ids,
        pad_id=_pad(format, tokenizer),
        chat_template=format.source,
        special_tokens=format.special_tokens,
    )
    return folder, merge(graphdef, params)


def _pad(format, tokenizer):
    """Return the id of the template's padding token."""
    text = format.special_tokens["pad_token"]
    (token,) = tokenizer.encode_format(text)
    return token


def rendered(output):
    tokenizer, format = small_model.cases.tokenizer("gemma"), small_model.cases.chat_format("gemma")
    return tokenizer.encode_format(format.render([*ASK, Message("assistant", output)], opening=False))


def scores_of(module, outputs):
    paths = [tuple(rendered(output)) for output in outputs]
    rows = twins.rows_of(paths, rows=len(paths), length=max(map(len, paths)))
    return np.asarray(jit(lambda rows: twins.path_scores(module, rows))(rows))


def test_a_reward_model_of_transformers_is_read_at_the_end_of_its_template(reward):
    folder, module = reward
    assert reads(folder)
    scorer = open_folder(str(folder))
    assert isinstance(scorer.model, DecoderClassifier)
    expected = scores_of(module, OUTPUTS)
    np.testing.assert_allclose(scorer.model.quality([ASK] * 3, OUTPUTS), expected, atol=1e-4)
    assert np.ptp(expected) > 0.01
    assert scorer.model.tokens([ASK], OUTPUTS[:1]) == [tuple(rendered(OUTPUTS[0]))]
    assert {Method.TOKENS, Method.VARIANT} <= methods_of(scorer)
    assert Method.TEMPLATE not in methods_of(scorer)


@pytest.mark.parametrize("name", ["batch_size", "item_order", "padding", "ends_with_eos", "ids_in_vocabulary"])
def test_it_satisfies_the_exact_invariants(reward, name):
    scorer = open_folder(str(reward[0]))
    items = tuple(Item(ASK, output, OUTPUTS[0]) for output in OUTPUTS)
    assert BY_NAME[name].applicable(scorer)
    BY_NAME[name].check(scorer, items)
    assert not BY_NAME["adapter_counts"].applicable(scorer)
    assert BY_NAME["adapter_counts"].missing(scorer) == "the variant 'without its adapter'"


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    """Return a folder of PEFT with a reward model's adapters, and the merged module."""
    with mock.patch.object(jax, "jit", jit):
        pretrained = Pretrained.open(base)
        below = Model.build(Decoder, SHAPE, pretrained.vocab_size, seed=1)
        model = adapted(RewardModel, dataclasses.replace(SHAPE, tied=True), below, ADAPTER, seed=5)
        dice = np.random.default_rng(0)
        moved = {
            name: jnp.asarray(dice.normal(0, 0.3, value.shape), "float32") for name, value in model.trained.items()
        }
        model = model.with_trained(moved)
        folder = tmp_path_factory.mktemp("lora") / "lora"
        save_adapter(folder, SHAPE, ADAPTER, moved, base=str(base))
        whole = merged(model.params, ADAPTER)
        graphdef = build(RewardModel, dataclasses.replace(SHAPE, tied=True), pretrained.vocab_size, 0)[0]
    return folder, merge(graphdef, whole)


@pytest.mark.slow
def test_adapters_of_peft_are_merged_into_the_base_that_they_name(lora):
    folder, module = lora
    scorer = open_folder(str(folder))
    np.testing.assert_allclose(scorer.model.quality([ASK] * 3, OUTPUTS), scores_of(module, OUTPUTS), atol=1e-4)
    without = scorer.variant(Variant.NO_ADAPTER)
    items = [Item(ASK, OUTPUTS[0], OUTPUTS[1])]
    assert abs(gaps(scorer, items)[0] - gaps(without, items)[0]) > 1e-3
    (counts,) = (invariant for invariant in ALL if invariant.name == "adapter_counts")
    assert counts.applicable(scorer)
    counts.check(scorer, tuple(Item(ASK, output, "no") for output in OUTPUTS))


@pytest.mark.slow
def test_adapters_of_a_language_model_are_no_reward_model(base, tmp_path):
    model = adapted(Decoder, SHAPE, Model.build(Decoder, SHAPE, Pretrained.open(base).vocab_size, 1), ADAPTER, 5)
    trained = {name: model.params[name] for name in trainable_names(model.params)}
    save_adapter(tmp_path / "lora", SHAPE, ADAPTER, trained, base=str(base))
    with pytest.raises(ModelFileError, match=r"adapts a language model; give a reward model \(task_type SEQ_CLS\)"):
        open_folder(str(tmp_path / "lora"))


def expected_logprobs(base, path):
    pretrained = Pretrained.open(base)
    graphdef, params = build(Decoder, SHAPE, pretrained.vocab_size, seed=1)
    batch = twins.paths.separate_rows([path], 1, len(path))
    rows = (jnp.asarray(getattr(batch, name)) for name in ("token", "position", "visible_until", "previous"))
    return np.asarray(row_logprobs(merge(graphdef, params), *rows))[0]


def test_the_likelihood_is_the_mean_over_the_answer(base):
    scorer = open_language(base, "likelihood")
    assert isinstance(scorer, Likelihood)
    tokenizer, format = small_model.cases.tokenizer("gemma"), small_model.cases.chat_format("gemma")
    opening = tokenizer.encode_format(format.render(list(ASK), opening=True))
    content = tokenizer.encode(OUTPUTS[1])
    expected = expected_logprobs(base, (*opening, *content))[len(opening) :].mean()
    scores = scorer.quality([ASK] * 3, ["", OUTPUTS[1], OUTPUTS[2]])
    assert scores[0] == 0
    assert scores[1] == pytest.approx(expected, abs=1e-4)
    assert isinstance(as_scorer(scorer, "likelihood"), Difference)


@pytest.mark.slow
def test_the_choice_is_between_two_letters_after_both_answers(base):
    scorer = open_language(base, "choice")
    assert isinstance(scorer, Choice)
    seen = []
    real = LanguageModel.opening

    def opening(self, messages):
        seen.append(messages[0].content)
        return real(self, messages)

    with mock.patch.object(LanguageModel, "opening", opening):
        forward, backward = scorer.gap([ASK] * 2, OUTPUTS[:2], OUTPUTS[1::-1])
    assert forward != -backward
    first = seen[0]
    assert f'"A": "{OUTPUTS[0]}", "B": "{OUTPUTS[1]}"' in first
    assert first.endswith("If A is better, write A. If B is better, write B. Write one letter and nothing else.")
    assert "Reply with one JSON object" not in first
    path = scorer._model.opening([Message("user", first)])
    letters = [scorer._model.content(letter) for letter in "AB"]
    by_hand = [expected_logprobs(base, (*path, *letter))[len(path) :].sum() for letter in letters]
    assert forward == pytest.approx(by_hand[0] - by_hand[1], abs=1e-4)


def test_a_language_model_without_a_template_is_refused(tmp_path):
    folder = small_model.write_model(tmp_path / "m", template=False)
    with pytest.raises(CheckError, match=r"has no chat template; give a chat model"):
        open_language(folder, "likelihood")


@pytest.mark.slow
def test_the_command_checks_a_language_model(base, tmp_path):
    from pit.testing.command import check

    pairs = small_model.write_preferences(tmp_path / "pairs.jsonl", rows=4)
    words = [str(base), "--read-as", "likelihood", "--data", str(pairs), "--examples", "2"]
    result = CliRunner().invoke(check, [*words, "--invariant", "batch_size", "--invariant", "accuracy"])
    assert result.exception is None, result.output
    assert "0 violated of 2" in result.output
