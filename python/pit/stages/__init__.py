"""The stages of PIT as values: fine-tuning, reward models, reinforcement learning, and the graph that they form."""
