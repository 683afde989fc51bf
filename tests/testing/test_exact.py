"""Correct models pass every exact invariant; a violation is named, shrunk, saved and replayed."""

import contextlib
import dataclasses
import json
import re

import cases
import numpy as np
import path_twins as twins
import pytest

from pit.testing.errors import CheckError, InvariantError
from pit.testing.invariants import EXACT, Material
from pit.testing.invariants.rows import require_close
from pit.testing.report import Status
from pit.testing.run import Request, run_check, select
from pit.testing.scorers import Item, Method
from pit.testing.search import find_counterexample, format_example, load_example, save_example

FEW = 12
THOUSANDS = 10_000


def held(scorer, examples, names=None):
    """Return the names of the exact invariants that held, and assert that none was violated."""
    chosen = [invariant for invariant in EXACT if names is None or invariant.name in names]
    report = run_check(scorer, cases.rows(4), Request("model", "data", examples), invariants=chosen)
    assert [(r.name, r.detail) for r in report.violations] == []
    return {r.name for r in report.results if r.status == Status.HELD}


ROWS = {i.name for i in EXACT if Method.ROWS in i.needs and Method.GAP not in i.needs}
TEXT = {i.name for i in EXACT if i.needs <= {Method.GAP, Method.CENTRED}}
DRAWS = {i.name for i in EXACT if Method.SAMPLES in i.needs}
CHECKPOINT = TEXT | {"text_is_path", "rows_deterministic", "tree_is_paths", "loss_definition"}
"""Invariants for a model with a tokenizer: text, and the rows and loss of its own format; its gradients are those of
the models of rows."""


def test_a_gap_model_passes_all_invariants_of_rows():
    assert held(cases.shared_row_model(), FEW) == ROWS


@pytest.mark.slow
@pytest.mark.parametrize(("reads", "config"), [("gap", twins.LLAMA), ("quality", twins.GEMMA)])
def test_a_model_of_two_layers_passes_all_invariants_of_rows(reads, config):
    assert held(cases.row_model(reads, config), FEW) == ROWS


@pytest.mark.slow
def test_a_policy_passes_all_invariants_of_draws():
    assert held(cases.policy_model(), FEW) == DRAWS


@pytest.mark.slow
@pytest.mark.parametrize("reads", ["gap", "quality"])
def test_a_checkpoint_passes_all_invariants_of_text(reads):
    assert held(cases.text_model(reads), FEW, CHECKPOINT) == CHECKPOINT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "names"),
    [(cases.row_model, ROWS), (cases.policy_model, DRAWS), (cases.text_model, TEXT | {"text_is_path"})],
)
def test_correct_models_pass_thousands_of_examples(make, names):
    # With so many examples, optimised programs save more time than compiling them costs.
    assert held(make(programs=contextlib.nullcontext), THOUSANDS, names) == names


def test_a_function_passes_all_invariants_of_text_that_apply():
    assert held(cases.difference(lambda x, y: float(len(y))), FEW) == TEXT - {"centred_identity"}


def violations(scorer, examples=40):
    """Return (name, fault) of each violation, and the statuses of the other invariants."""
    report = run_check(scorer, cases.rows(4), Request("model", "data", examples), invariants=EXACT)
    others = {r.status for r in report.results if r.status != Status.VIOLATED}
    return [(r.name, r.detail.split(":")[0]) for r in report.violations], others


def fails_on(letter):
    def function(x, y, ref):
        if letter in y:
            raise KeyError(letter)
        return 0.0

    return cases.scorer(function)


def of_shape(shape, dtype=np.float32):
    return cases.GapFunction(lambda xs, ys, refs: np.zeros([len(ys) if n is None else n for n in shape], dtype))


@pytest.mark.parametrize(
    ("scorer", "fault"),
    [
        (of_shape([None, 1]), "wrong shape"),
        (of_shape([1]), "wrong shape"),
        (of_shape([None], np.int64), "wrong type"),
        (cases.scorer(lambda x, y, ref: np.nan if not y else 1.0), "not finite"),
        (fails_on("\x00"), "raises"),
        (fails_on("漢字"), "raises"),
    ],
)
def test_a_scorer_that_fails_is_named_once(scorer, fault):
    assert violations(scorer) == ([("well_formed", fault)], {Status.NOT_CHECKED, Status.NOT_APPLICABLE})


def test_a_random_scorer_is_named_as_such():
    rng = np.random.default_rng(0)
    scorer = cases.scorer(lambda x, y, ref: rng.normal())
    assert violations(scorer) == (
        [("deterministic", "random")],
        {Status.HELD, Status.NOT_CHECKED, Status.NOT_APPLICABLE},
    )


def test_an_object_without_methods_is_refused():
    with pytest.raises(CheckError, match=r"^model: .* gap, centred, score_rows, .*as_scorer"):
        run_check(object(), [], Request("model", "data"), invariants=EXACT)


def test_a_violation_is_shrunk_saved_and_replayed(tmp_path):
    """A score that depends on the size of the batch differs only with two items, so two empty items remain."""
    scorer = cases.GapFunction(lambda xs, ys, refs: np.full(len(ys), len(ys) > 1, np.float32))
    (invariant,) = select(["batch_size"])
    invariant = dataclasses.replace(invariant)
    object.__setattr__(invariant, "always", tuple)
    smallest = find_counterexample(invariant, Material(scorer, ()), examples=100, seed=0)
    assert smallest.message.startswith("gap in a batch: 1 instead of 0 at [0]")
    assert [(item.prompt[0].content, item.output, item.reference) for item in smallest.example] == [("", "", "")] * 2
    first = find_counterexample(invariant, Material(scorer, ()), examples=100, seed=0, shrink=False)
    assert len(first.example) >= 2
    file = tmp_path / "deep" / "batch_size.json"
    save_example(file, invariant, smallest.example)
    assert load_example(file) == ("batch_size", smallest.example)
    with pytest.raises(InvariantError, match=f"^{re.escape(smallest.message)}$"):
        invariant.check(scorer, load_example(file)[1])


def test_a_failing_tree_shrinks_to_a_few_tokens(tmp_path):
    """The model counts the tokens before a leaf that are not on its path, if there are eight or more."""

    class Wrong:
        format = cases.row_format("gap")

        def score_rows(self, batch):
            row, index = batch.leaf[..., 0], batch.leaf[..., 1]
            strangers = index - batch.position[row, index]
            return np.where((row >= 0) & (strangers >= 8), strangers, 0).astype(np.float32)

    (invariant,) = select(["tree_is_paths"])
    smallest = find_counterexample(invariant, Material(Wrong(), ()), examples=300, seed=0)
    tokens = [token for column in smallest.example.columns for row in column for token in row]
    assert smallest.example.trees <= 2
    assert len(tokens) <= 4
    file = tmp_path / "tree_is_paths.json"
    save_example(file, invariant, smallest.example)
    assert load_example(file) == ("tree_is_paths", smallest.example)
    assert format_example(smallest.example).startswith(f"{smallest.example.trees} trees gap")


def test_a_file_without_an_example_is_refused(tmp_path):
    for text in ("{}", "nothing", json.dumps({"invariant": "x", "kind": "y", "example": 1})):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(CheckError, match=r"^--replay .*bad.json: .*`pit check`"):
            load_example(tmp_path / "bad.json")


def test_rounding_is_relative_above_one():
    """At 100 a relative 2^-14 is .0061."""
    require_close("score", np.array([100.006]), np.array([100.0]), 2**-14)
    with pytest.raises(InvariantError, match=r"^score: 100.007 instead of 100 at \[0\], .* 0.0061$"):
        require_close("score", np.array([100.007]), np.array([100.0]), 2**-14)
    with pytest.raises(InvariantError, match=r"nan instead of 1"):
        require_close("score", np.array([np.nan]), np.array([1.0]), 2**-14)


def test_items_are_printed_with_escapes():
    item = Item(cases.rows(1)[0].prompt, "a\nb", "")
    assert format_example((item,)) == "  user: 'What is 0 plus 2?'\n  output: 'a\\nb'\n  reference: ''"
