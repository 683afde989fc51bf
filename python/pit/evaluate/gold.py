"""What answers are really worth, for the board to hold rewards against: the task's oracle, or the held-out judge.

Only figures of a log come of it: nothing is trained on it.
"""

import numpy as np
from jaxtyping import Float64

from pit.data.synthetic import oracle
from pit.rollout.score import Scorer, Tokens
from pit.stages.board import Gold
from pit.stages.context import Run


def gold_of(run: Run) -> Gold | None:
    """Who knows what an answer is worth, by `board.gold`; None where nobody is asked.

    Raises:
        CheckpointError: the judge is asked for and has not finished.
    """
    if run.config.board.gold == "judge":
        scorer = Scorer(*run.trained("reward-judge"), run.layout(run.config.judge.packing))

        def judged(inputs: Tokens, answers: Tokens) -> Float64[np.ndarray, " n"]:
            return scorer.quality(inputs, [answers])[:, 0].astype(np.float64)

        return judged
    if run.config.board.gold == "auto" and run.config.data.path is None:
        template = run.template

        def known(inputs: Tokens, answers: Tokens) -> Float64[np.ndarray, " n"]:
            pairs = zip(inputs, answers, strict=True)
            values = [oracle.quality(template.decode_prompt(x)[0].content, template.decode_answer(y)) for x, y in pairs]
            return np.array(values, np.float64)

        return known
    return None
