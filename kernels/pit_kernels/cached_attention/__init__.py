"""Decode-time attention over a shared prefix and each slot's own suffix."""
