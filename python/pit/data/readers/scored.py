"""Several answers to a prompt with a score each: `prompt`, `responses` and `scores`, where a higher score is better.

Each two answers whose scores differ are a pair. Its margin, the difference, can be read as `difficulty_column`
"margin", or as "-margin", since a pair with a small margin is the harder one.
"""

import itertools
from collections.abc import Mapping

from pit.data.readers.columns import column, number_column, plain_text
from pit.data.readers.report import Reason, RowError
from pit.data.readers.trl import convert as convert_pair
from pit.data.readers.trl import require_no_other_name
from pit.types import Preference

MARGIN = "margin"
"""Column that the pairs of a row get."""


def convert(record: Mapping[str, object], difficulty_column: str | None = None) -> list[Preference]:
    """Return the pairs of a row of scored answers, best against worst first.

    Args:
        record: the row.
        difficulty_column: column for `Preference.difficulty`, of the row or `MARGIN`; None for no difficulty.

    Raises:
        RowError: a column is missing or of another type, a pair is unusable, or all scores are equal.
    """
    if record.get("prompt") is None:
        require_no_other_name(record)
    column(record, "prompt")
    responses, scores = column(record, "responses"), column(record, "scores")
    if not isinstance(responses, list) or not isinstance(scores, list) or len(responses) != len(scores):
        raise RowError(Reason.TYPE, "'responses' and 'scores' are not two lists of one length")
    texts = [plain_text(text, f"responses[{index}]") for index, text in enumerate(responses)]
    values = [number_column({"score": score}, "score") for score in scores]
    ranked = sorted(range(len(texts)), key=lambda index: -values[index])
    pairs = [(i, j) for i, j in itertools.combinations(ranked, 2) if values[i] > values[j]]
    if not pairs:
        raise RowError(Reason.TIED, f"{len(values)} answers have no two different scores")
    rows = []
    for better, worse in sorted(pairs, key=lambda pair: values[pair[1]] - values[pair[0]]):
        pair = {**record, "chosen": texts[better], "rejected": texts[worse], MARGIN: values[better] - values[worse]}
        row = convert_pair({name: value for name, value in pair.items() if name not in ("responses", "scores")})
        difficulty = number_column(pair, difficulty_column) if difficulty_column is not None else None
        rows.append(row._replace(difficulty=difficulty))
    return rows
