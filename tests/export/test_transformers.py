"""Exports in the hands of transformers and PEFT: the code of each card gives the texts and the scores of the run."""

import dataclasses
import importlib.util
import json
import re

import finished_run
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
from small_model import cases

from pit.cli import main
from pit.export import export
from pit.rollout.score import ModelScorer
from pit.run.folder import FORMAT_FILE, Run
from pit.stages import reward, rl, rl_iterated
from pit.testing.checkpoint import CheckpointScorer
from pit.types import Message

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("torch", "transformers", "peft"))),
        reason="needs torch, transformers, peft",
    ),
]

STAGES = ("rl-policy", "rl-improver-1", "reward-gap", "reward-quality")
ASKED = (
    ("describe the red lamp, please", "it is small"),
    ("is it cheap?\n\nsay so", "a b c"),
    ("what, then? four!", "the red one, number 3"),
)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def card(folder):
    """Run the code of a card, whose folder is named by its path, and return what it defines."""
    (code,) = CODE.findall((folder / "README.md").read_text())
    assert f'name = "{folder.name}"' in code
    names = {}
    exec(compile(code.replace(f'name = "{folder.name}"', f'name = "{folder}"'), "README.md", "exec"), names)
    return names


def finished(run: Run) -> Run:
    return finished_run.finish(run, *STAGES, spread=1.0)


@pytest.fixture(scope="module", params=["chatml", "llama3", "gemma", "mistral", "hh", "demo"])
def run(request, tmp_path_factory) -> Run:
    """Adapters on chat models, and all weights with role tokens: a Llama, and a decoder of PIT's own."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in ("hh", "demo"):
        short = ("windows.input=48", "windows.reference=24", "windows.output=24") if request.param == "hh" else ()
        return finished(finished_run.role_run(folder, request.param, *short))
    # A run of another day than that of the test.
    cases.chat_format("llama3").save(folder / "run" / FORMAT_FILE)
    return finished(finished_run.chat_run(folder, request.param, *finished_run.ADAPTERS))


@pytest.fixture(scope="module")
def forms(run):
    return ("merged", "adapter") if rl.POLICY.adapter(run.config) is not None else ("merged",)


def as_served(run: Run, text: str) -> str:
    """Return an answer as PIT keeps it in a chat format: trimmed as the next turn shows it, and cut to the window."""
    return text if run.format is None else run.template.decode_answer(run.template.encode_answer(text))


def answers_of(run: Run, folder) -> list[list[str]]:
    """Return the answers of `pit improve --temperature 0`, every candidate kept."""
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in ASKED]
    (folder / "asked.jsonl").write_text("\n".join(lines) + "\n")
    words = ["--input", str(folder / "asked.jsonl"), "--output", str(folder / "answers.jsonl")]
    words += ["--temperature", "0", "--threshold", "-1e9", "--iterations", "1"]
    main(["improve", "--run", str(run.folder), *words])
    return [json.loads(line)["answers"] for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_the_code_of_the_card_improves_as_the_run_does(run, forms, tmp_path):
    expected = [answers[1] for answers in answers_of(run, tmp_path)]
    assert len(set(expected)) > 1
    # In a chat format the next turn would show broken bytes otherwise.
    assert run.format is None or "\ufffd" not in "".join(expected)
    for form in forms:
        export(run, rl_iterated.IMPROVER_1, tmp_path / form, form=form)
        improve = card(tmp_path / form)["improve"]
        assert [as_served(run, improve(*asked)) for asked in ASKED] == expected, form


def test_adapters_over_adapters_are_used_as_the_run_does(tmp_path):
    (tmp_path / "second").mkdir()
    first = finished_run.chat_run(tmp_path / "first", "chatml", *finished_run.ADAPTERS)
    export(finished_run.finish(first, "rl-policy", spread=1.0), rl.POLICY, tmp_path / "lora", form="adapter")
    run = finished(finished_run.chat_run(tmp_path / "second", tmp_path / "lora", *finished_run.ADAPTERS))
    expected = [answers[1] for answers in answers_of(run, tmp_path)]
    assert len(set(expected)) > 1
    for form in ("merged", "adapter"):
        export(run, rl_iterated.IMPROVER_1, tmp_path / form, form=form)
        improve = card(tmp_path / form)["improve"]
        assert [as_served(run, improve(*asked)) for asked in ASKED] == expected, form


def test_the_code_of_the_card_scores_as_the_run_does(run, forms, tmp_path):
    template, model = run.template, reward.GAP.load(run)
    scorer = ModelScorer(model, run.layout(run.config.reward_gap.packing))
    xs = [template.encode_prompt([Message("user", prompt)]) for prompt, _ in ASKED]
    refs, better = [template.encode_answer(answer) for _, answer in ASKED], "it is red, and cheap"
    ys = [template.encode_answer(better)] * len(ASKED)
    raw, gap = scorer.gap(xs, refs, [ys], "raw")[:, 0], scorer.gap(xs, refs, [ys], run.config.improve.gap)[:, 0]
    assert np.std(raw) > 1e-2
    for form in forms:
        export(run, reward.GAP, tmp_path / form, form=form)
        names = card(tmp_path / form)
        theirs = [names["score"](prompt, answer, better) for prompt, answer in ASKED]
        np.testing.assert_allclose(theirs, raw, atol=1e-4)
        theirs = [names["gap"](prompt, answer, better) for prompt, answer in ASKED]
        np.testing.assert_allclose(theirs, gap, atol=1e-4)


def test_a_padded_batch_scores_the_same(run, tmp_path):
    """The padding of a reward model never hides the end of an answer."""
    import torch

    export(run, reward.QUALITY, tmp_path / "quality")
    names = card(tmp_path / "quality")
    alone = [names["score"](prompt, answer) for prompt, answer in ASKED]
    turns = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}] for prompt, answer in ASKED
    ]
    tokenizer, model = names["tokenizer"], names["model"]
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True, padding=True)
        assert not batch["attention_mask"].all()
        with torch.no_grad():
            scores = model(**batch).logits[:, 0].numpy()
        np.testing.assert_allclose(scores, alone, atol=1e-5, err_msg=side)
    scorer = ModelScorer(reward.QUALITY.load(run), run.layout(run.config.reward_quality.packing))
    xs = [run.template.encode_prompt([Message("user", prompt)]) for prompt, _ in ASKED]
    ours = scorer.quality(xs, [[run.template.encode_answer(answer) for _, answer in ASKED]])[:, 0]
    np.testing.assert_allclose(alone, ours, atol=1e-4)


def test_the_policy_answers_as_the_run_does(run, tmp_path):
    export(run, rl.POLICY, tmp_path / "policy")
    answer = card(tmp_path / "policy")["answer"]
    prompts = [run.template.encode_prompt([Message("user", prompt)]) for prompt, _ in ASKED]
    sampler = run.sampler(run.config.improve.rollout)
    ours = sampler.answers(rl.POLICY.load(run), [0, 1, 2], prompts, strategy=0.0, seed=0)
    expected = [run.template.decode_answer(ids) for ids in ours.rows()]
    assert [as_served(run, answer(prompt)) for prompt, _ in ASKED] == expected


def test_the_tokenizer_has_our_ids(run, tmp_path):
    """Long conversations too, and texts that begin with white space where the format keeps it."""
    import transformers

    export(run, rl_iterated.IMPROVER_1, tmp_path / "improver")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "improver")
    template, close = run.template, run.template.closings
    said = [Message("user", "red"), Message("assistant", "lamp, small."), Message("user", "and the other one?")]
    text = "  two. three?\n four!" if template.tokenizer.roles else "two. three?\n four!"
    turns = [*said, Message("assistant", text), Message("user", run.config.template.request)]
    messages = [message._asdict() for message in turns]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    x, ref = template.encode_prompt(said), template.encode_answer(text)
    assert ids == [*x, *close.reviewed, *ref, *close.reference]
    assert tokenizer.eos_token_id == template.closings.eos or tokenizer.eos_token_id in template.eos_ids


def test_a_classifier_of_transformers_and_ours_agree(run, tmp_path):
    from pit.testing.classifiers import SequenceClassifier
    from pit.testing.models import open_folder

    export(run, reward.QUALITY, tmp_path / "quality")
    if "auto_map" in json.loads((tmp_path / "quality" / "config.json").read_text()):
        pytest.skip("the classifier of the testing kit trusts no code")
    theirs, ours = SequenceClassifier.open(tmp_path / "quality"), open_folder(str(tmp_path / "quality"))
    prompts = [(Message("user", prompt),) for prompt, _ in ASKED]
    outputs, references = [answer for _, answer in ASKED], ["red", "small", "cheap"]
    assert isinstance(ours, CheckpointScorer)
    scores = theirs.quality([*prompts, *prompts], [*outputs, *references])
    np.testing.assert_allclose(ours.gap(prompts, outputs, references), scores[:3] - scores[3:], atol=1e-4)


def test_a_sharded_gemma_2_of_the_paper_recipe_loads(tmp_path):
    """The shape of the recipe `paper` in small, without local layers, in several files."""
    import torch
    import transformers

    from pit.model.decoder import Decoder
    from pit.model.params import build, merge
    from pit.model.pretrained import save_pretrained
    from pit.recipes import recipe

    sizes = {"width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp": 24}
    config = dataclasses.replace(recipe("paper").policy, **sizes, compute_dtype="float32")
    graphdef, params = build(Decoder, config, 40, 0)
    save_pretrained(tmp_path / "m", config, params, 40, eos_ids=[1], shard_bytes=4000)
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 2
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", attn_implementation="eager")
    assert type(model).__name__ == "Gemma2ForCausalLM"
    ids = np.random.default_rng(0).integers(2, 40, (1, 12)).astype(np.int32)
    position, until = np.arange(12, dtype=np.int32)[None], np.full_like(ids, 12)
    rows = [jnp.asarray(row) for row in (ids, position, until)]

    @twins.jit
    def logits(params, *rows):
        model = merge(graphdef, params)
        return model.logits(model(*rows))

    with torch.no_grad():
        theirs = model(torch.from_numpy(ids).long()).logits.numpy()
    np.testing.assert_allclose(logits(params, *rows), theirs, atol=1e-4)
