"""The record of an answer and its passes as texts, the same in lines of output and in responses."""

from collections.abc import Sequence
from typing import Any

from pit.data.template import Template
from pit.improve import Step


def record_of(template: Template, first: list[int], steps: Sequence[Step]) -> dict[str, Any]:
    """Return the answer kept after each pass, from y0 on, and the candidate, gap and verdict of each pass.

    Args:
        template: layout of texts as tokens.
        first: contents of y0.
        steps: the passes.
    """
    decode = template.decode_answer
    return {
        "answers": [decode(first), *(decode(step.answer) for step in steps)],
        "steps": [
            {"candidate": decode(step.candidate), "gap": round(step.gap, 6), "accepted": step.accepted}
            for step in steps
        ],
    }
