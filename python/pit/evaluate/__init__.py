"""Evaluation: intervals for every reported number, and the file that holds them.

`pit.evaluate.stats` turns scores into figures with intervals; `pit.evaluate.schema` is the shape of `results.json`.
"""
