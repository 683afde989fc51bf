"""Decoders and reward models in Flax NNX, their parameters as flat dictionaries, and how those are sharded."""
