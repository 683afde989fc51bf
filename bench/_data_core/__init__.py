"""The rows of figures of `data_core.py`, by topic, and the packers and samplers that they are compared with."""
