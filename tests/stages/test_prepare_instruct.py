"""A family of real language, prepared: what is held out stays so, and its oracle reads the texts of a chat format."""

import pytest
from small_model import write_model

from pit.config import DataConfig, FieldError, override
from pit.data.synthetic.instruct import clean_answer, subset_of
from pit.data.synthetic.instruct.grammar import SEEN, SUBSETS
from pit.data.tokens import Tokens
from pit.evaluate.gold import oracle_of
from pit.model.pretrained import Pretrained
from pit.recipes import lengths, recipe
from pit.run.folder import Run
from pit.stages.prepare import prepare, require_prompts
from pit.types import FOLDS


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Return a prepared run of the recipe on a small chat model, with another key of the folds."""
    folder = tmp_path_factory.mktemp("instruct")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lengths, "SAMPLED", 100)
        config = recipe("instruct", Pretrained.open(write_model(folder / "model")), DataConfig())
    run = Run(folder / "run", override(config, ["data.synthetic_rows=400", "data.fold_key=another"]))
    prepare(run)
    require_prompts(run)
    return run


def prompts_of(run: Run, fold: str) -> list[str]:
    rows = run.fold(fold)
    return [run.template.decode_prompt(x)[0].content for x in rows.columns(range(len(rows)))[0].rows()]


def test_what_is_held_out_follows_the_folds_of_the_run(run):
    for fold in FOLDS:
        subsets = {subset_of(prompt) for prompt in prompts_of(run, fold)}
        assert subsets == (set(SUBSETS) if fold == "eval" else {SEEN})


def test_the_oracle_reads_the_texts_of_a_chat_format(run):
    inputs = run.fold("eval").columns(range(8))[0]
    answers = [clean_answer(prompt) for prompt in prompts_of(run, "eval")[:8]]
    encode = run.template.encode_answer
    whole = Tokens.of([run.template.tokenizer.encode(text) for text in answers])
    assert oracle_of(run)(inputs, whole).tolist() == [1.0] * 8
    # Each answer is judged by its own prompt.
    assert oracle_of(run)(inputs, whole.take([*range(1, 8), 0])).max() == 0
    assert oracle_of(run)(inputs, Tokens.of([encode("") for _ in answers])).max() == 0


def test_a_window_that_cuts_prompts_is_refused(run, tmp_path):
    narrow = Run(tmp_path / "run", override(run.config, ["windows.input=32", "data.synthetic_rows=100"]))
    prepare(narrow)
    message = (
        r"^windows.input = 32: must hold all prompts of the task instruct, because its oracle reads them; it cuts 83; "
        "set windows.input=64$"
    )
    with pytest.raises(FieldError, match=message):
        require_prompts(narrow)
