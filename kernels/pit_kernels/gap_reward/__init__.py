"""Scores at the leaves of context trees, and the gaps made of them."""
