"""The family "describe", the task of the demo: report some of the facts that a prompt lists about a thing.

A small model can do this in one pass, so an improver can only repair errors of sampling. The oracle is not exported
here; see `pit.data.synthetic.oracle`.
"""

from pit.data.synthetic.describe.corruptions import RUNGS, clean_answer, corruptions, progress
from pit.data.synthetic.describe.task import preference_at, prompt_at
from pit.data.synthetic.shared import subset_of

__all__ = ["RUNGS", "clean_answer", "corruptions", "preference_at", "progress", "prompt_at", "subset_of"]
