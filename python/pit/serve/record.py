"""The record of an answer and its rounds as texts, the same in lines of output and in responses."""

from collections.abc import Sequence
from typing import Any

from pit.data.template import Template
from pit.improve import Made, Step


def record_of(template: Template, first: list[int], steps: Sequence[Step], made: Sequence[Made]) -> dict[str, Any]:
    """Return the answer kept after each round, from y0 on, and the candidate, gap and verdict of each round.

    Where rounds made more answers than one, all of them follow as `made`, each with the number of its `source`.

    Args:
        template: layout of texts as tokens.
        first: contents of y0.
        steps: the rounds.
        made: all answers, y0 first.
    """
    decode = template.decode_answer
    every = [{"answer": decode(answer.tokens), "source": answer.source} for answer in made]
    return {
        "answers": [decode(first), *(decode(step.answer) for step in steps)],
        "steps": [
            {"candidate": decode(step.candidate), "gap": round(step.gap, 6), "accepted": step.accepted}
            for step in steps
        ],
        **({"made": every} if len(made) > 1 + len(steps) else {}),
    }
