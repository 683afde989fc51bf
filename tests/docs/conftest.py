"""The generators of the site are modules of `docs/`, and need none of what builds it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
