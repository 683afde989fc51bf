"""The stages of the method, a short file each: fine-tuning, reward models, reinforcement learning."""
