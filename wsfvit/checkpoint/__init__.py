"""Checkpoint files: reading without running code, verified writing, ranking of epochs."""
