"""A run: its folder, its stages as values, and the common half of training one."""
