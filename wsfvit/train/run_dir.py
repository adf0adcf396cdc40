"""The folder of a run: its name, the state to continue from, and how the arguments differ from those before."""

import argparse
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from wsfvit.checkpoint.io import read_checkpoint
from wsfvit.checkpoint.store import CheckpointStore
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import held, make_folder

# Seconds in which a run that was told to stop saves its state, and a network file system notices that one has died.
PATIENCE = 100.0
# Where machines keep their data and write to.
PLACES = {
    "config", "data", "data_dir", "mnist", "official_test", "output", "test_data", "train_annotations", "train_images",
    "val_annotations", "val_data", "val_images",
}  # fmt: skip
# Arguments that may differ from run to run without a word: places, and what is shown.
UNREMARKABLE = PLACES | {
    "dataset_download", "dry_run", "experiment", "initial_checkpoint", "log_interval", "pretrained", "pretrained_path",
    "resume", "trust_checkpoint", "workers",
}  # fmt: skip


def run_folder(args: argparse.Namespace, world: World, name: str) -> Path:
    """OUTPUT/EXPERIMENT; without a name for the experiment, time and ``name``, the same in all processes."""
    name = args.experiment or f"{datetime.now():%Y%m%d-%H%M%S}-{name.replace('/', '_')}"
    folder: Path = world.gather(Path(args.output or "output/train") / name)[0]
    return folder


def create_folder(folder: Path, continued: bool) -> None:
    """Creates the run folder.

    Raises:
        UserError: it already holds a run that is not continued, or cannot be created.
    """
    make_folder(folder)
    if not continued and (folder / "last.pth.tar").exists():
        raise UserError(
            f"'{folder}' already holds a run: continue it with --resume auto, or choose another --experiment"
        )


def claim_folder(folder: Path, world: World, until_then: ExitStack) -> None:
    """Keeps other trainings out of the run folder, where there is one, until ``until_then`` or this process ends.

    Raises:
        UserError: another process still trains there after `PATIENCE` seconds, or the folder cannot be written to.
    """
    if world.is_main and folder.is_dir():
        lock = folder / ".run.lock"
        if not until_then.enter_context(held(lock)):
            world.log(f"another process trains in '{folder}': waiting up to {PATIENCE:.0f} s for it to end")
            if not until_then.enter_context(held(lock, PATIENCE)):
                raise UserError(f"another process trains in '{folder}': stop it, or choose another --experiment")
    world.barrier()  # the other processes read what is there only now


def read_resumed(args: argparse.Namespace, store: CheckpointStore, world: World) -> dict[str, Any] | None:
    """The training state that ``--resume`` names, read by every process, or None for a new run.

    Args:
        args: Arguments of train.py.
        store: That of the run folder; takes over the ranking of epochs.
        world: The processes.

    Raises:
        UserError: the file cannot be used, or ``auto`` without an experiment's name.
    """
    if not args.resume:
        return None
    if args.resume != "auto":
        content = read_checkpoint(args.resume, trust=args.trust_checkpoint)
        store.restore(content)
        return content
    if not args.experiment:
        raise UserError("--resume auto looks in the folder of --experiment: pass --experiment NAME")
    found = store.load_newest() if world.is_main else None
    path = world.gather(found and found[1])[0]
    if path is None:
        world.log(f"nothing to resume in '{store.folder}': starting anew")
        return None
    world.log(f"resuming from '{path}'")
    return found[0] if found else read_checkpoint(path)


def changed_arguments(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each argument that differs between two runs as ``lr 0.1 -> 0.2``, leaving out what changes nothing."""
    return [
        f"{key} {saved[key]} -> {now[key]}"
        for key in sorted(saved.keys() & now.keys() - UNREMARKABLE)
        if saved[key] != now[key]
    ]


def primitive(value: Any) -> Any:
    """Tuples become lists, so that YAML and JSON give back what was written."""
    if isinstance(value, dict):
        return {key: primitive(item) for key, item in value.items()}
    return [primitive(item) for item in value] if isinstance(value, (list, tuple)) else value
