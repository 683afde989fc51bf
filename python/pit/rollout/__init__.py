"""Sampling from shared prefixes, and scoring what was sampled with the reward models."""
