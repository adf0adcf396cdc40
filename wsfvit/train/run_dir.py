"""The run directory: its name and lock, the state to resume, and how the arguments differ from the earlier run's."""

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from wsfvit.checkpoint.io import read_checkpoint
from wsfvit.checkpoint.store import CheckpointStore
from wsfvit.cli.config import read_config
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import held

# Seconds for a run that is stopping to save its state, and for a network file system to notice a dead process.
PATIENCE = 100.0
# Where machines keep their data and write to.
PLACES = {
    "config", "data", "data_dir", "mnist", "official_test", "output", "test_data", "train_annotations", "train_images",
    "val_annotations", "val_data", "val_images",
}  # fmt: skip
# Arguments that may differ between runs without a note: places, and what is printed.
UNREMARKABLE = PLACES | {
    "dataset_download", "dry_run", "experiment", "initial_checkpoint", "loader_timeout", "log_interval", "pretrained",
    "pretrained_path", "resume", "trust_checkpoint", "workers",
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
    """Arguments of the run that is resumed, for ``parse_with_config``; no such file or run raises a ``UserError``.

    ``resume`` is a checkpoint file, or a run directory, whose arguments include its own place, and ``given`` holds the
    names of the arguments that are given again.
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
    """OUTPUT/EXPERIMENT; without ``--experiment``, a new name of time and ``name``; the same in all processes."""
    stamp, number = f"{datetime.now():%Y%m%d-%H%M%S}-{name.replace('/', '_')}", 1
    folder = Path(args.output or "output/train") / (args.experiment or stamp)
    while not args.experiment and folder.exists():  # two runs may start in one second
        number += 1
        folder = folder.with_name(f"{stamp}-{number}")
    found: Path = world.gather(folder)[0]
    return found


@contextmanager
def claimed_run_dir(folder: Path, world: World) -> Iterator[None]:
    """Create the run directory and lock it against other trainings until the block or this process ends.

    What killed writes have left in it is removed; at the end the directory itself, if nothing has been written. If
    another process still trains there after ``PATIENCE`` seconds, or it is not writable, a ``UserError`` is raised.
    """
    lock = folder / ".run.lock"
    with ExitStack() as until:
        if world.is_main:
            if not until.enter_context(held(lock)):
                world.log(f"another process trains in '{folder}': waiting up to {PATIENCE:.0f} s for it to end")
                if not until.enter_context(held(lock, PATIENCE)):
                    raise UserError(f"another process trains in '{folder}': stop it, or choose another --experiment")
            for left in (*folder.glob(".*.tmp"), *folder.glob("bad-steps/.*.tmp")):
                left.unlink(missing_ok=True)
        world.barrier()  # the other processes read what is there only now
        try:
            yield
        finally:
            with suppress(OSError):
                if world.is_main and os.listdir(folder) == [lock.name]:
                    lock.unlink()
                    folder.rmdir()


def read_resumed(args: argparse.Namespace, store: CheckpointStore, world: World) -> dict[str, Any] | None:
    """Read the training state that ``--resume`` names, in every process; None for a new run.

    ``store``, of the run directory, gets the ranking of epochs. A file that cannot be used, ``auto`` without an
    experiment's name, and a run directory that holds another run than the resumed one raise a ``UserError``.
    """
    auto, named = args.resume == "auto", Path(args.resume)
    if auto and not args.experiment:
        raise UserError("--resume auto looks in the folder of --experiment: pass --experiment NAME")
    is_file = bool(args.resume) and not auto and not named.is_dir()
    content = read_checkpoint(named, trust=args.trust_checkpoint) if is_file else None
    directory = store.folder if auto else named.parent if is_file else named
    inside = bool(args.resume) and directory.resolve() == store.folder.resolve()
    if world.is_main and not inside and store.files():
        raise UserError(
            f"'{store.folder}' already holds a run: continue it with --resume auto, or choose another --experiment"
        )
    if not args.resume:
        return None
    if content is not None:
        store.restore(content)
        world.log(f"resuming from '{named}'")
        return content
    if not inside:
        store = CheckpointStore(directory)  # continued elsewhere, with a ranking of its own
    found = store.load_newest() if world.is_main else None
    path = world.gather(found and found[1])[0]
    if path is None and not auto:
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
