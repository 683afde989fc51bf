"""What `bench/evidence.py` is made of: variants and their trials, what must hold, and what all of it says."""
