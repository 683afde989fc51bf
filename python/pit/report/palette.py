"""Colours of the report and its plots: blue for better, orange for worse, grey for baselines.

Blue and orange remain distinct for colour-blind readers (after Okabe and Ito 2008). Text has a contrast of at least 4.5
to its background, in the light and in the dark palette.
"""

LIGHT = {
    "paper": "#fcfbf8",
    "panel": "#f4f2ec",
    "ink": "#1b2330",
    "muted": "#5a6472",
    "rule": "#dedad0",
    "blue": "#0067a3",
    "orange": "#b84a00",
    "teal": "#00745f",
    "grey": "#6a717d",
    "blue_tint": "#dcebf5",
    "orange_tint": "#fae5d6",
}
DARK = {
    "paper": "#13161b",
    "panel": "#1b2027",
    "ink": "#e7e5df",
    "muted": "#a0a8b4",
    "rule": "#303741",
    "blue": "#6bb8ee",
    "orange": "#f2a065",
    "teal": "#52c7ae",
    "grey": "#98a0ac",
    "blue_tint": "#173549",
    "orange_tint": "#47290f",
}
SERIES = ("blue", "orange", "teal", "grey")
"""Colours of the lines of a plot, in order."""
