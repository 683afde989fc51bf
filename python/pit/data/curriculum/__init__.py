"""Which example comes next, and where its reference comes from: fixed schedules, and curricula that learn from gaps.

`Staged` visits every example once an epoch and draws reference sources from weights that change with the step (PIT,
section 3.4); `Adaptive` draws from weights that a strategy computes from the gaps seen in training. Both are functions
of seed, settings and feedback: prefetching, threads and the number of processes never change what is drawn.
"""

from pit.data.curriculum.adaptive import Adaptive
from pit.data.curriculum.difficulty import edit_distance, ranks, tree_length
from pit.data.curriculum.history import History, Visit, read_history
from pit.data.curriculum.loader import DrawLoader
from pit.data.curriculum.simulate import hidden_difficulty, simulate
from pit.data.curriculum.staged import Staged, hand_over
from pit.data.curriculum.strategies import GapBand, Learnability, Seen, Strategy
from pit.data.curriculum.words import Curriculum, CurriculumError, Draws, Feedback

__all__ = [
    "Adaptive",
    "Curriculum",
    "CurriculumError",
    "DrawLoader",
    "Draws",
    "Feedback",
    "GapBand",
    "History",
    "Learnability",
    "Seen",
    "Staged",
    "Strategy",
    "Visit",
    "edit_distance",
    "hand_over",
    "hidden_difficulty",
    "ranks",
    "read_history",
    "simulate",
    "tree_length",
]
