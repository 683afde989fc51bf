"""Log-probabilities of chosen tokens without keeping the logits."""
