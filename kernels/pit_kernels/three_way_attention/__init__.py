"""Attention over rows of packed context trees."""
