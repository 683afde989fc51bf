"""Sampling from shared prefixes, and scoring answers with reward models."""
