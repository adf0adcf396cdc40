"""Training: the trainer, its loop and state, and the tasks."""
