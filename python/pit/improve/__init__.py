"""Improvement at inference (PIT, algorithm 2, and the search that it is the simplest case of)."""

from pit.improve.models import Models, strategy_of
from pit.improve.record import config_of
from pit.improve.rounds import Round, Writer, search
from pit.improve.trajectory import Made, Step, Trajectory, improve, made_of, steps_of

__all__ = [
    "Made",
    "Models",
    "Round",
    "Step",
    "Trajectory",
    "Writer",
    "config_of",
    "improve",
    "made_of",
    "search",
    "steps_of",
    "strategy_of",
]
