"""Serving a finished run: JSON lines (`lines`, the command `pit improve`) and HTTP (`http`, the command `pit serve`).

Both hold a conversation to the checks of `question`.
"""
