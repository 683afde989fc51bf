"""True worth of answers: by the task's oracle, or by the held-out judge.

The hacking board compares rewards with it, and only logged figures come of that. Where reward models are refreshed, the
oracle also stands for the people who would label samples: it says which of two answers is better, and nothing more.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float64, Int64

from pit.config import ConfigError, FieldError
from pit.data.synthetic.oracle import ORACLES, Oracle
from pit.data.tokens import Sequences, Tokens
from pit.rl.records import Gold, Labeller
from pit.rollout.score import ModelScorer
from pit.run.folder import Run
from pit.run.stage import Services
from pit.stages import reward


def services(profile_steps: int = 0) -> Services:
    """Return the services of the evaluation to the stages: gold and labels."""
    return Services(profile_steps, gold_of, labeller_of)


def gold_of(run: Run) -> Gold | None:
    """Return the true worth of answers by `board.gold`; None where nobody knows it.

    Raises:
        CheckpointError: the judge is asked for and has not finished.
    """
    if run.config.board.gold == "judge":
        return judge_of(run)
    return oracle_of(run) if run.config.board.gold == "auto" and run.config.data.synthetic else None


def best_gold(run: Run) -> tuple[Gold, str]:
    """Return the best knowledge of the worth of answers, and its name: the oracle of a synthetic task, else the judge.

    Raises:
        CheckpointError: it would be the judge, and the judge has not finished.
    """
    return (oracle_of(run), "oracle") if run.config.data.synthetic else (judge_of(run), "judge")


def judge_of(run: Run) -> Gold:
    """Return the reward model of the judge fold.

    Raises:
        CheckpointError: it has not finished.
    """
    scorer = ModelScorer(reward.JUDGE.load(run), run.layout(run.config.reward_judge.packing))

    def judged(inputs: Sequences, answers: Sequences) -> Float64[np.ndarray, " n"]:
        return scorer.quality(inputs, [answers])[:, 0].astype(np.float64)

    return judged


def labeller_of(run: Run) -> Labeller:
    """Return the labeller of pairs of samples: the oracle of a synthetic task, by the sign of the difference.

    Raises:
        ConfigError: the data have no oracle.
    """
    if not run.config.data.synthetic:
        raise FieldError(
            "refresh.prompts",
            run.config.refresh.prompts,
            "needs labelled samples, and only a synthetic task has an oracle",
            "set {path}=0, or call pit.stages.refresh.make_pairs with a labeller of your own",
        )
    known = oracle_of(run)

    def label(inputs: Sequences, first: Sequences, second: Sequences) -> Int64[np.ndarray, " n"]:
        sign: Int64[np.ndarray, " n"] = np.sign(known(inputs, first) - known(inputs, second)).astype(np.int64)
        return sign

    return label


def oracle_of(run: Run) -> Gold:
    """Return the hidden quality of the synthetic task's answers, 0 to 1."""
    oracle = _oracle(run)

    def quality(inputs: Sequences, answers: Sequences) -> Float64[np.ndarray, " n"]:
        return np.array([oracle.quality(*texts) for texts in _texts(run, inputs, answers)], np.float64)

    return quality


def aspects_of(run: Run) -> Callable[[Sequences, Sequences], list[dict[str, float]]]:
    """Return the function that gives the aspects of the synthetic task's answers, each 0 to 1, by name."""
    oracle = _oracle(run)
    return lambda inputs, answers: [oracle.aspects(*texts) for texts in _texts(run, inputs, answers)]


def _oracle(run: Run) -> Oracle:
    task = run.config.data.task
    if task is None:
        raise ConfigError("data.task = None: only a synthetic task has an oracle; set data.task=describe, for example")
    return ORACLES[task]


def _texts(run: Run, inputs: Sequences, answers: Sequences) -> Iterator[tuple[str, str]]:
    """Yield each prompt and answer as texts, in role tokens or in a chat format; a synthetic prompt is one message."""
    template = run.template
    for x, y in zip(Tokens.of(inputs).rows(), Tokens.of(answers).rows(), strict=True):
        yield template.decode_prompt(x)[0].content, template.decode_answer(y)
