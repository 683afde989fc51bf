"""The family "describe": report some of the facts that a prompt lists about a thing. The demonstration's task.

One pass of a small model can do all of it, so what is left for a second look is what sampling got wrong. The oracle
is not exported here; see `pit.data.synthetic.oracle`.
"""

from pit.data.synthetic.describe.corruptions import RUNGS, clean_answer, corruptions, progress
from pit.data.synthetic.describe.task import preference_at, prompt_at

__all__ = ["RUNGS", "clean_answer", "corruptions", "preference_at", "progress", "prompt_at"]
