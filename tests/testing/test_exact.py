"""The right models pass every exact invariant; what fails is named, shrunk, saved and replayed."""

import contextlib
import dataclasses
import json
import re

import cases
import numpy as np
import path_twins as twins
import pytest

from pit.testing.faults import CheckError, Violation
from pit.testing.invariants import EXACT, Material
from pit.testing.invariants.rows import require_close
from pit.testing.report import Status
from pit.testing.run import Request, run_check
from pit.testing.scorers import Item, Level
from pit.testing.search import load, readable, save, search

FEW = 12
THOUSANDS = 10_000


def held(scorer, examples, names=None):
    """Names of the exact invariants that held, none of which was violated."""
    chosen = [each for each in EXACT if names is None or each.name in names]
    report = run_check(scorer, cases.rows(4), Request("model", "data", examples), invariants=chosen)
    assert [(r.name, r.detail) for r in report.violations] == []
    return {r.name for r in report.results if r.status == Status.HELD}


ROWS = {each.name for each in EXACT if Level.ROWS in each.needs and Level.GAP not in each.needs}
TEXT = {each.name for each in EXACT if Level.ROWS not in each.needs and Level.SAMPLES not in each.needs}
DRAWS = {each.name for each in EXACT if Level.SAMPLES in each.needs}


def test_a_gap_model_obeys_all_of_rows():
    assert held(cases.row_model(), FEW) == ROWS


@pytest.mark.slow
def test_a_quality_model_obeys_all_of_rows():
    assert held(cases.row_model("quality", twins.GEMMA), FEW) == ROWS


@pytest.mark.slow
def test_a_policy_obeys_all_of_draws():
    assert held(cases.policy_model(), FEW) == DRAWS


@pytest.mark.slow
@pytest.mark.parametrize("reads", ["gap", "quality"])
def test_a_checkpoint_obeys_all_of_text_and_rows(reads):
    assert held(cases.text_model(reads), FEW) == TEXT | ROWS | {"level_agreement"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "names"),
    [(cases.row_model, ROWS), (cases.policy_model, DRAWS), (cases.text_model, TEXT | {"level_agreement"})],
)
def test_the_right_models_obey_over_thousands_of_examples(make, names):
    # So many examples pay for programs that are compiled with all optimisation.
    assert held(make(programs=contextlib.nullcontext), THOUSANDS, names) == names


def test_a_function_obeys_what_is_asked_of_text():
    assert held(cases.difference(lambda x, y: float(len(y))), 30) == TEXT - {"centred_identity"}


def named(scorer, examples=40):
    """(name, fault) of each violation, and what the others say."""
    report = run_check(scorer, cases.rows(4), Request("model", "data", examples), invariants=EXACT)
    rest = {r.status for r in report.results if r.status != Status.VIOLATED}
    return [(r.name, r.detail.split(":")[0]) for r in report.violations], rest


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
    assert named(scorer) == ([("well_formed", fault)], {Status.NOT_JUDGED, Status.NOT_APPLICABLE})


def test_a_random_scorer_is_named_as_such():
    rng = np.random.default_rng(0)
    scorer = cases.scorer(lambda x, y, ref: rng.normal())
    assert named(scorer) == ([("deterministic", "random")], {Status.HELD, Status.NOT_JUDGED, Status.NOT_APPLICABLE})


def test_what_is_no_scorer_is_refused():
    with pytest.raises(CheckError, match=r"^model: is no scorer, it has none of the methods gap, centred, score_rows"):
        run_check(object(), [], Request("model", "data"), invariants=EXACT)


def test_a_violation_is_shrunk_saved_and_replayed(tmp_path):
    """A score that depends on the batch's size needs two questions to show: that is what is left."""
    scorer = cases.GapFunction(lambda xs, ys, refs: np.full(len(ys), len(ys) > 1, np.float32))
    (invariant,) = (each for each in EXACT if each.name == "batch_size")
    invariant = dataclasses.replace(invariant)
    object.__setattr__(invariant, "always", tuple)
    found = search(invariant, Material(scorer, ()), examples=100, seed=0)
    assert found.message == "gap in a batch: 1 instead of 0 at [0], where rounding allows 6.1e-05"
    assert [(item.prompt[0].content, item.output, item.reference) for item in found.example] == [("", "", "")] * 2
    file = tmp_path / "deep" / "batch_size.json"
    save(file, invariant, found.example)
    assert load(file) == ("batch_size", found.example)
    with pytest.raises(Violation, match=f"^{re.escape(found.message)}$"):
        invariant.check(scorer, load(file)[1])


def test_a_failing_tree_is_left_with_a_few_tokens(tmp_path):
    """A model that counts what stands before a leaf and is not on its path, from eight tokens on."""

    class Wrong:
        format = cases.row_format("gap")

        def score_rows(self, batch):
            row, index = batch.leaf[..., 0], batch.leaf[..., 1]
            strangers = index - batch.position[row, index]
            return np.where((row >= 0) & (strangers >= 8), strangers, 0).astype(np.float32)

    (invariant,) = (each for each in EXACT if each.name == "tree_is_paths")
    found = search(invariant, Material(Wrong(), ()), examples=300, seed=0)
    tokens = [token for column in found.example.columns for row in column for token in row]
    assert found.example.trees <= 2
    assert len(tokens) <= 4
    file = tmp_path / "tree_is_paths.json"
    save(file, invariant, found.example)
    assert load(file) == ("tree_is_paths", found.example)
    assert readable(found.example).startswith(f"{found.example.trees} trees gap")


def test_a_file_that_is_no_example_says_so(tmp_path):
    for text in ("{}", "nothing", json.dumps({"invariant": "x", "kind": "y", "example": 1})):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(CheckError, match=r"bad.json: is no saved example \(.*name a file that `pit check` wrote$"):
            load(tmp_path / "bad.json")


def test_what_counts_as_rounding():
    """At 100 a relative 2^-14 is .0061."""
    require_close("score", np.array([100.006]), np.array([100.0]), 2**-14)
    with pytest.raises(Violation, match=r"^score: 100.007 instead of 100 at \[0\], where rounding allows 0.0061$"):
        require_close("score", np.array([100.007]), np.array([100.0]), 2**-14)
    with pytest.raises(Violation, match=r"nan instead of 1"):
        require_close("score", np.array([np.nan]), np.array([1.0]), 2**-14)


def test_items_are_readable():
    item = Item(cases.rows(1)[0].prompt, "a\nb", "")
    assert readable((item,)) == "  user: 'What is 0 plus 2?'\n  output: 'a\\nb'\n  reference: ''"
