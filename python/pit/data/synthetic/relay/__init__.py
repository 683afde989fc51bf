"""The family "relay": follow who passes to whom, and name the passes that are made, the last one first.

An answer must open with what comes out at its end, so a shallow model that looks up one pass at a time cannot write it
at once; given a draft, it can go on from what is right there. A second look has a reason to help. The oracle is not
exported here; see `pit.data.synthetic.oracle`.
"""

from pit.data.synthetic.relay.corruptions import RUNGS, clean_answer, corruptions, progress
from pit.data.synthetic.relay.task import preference_at, prompt_at

__all__ = ["RUNGS", "clean_answer", "corruptions", "preference_at", "progress", "prompt_at"]
