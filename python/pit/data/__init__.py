"""Preference data: readers, folds, the tree template, the tokenizer, the token store and a synthetic task.

The package imports no JAX, so that data workers stay light.
"""
