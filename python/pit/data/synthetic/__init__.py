"""Synthetic instructions with a hidden quality: the data of the demonstration run.

The oracle is not exported here; see `pit.data.synthetic.oracle`.
"""

from pit.data.synthetic.corruptions import clean_answer, corruptions, progress
from pit.data.synthetic.task import generate, generate_prompts, preference_at, prompt_at, write

__all__ = [
    "clean_answer",
    "corruptions",
    "generate",
    "generate_prompts",
    "preference_at",
    "progress",
    "prompt_at",
    "write",
]
