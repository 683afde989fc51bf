"""Losses as pure functions of arrays. Each returns (sum, weight) in float32; the caller divides once, at the end."""
