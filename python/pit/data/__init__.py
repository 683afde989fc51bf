"""Preference readers, the template of a tree, the token store, the curriculum and the loader (no JAX here)."""
