"""The training machinery every stage shares: one jitted update, checkpoints, metrics and an interruptible loop."""
