"""Checkpoint files: loading without running code, verified writing, ranking of epochs."""

from wsfvit.checkpoint.io import load_checkpoint, load_state_dict_file, read_checkpoint, save_atomic
from wsfvit.checkpoint.store import CheckpointStore

__all__ = ["CheckpointStore", "load_checkpoint", "load_state_dict_file", "read_checkpoint", "save_atomic"]
