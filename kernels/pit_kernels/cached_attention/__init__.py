"""Decode-time attention over a shared prefix and an own suffix."""
