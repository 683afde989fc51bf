"""What answers are really worth: the task's oracle, or the held-out judge.

The board holds rewards against it, and only figures of a log come of that. Where reward models are refreshed the oracle
also stands for the people who would label samples: it says which of two answers is better, and nothing more.
"""

import numpy as np
from jaxtyping import Float64, Int64

from pit.config import ConfigError
from pit.data.synthetic.oracle import ORACLES
from pit.rollout.score import Scorer, Tokens
from pit.stages.board import Gold
from pit.stages.context import Run
from pit.stages.refresh import Labeller


def gold_of(run: Run) -> Gold | None:
    """Who knows what an answer is worth, by `board.gold`; None where nobody is asked.

    Raises:
        CheckpointError: the judge is asked for and has not finished.
    """
    if run.config.board.gold == "judge":
        return judge_of(run)
    return oracle_of(run) if run.config.board.gold == "auto" and run.config.data.path is None else None


def best_gold(run: Run) -> tuple[Gold, str]:
    """Whoever knows most of what answers are worth, and the name: the oracle of a synthetic task, else the judge.

    Raises:
        CheckpointError: it would be the judge, and the judge has not finished.
    """
    return (oracle_of(run), "oracle") if run.config.data.path is None else (judge_of(run), "judge")


def judge_of(run: Run) -> Gold:
    """The reward model of the judge fold.

    Raises:
        CheckpointError: it has not finished.
    """
    scorer = Scorer(*run.trained("reward-judge"), run.layout(run.config.judge.packing))

    def judged(inputs: Tokens, answers: Tokens) -> Float64[np.ndarray, " n"]:
        return scorer.quality(inputs, [answers])[:, 0].astype(np.float64)

    return judged


def labeller_of(run: Run) -> Labeller:
    """Who labels pairs of samples: the oracle of a synthetic task, by the sign of the difference in quality.

    Raises:
        ConfigError: the data have no oracle.
    """
    if run.config.data.path is not None:
        raise ConfigError(
            f"refresh.prompts = {run.config.refresh.prompts}: samples must be labelled, and only a synthetic task "
            "has an oracle; set it to 0, or call pit.stages.refresh.make_pairs with a labeller of your own"
        )
    known = oracle_of(run)

    def label(inputs: Tokens, first: Tokens, second: Tokens) -> Int64[np.ndarray, " n"]:
        sign: Int64[np.ndarray, " n"] = np.sign(known(inputs, first) - known(inputs, second)).astype(np.int64)
        return sign

    return label


def oracle_of(run: Run) -> Gold:
    """The hidden quality of the synthetic task's answers, 0 to 1."""
    template, oracle = run.template, ORACLES[run.config.data.task]

    def quality(inputs: Tokens, answers: Tokens) -> Float64[np.ndarray, " n"]:
        pairs = zip(inputs, answers, strict=True)
        values = [oracle.quality(template.decode_prompt(x)[0].content, template.decode_answer(y)) for x, y in pairs]
        return np.array(values, np.float64)

    return quality
