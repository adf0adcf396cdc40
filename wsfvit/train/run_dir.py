"""The run directory: its name and lock, the state to resume, and how the arguments differ from the earlier run's."""

import argparse
import os
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from wsfvit.checkpoint.io import read_checkpoint
from wsfvit.checkpoint.store import CheckpointStore
from wsfvit.cli.config import read_config
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import held, make_folder

# Seconds for a run that is stopping to save its state, and for a network file system to notice a dead process.
PATIENCE = 100.0
# Where machines keep their data and write to.
PLACES = {
    "config", "data", "data_dir", "mnist", "official_test", "output", "test_data", "train_annotations", "train_images",
    "val_annotations", "val_data", "val_images",
}  # fmt: skip
# Arguments that may differ between runs without a note: places, and what is printed.
UNREMARKABLE = PLACES | {
    "dataset_download", "dry_run", "experiment", "initial_checkpoint", "log_interval", "pretrained", "pretrained_path",
    "resume", "trust_checkpoint", "workers",
}  # fmt: skip

# Arguments that a resumed run never takes from the earlier one: what to resume, where to write, and what imports code.
OWN = {"config", "device_modules", "dry_run", "experiment", "imports", "no_resume_opt", "output", "resume",
       "start_epoch", "trust_checkpoint"}  # fmt: skip
# An argument that is given again leaves out others of the earlier run, which say the same in another way.
REPLACES = {
    "data": {"data_dir"}, "data_dir": {"data"}, "img_size": {"input_size"}, "input_size": {"img_size"},
    "grad_accum_steps": {"global_batch_size"}, "global_batch_size": {"grad_accum_steps"},
    "lr_base": {"lr"}, "lr_base_size": {"lr"}, "lr_base_scale": {"lr"},
}  # fmt: skip


def read_arguments(resume: str, given: set[str]) -> dict[str, Any]:
    """Arguments of the run that is resumed, for ``parse_with_config``.

    Args:
        resume: Checkpoint file, or run directory, whose arguments include its own place.
        given: Names of the arguments that are given again.

    Raises:
        UserError: no such file or run.
    """
    saved: Any
    folder = Path(os.path.abspath(resume))
    if folder.is_dir():
        if not (folder / "args.yaml").is_file():
            raise UserError(f"--resume {resume}: the folder holds no run (no args.yaml): name a run folder or a file")
        saved = read_config(folder / "args.yaml")
        place = {"output": str(folder.parent), "experiment": folder.name}
    else:
        saved, place = read_checkpoint(resume, trust="trust_checkpoint" in given).get("args"), {}
        if not isinstance(saved, dict):  # files of other programs
            return {}
    replaced = {other for key in given for other in REPLACES.get(key, ())}
    if saved.get("global_batch_size"):
        replaced.add("grad_accum_steps")  # follows from it and the number of processes
    return {key: saved[key] for key in saved.keys() - OWN - replaced} | place


def name_run_dir(args: argparse.Namespace, world: World, name: str) -> Path:
    """OUTPUT/EXPERIMENT; without ``--experiment``, time and ``name``; the same in all processes."""
    name = args.experiment or f"{datetime.now():%Y%m%d-%H%M%S}-{name.replace('/', '_')}"
    folder: Path = world.gather(Path(args.output or "output/train") / name)[0]
    return folder


def create_run_dir(folder: Path, continued: bool) -> None:
    """Create the run directory.

    Raises:
        UserError: it already holds another run, or cannot be created.
    """
    make_folder(folder)
    if not continued and (folder / "last.pth.tar").exists():
        raise UserError(
            f"'{folder}' already holds a run: continue it with --resume auto, or choose another --experiment"
        )


def lock_run_dir(folder: Path, world: World, until: ExitStack) -> None:
    """Lock the run directory, if it exists, against other trainings until ``until`` or this process ends.

    Raises:
        UserError: another process still trains there after ``PATIENCE`` seconds, or it is not writable.
    """
    if world.is_main and folder.is_dir():
        lock = folder / ".run.lock"
        if not until.enter_context(held(lock)):
            world.log(f"another process trains in '{folder}': waiting up to {PATIENCE:.0f} s for it to end")
            if not until.enter_context(held(lock, PATIENCE)):
                raise UserError(f"another process trains in '{folder}': stop it, or choose another --experiment")
    world.barrier()  # the other processes read what is there only now


def read_resumed(args: argparse.Namespace, store: CheckpointStore, world: World) -> dict[str, Any] | None:
    """Read the training state that ``--resume`` names, in every process; None for a new run.

    Args:
        args: Arguments of train.py.
        store: Of the run directory; gets the ranking of epochs.
        world: The processes.

    Raises:
        UserError: the file cannot be used, or ``auto`` without an experiment's name.
    """
    if not args.resume:
        return None
    directory = Path(args.resume)
    if args.resume != "auto" and not directory.is_dir():
        content = read_checkpoint(args.resume, trust=args.trust_checkpoint)
        store.restore(content)
        world.log(f"resuming from '{args.resume}'")
        return content
    if args.resume != "auto" and not (store.folder.is_dir() and directory.samefile(store.folder)):
        store = CheckpointStore(directory)  # continued elsewhere, with a ranking of its own
    elif not args.experiment:
        raise UserError("--resume auto looks in the folder of --experiment: pass --experiment NAME")
    found = store.load_newest() if world.is_main else None
    path = world.gather(found and found[1])[0]
    if path is None and args.resume != "auto":
        raise UserError(f"--resume {args.resume}: the folder holds no checkpoint")
    if path is None:
        world.log(f"nothing to resume in '{store.folder}': starting from scratch")
        return None
    world.log(f"resuming from '{path}'")
    return found[0] if found else read_checkpoint(path)


def changed_arguments(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Arguments that differ between two runs, as ``lr 0.1 -> 0.2``.

    Under ``--resume auto`` without those that change nothing; else they are flags that were given again.
    """
    unremarkable = UNREMARKABLE if now.get("resume") in (None, "", "auto") else OWN - {"start_epoch", "device_modules"}
    return [
        f"{key} {saved[key]} -> {now[key]}"
        for key in sorted(saved.keys() & now.keys() - unremarkable)
        if saved[key] != now[key]
    ]


def primitive(value: Any) -> Any:
    """Convert tuples to lists, so that YAML and JSON give back what was written."""
    if isinstance(value, dict):
        return {key: primitive(item) for key, item in value.items()}
    return [primitive(item) for item in value] if isinstance(value, (list, tuple)) else value
