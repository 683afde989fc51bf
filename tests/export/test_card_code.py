"""The code of model cards, run on stand-ins for transformers and PEFT: it lays out text as the run does."""

import json
import re
import sys
from types import SimpleNamespace

import finished_run
import numpy as np
import pytest
import tokenizers

from pit.data.chat import ChatFormat
from pit.export import export
from pit.run.folder import Run
from pit.stages import reward, rl, rl_iterated
from pit.types import Message

CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
PROMPT, REFERENCE, ANSWER = "red lamp?", "is small", "is cheap"


def score_of(ids):
    """Return a number that another order of the tokens does not have."""
    return float(sum((place + 1) * int(token) for place, token in enumerate(ids)) % 10007)


class Folder:
    """The files of an export, and what its card asks of them."""

    def __init__(self, path, eos_ids):
        self.asked, self.path = [], path
        self.inner = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        settings = json.loads((path / "tokenizer_config.json").read_text())
        special = {name: text for name, text in settings.items() if name.endswith("_token")}
        self.format = ChatFormat((path / "chat_template.jinja").read_text(), special, eos_ids)

    def apply_chat_template(self, turns, *, return_tensors, return_dict, add_generation_prompt=False, **options):
        assert (return_tensors, return_dict, options) == ("pt", True, {})
        text = self.format.render([Message(**turn) for turn in turns], opening=add_generation_prompt)
        return {"input_ids": np.array([self.inner.encode(text, add_special_tokens=False).ids])}

    def decode(self, ids, *, skip_special_tokens):
        assert skip_special_tokens
        return self.inner.decode(ids.tolist(), skip_special_tokens=True)

    def eval(self):
        return self

    def generate(self, *, input_ids, do_sample, generation_config=None):
        assert not do_sample
        self.asked.append(input_ids[0].tolist())
        return np.concatenate([input_ids, [self.says]], axis=1)

    def __call__(self, *, input_ids):
        return SimpleNamespace(logits=np.array([[score_of(input_ids[0])]]))


@pytest.fixture(scope="module", params=["mistral", "roles"])
def run(request, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "roles":
        run = finished_run.role_run(folder, "tiny")
    else:
        run = finished_run.chat_run(folder, request.param, *finished_run.ADAPTERS)
    return finished_run.finish(run, "rl-policy", "rl-improver-1", "reward-gap", "reward-quality")


@pytest.fixture
def card(run, tmp_path, monkeypatch):
    """Return a function that exports a stage and gives what the code of its card defines, and the folder."""

    def made(stage, form="merged", of=run):
        export(of, stage, tmp_path / form, form=form)
        folder = Folder(tmp_path / form, run.template.eos_ids)
        opened = SimpleNamespace(from_pretrained=lambda name, **options: folder)
        kinds = ("AutoTokenizer", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "GenerationConfig")
        monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(**dict.fromkeys(kinds, opened)))
        peft = SimpleNamespace(PeftModel=SimpleNamespace(from_pretrained=lambda base, name: folder))
        monkeypatch.setitem(sys.modules, "peft", peft)
        (code,) = CODE.findall((tmp_path / form / "README.md").read_text())
        names = {}
        exec(compile(code, "README.md", "exec"), names)
        return names, folder

    return made


def path(run, *, reference=None, answer=None):
    """Return the tokens of a path of the run: up to the opening of an answer, or up to the end of one."""
    template, close = run.template, run.template.closings
    ids = template.encode_prompt([Message("user", PROMPT)])
    if reference is None:
        ids = [*ids, *close.input]
    else:
        ids = [*ids, *close.reviewed, *template.encode_answer(reference), *close.reference]
    return ids if answer is None else [*ids, *template.encode_answer(answer), close.eos]


def test_an_improver_is_asked_as_in_the_run(run, card):
    adapted = rl.POLICY.adapter(run.config) is not None
    for form in ("merged", "adapter") if adapted else ("merged",):
        names, folder = card(rl_iterated.IMPROVER_1, form)
        folder.says = [*run.template.encode_answer(ANSWER), run.template.closings.eos]
        assert names["improve"](PROMPT, REFERENCE) == ANSWER
        assert folder.asked == [path(run, reference=REFERENCE)]


def test_a_policy_is_asked_as_in_the_run(run, card):
    names, folder = card(rl.POLICY)
    folder.says = [*run.template.encode_answer(ANSWER), run.template.closings.eos]
    assert names["answer"](PROMPT) == ANSWER
    assert folder.asked == [path(run)]


def test_a_reward_model_reads_what_it_reads_in_the_run(run, card):
    names, _ = card(reward.QUALITY)
    assert names["score"](PROMPT, ANSWER) == score_of(path(run, answer=ANSWER))


@pytest.mark.parametrize("form", ["centred", "symmetric"])
def test_a_gap_has_the_form_of_the_run(run, card, form):
    names, _ = card(reward.GAP, of=finished_run.reset(run, f"improve.gap={form}"))

    def score(reference, answer):
        return score_of(path(run, reference=reference, answer=answer))

    assert names["score"](PROMPT, REFERENCE, ANSWER) == score(REFERENCE, ANSWER)
    if form == "centred":
        expected = score(REFERENCE, ANSWER) - (score(ANSWER, ANSWER) + score(REFERENCE, REFERENCE)) / 2
    else:
        expected = (score(REFERENCE, ANSWER) - score(ANSWER, REFERENCE)) / 2
    assert names["gap"](PROMPT, REFERENCE, ANSWER) == expected
    text = (names["tokenizer"].path / "README.md").read_text()
    assert f"if `gap(prompt, answer, improved) > {run.config.improve.threshold}`" in " ".join(text.split())
