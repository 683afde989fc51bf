"""Reinforcement learning: one step from draws to an update, and everything that a step is made of."""
