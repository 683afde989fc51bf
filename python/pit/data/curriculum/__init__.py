"""Curricula decide which example comes next and where its reference comes from.

`Staged` visits every example once per epoch and draws reference sources from weights that change with the step (PIT,
section 3.4); `Adaptive` draws from weights that a strategy computes from the gaps measured in training. Both are
functions of seed, settings and feedback: prefetching, threads and the number of processes never change the draws.
"""

from pit.data.curriculum.adaptive import Adaptive
from pit.data.curriculum.difficulty import answer_similarity, ranks, tree_length
from pit.data.curriculum.history import History, Visit, read_history
from pit.data.curriculum.loader import DrawLoader
from pit.data.curriculum.protocol import Curriculum, CurriculumError, Draws, Feedback
from pit.data.curriculum.simulate import hidden_difficulty, simulate
from pit.data.curriculum.staged import Staged, hand_over
from pit.data.curriculum.strategies import EntryStats, GapBand, Learnability, Strategy

__all__ = [
    "Adaptive",
    "Curriculum",
    "CurriculumError",
    "DrawLoader",
    "Draws",
    "EntryStats",
    "Feedback",
    "GapBand",
    "History",
    "Learnability",
    "Staged",
    "Strategy",
    "Visit",
    "answer_similarity",
    "hand_over",
    "hidden_difficulty",
    "ranks",
    "read_history",
    "simulate",
    "tree_length",
]
