"""PIT: language models that learn self-improvement implicitly, from preference data (Wang et al., ICLR 2024)."""
