"""The report of a curriculum: a worked example of its table, a simulated learner, and the plot."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from pit.config import ConfigError, FieldError, override
from pit.data.curriculum import CurriculumError, Draws, History, Visit, read_history
from pit.recipes.demo import demo, tiny
from pit.report.curriculum import curriculum_png, curriculum_table, periods, visit_counts
from pit.stages.look_back import look_ahead
from pit.types import Source

DIFFICULTY = np.array([0.0, 0.5, 1.0], np.float32)


def visit(step, ids, sources, gap):
    draws = Draws(step, np.array(ids, np.int64), np.array(sources, np.uint8))
    return Visit(draws, None if gap is None else np.array(gap, np.float32))


VISITS = [visit(0, [0, 2], [1, 1], [1.0, -2.0]), visit(1, [2, 2], [1, 3], [0.5, 0.5])]


def test_periods_sum_up_the_draws_of_their_steps():
    first, second = periods(VISITS, DIFFICULTY)
    assert (first.first, first.last, first.new, first.gap, first.wins) == (0, 0, 2, -0.5, 0.5)
    assert first.shares == {Source.WORSE: 1.0}
    assert first.difficulty.tolist() == [0.0, 1.0]
    assert (second.new, second.gap, second.wins) == (0, 0.5, 1.0)
    assert second.shares == {Source.WORSE: 0.5, Source.POLICY: 0.5}
    assert visit_counts(VISITS, 3).tolist() == [1, 0, 3]


def test_the_table_has_visits_difficulty_and_sources():
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(curriculum_table("title", VISITS, DIFFICULTY))
    text = console.export_text()
    assert "4 draws of 3 examples: mean 1.3, most 3, 33% never drawn" in text
    assert "0.50 [0.10, 0.90]" in text
    assert "policy" in text


def test_steps_without_references_have_no_gap():
    (only,) = periods([visit(0, [1], [0], None)], DIFFICULTY)
    assert (only.gap, only.wins, only.shares) == (None, None, {Source.NONE: 1.0})


def test_a_resumed_history_drops_the_steps_that_are_drawn_again(tmp_path):
    with History(tmp_path) as history:
        for one in VISITS:
            history.add(one)
    assert [v.draws.step for v in read_history(tmp_path)] == [0, 1]
    with (tmp_path / "draws.jsonl").open("a") as file:
        file.write('{"step":2,"id":[1')
    with History(tmp_path, resumed_step=1) as history:
        history.add(visit(1, [1], [2], None))
    again = read_history(tmp_path)
    assert [v.draws.ids.tolist() for v in again] == [[0, 2], [1]]
    np.testing.assert_array_equal(again[0].gap, VISITS[0].gap)
    assert again[1].gap is None
    with pytest.raises(CurriculumError, match="holds no draws; run the stage first"):
        read_history(tmp_path / "nothing")


ADAPTIVE = ["rl_improver_0.gap=centred", "rl_improver_0.steps=60"]


@pytest.fixture(scope="module")
def uniform():
    """The skill of a simulated learner after uniform draws."""
    return skill(look_ahead(override(demo(), ADAPTIVE), "rl-improver-0", 300).title)


@pytest.mark.parametrize("strategy", ["learnability", "gap_band"])
def test_a_simulated_learner_is_taken_to_what_it_can_learn(strategy, uniform):
    """Both strategies leave the learner with more skill than uniform draws do, from the same seed and steps."""
    look = look_ahead(
        override(demo(), [*ADAPTIVE, f"rl_improver_0.curriculum.strategy={strategy}"]), "rl-improver-0", 300
    )
    assert skill(look.title) > uniform
    assert len(look.visits) == 60


def skill(title):
    return float(title.split("-> ")[1])


def test_the_plot_is_a_png(tmp_path):
    look = look_ahead(override(demo(), ADAPTIVE), "rl-improver-0", 50)
    path = curriculum_png(look.title, look.visits, look.difficulty, tmp_path / "c.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_too_few_visits_and_unknown_stages_are_refused():
    config = override(demo(), [*ADAPTIVE, "rl_improver_0.curriculum.strategy=gap_band"])
    with pytest.raises(FieldError) as caught:
        look_ahead(config, "rl-improver-0", 1000)
    assert caught.value.path == "rl_improver_0.curriculum.strategy"
    assert "60 steps of 32 prompts visit each of 1,000 examples 1.9 times" in caught.value.rule
    with pytest.raises(
        ConfigError, match=r"^--stage = 'sft-policy': must be one of rl-policy, rl-improver-0, rl-improver-1"
    ):
        look_ahead(tiny(), "sft-policy", 10)


def test_a_record_is_one_line_of_json(tmp_path):
    with History(tmp_path) as history:
        history.add(VISITS[0])
    record = json.loads((tmp_path / "draws.jsonl").read_text())
    assert record == {"step": 0, "id": [0, 2], "source": [1, 1], "gap": [1.0, -2.0]}
