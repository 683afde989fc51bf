"""Preference data: readers, folds, tree templates, tokenizer, token store, packing, curricula and synthetic tasks.

The package imports no JAX, so data workers stay light.
"""
