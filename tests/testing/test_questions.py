"""Questions with several answers: the columns of RewardBench 2 and RM-Bench, and rows of every subset."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from pit.testing.data import read_rows
from pit.testing.errors import CheckError
from pit.testing.questions import Question, hold_questions
from pit.types import Message, Preference

ASK = (Message("user", "How many legs has a spider?"),)
REWARDBENCH_2 = {
    "id": "7",
    "prompt": ASK[0].content,
    "chosen": ["Eight legs."],
    "rejected": ["Six legs.", "Ten legs.", "A spider is an insect."],
    "num_correct": 1,
    "num_incorrect": 3,
    "total_completions": 4,
    "models": ["human", "a", "b", "c"],
    "subset": "Factuality",
    "additional_metadata": {"category": "animals"},
}
TIES = {**REWARDBENCH_2, "chosen": ["Eight.", "It has 8."], "rejected": ["Six."], "subset": "Ties"}
RMBENCH = {
    "id": "chat/1",
    "prompt": ASK[0].content,
    "chosen": ["Eight.", "A spider has eight legs.", "- A spider has **eight** legs."],
    "rejected": ["Six.", "A spider has six legs.", "- A spider has **six** legs."],
    "domain": "chat",
}


def put(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_rewardbench_2(tmp_path):
    best, ties = read_rows(put(tmp_path / "rb2.jsonl", REWARDBENCH_2, TIES), 9)
    assert best == Question(ASK, ("Eight legs.",), tuple(REWARDBENCH_2["rejected"]), "Factuality", False)
    assert (ties.good, ties.bad, ties.subset) == (("Eight.", "It has 8."), ("Six.",), "Ties")
    assert (ties.better, ties.worse) == ("Eight.", "Six.")


def test_rewardbench_2_as_published(tmp_path):
    """The set is a Parquet file whose name says "test"."""
    table = pa.Table.from_pylist([REWARDBENCH_2, TIES])
    folder = tmp_path / "reward-bench-2" / "data"
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(table, folder / "test-00000-of-00001.parquet")
    rows = read_rows(folder.parent, 9)
    assert [(row.subset, len(row.good), len(row.bad)) for row in rows] == [("Factuality", 1, 3), ("Ties", 2, 1)]


def test_rmbench(tmp_path):
    """The set is one JSON array; its answers have styles, in one order on both sides."""
    path = tmp_path / "total_dataset.json"
    path.write_text(json.dumps([RMBENCH]))
    assert hold_questions(path)
    assert read_rows(path, 9) == [Question(ASK, tuple(RMBENCH["chosen"]), tuple(RMBENCH["rejected"]), "chat", True)]


def test_pairs_are_pairs_and_keep_their_subset(tmp_path):
    """RewardBench has single answers and subsets."""
    pair = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    path = put(tmp_path / "pairs.jsonl", pair, {**pair, "subset": "alpacaeval-easy"})
    assert not hold_questions(path)
    prompt = (Message("user", "Why?"),)
    assert read_rows(path, 9) == [
        Preference(prompt, "Because.", "No."),
        Question(prompt, ("Because.",), ("No.",), "alpacaeval-easy"),
    ]


def test_a_limit_takes_rows_of_every_subset(tmp_path):
    """Benchmarks are sorted by subset, so that their first rows are of one alone; a small subset leaves its share."""
    rows = [
        {**REWARDBENCH_2, "prompt": f"{subset} {i}?", "subset": subset}
        for subset, count in (("Math", 40), ("Safety", 2), ("Focus", 40))
        for i in range(count)
    ]
    chosen = read_rows(put(tmp_path / "rb2.jsonl", *rows), 10)
    # A check that has no time for all rows has about as many of each.
    assert [row.subset for row in chosen] == ["Math", "Safety", "Focus"] * 2 + ["Math", "Focus"] * 2
    assert [row.prompt[0].content for row in chosen if row.subset == "Math"] == [f"Math {i}?" for i in (0, 10, 20, 30)]
    everything = read_rows(tmp_path / "rb2.jsonl", 100)
    assert len(everything) == 82
    assert [row.subset for row in everything[:3]] == ["Math", "Safety", "Focus"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": ["Six legs."]}, "equal answers"),
        ({"chosen": [" "]}, "empty answer"),
        ({"chosen": []}, "wrong type"),
        ({"chosen": "Eight."}, "wrong type"),
        ({"prompt": None}, "missing column"),
        ({"prompt": " "}, "empty prompt"),
        ({"rejected": ["Six.", 6]}, "wrong type"),
        ({"rejected": ["\ud800"]}, "bad UTF-8"),
    ],
)
def test_a_bad_row_is_dropped_with_its_reason(tmp_path, change, reason):
    path = put(tmp_path / "rb2.jsonl", REWARDBENCH_2, {**REWARDBENCH_2, **change})
    assert len(read_rows(path, 9)) == 1
    from pit.testing.questions import read_questions

    stream, report = read_questions(path)
    assert len(list(stream)) == 1
    assert dict(report.dropped) == {reason: 1}
    assert report.places[reason] == ["rb2.jsonl:2"]


def test_without_a_question_the_reasons_are_named(tmp_path):
    path = put(tmp_path / "rb2.jsonl", {**REWARDBENCH_2, "chosen": ["Six legs."]})
    with pytest.raises(CheckError, match=r"rb2.jsonl: none of 1 rows is a pair \(1 equal answers\)"):
        read_rows(path, 9)
