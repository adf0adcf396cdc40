"""Kill runs by SIGKILL while they save; after each the folder must hold an intact checkpoint that is not older.

    python killed_runs.py FOLDER

A program of its own, because it forks: the modules are imported once, then each run is a fork that costs nothing.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tools.faults import kill_at_call  # noqa: E402
from wsfvit.checkpoint.io import read_checkpoint  # noqa: E402
from wsfvit.checkpoint.store import CheckpointStore  # noqa: E402

SAVES = 3  # of a run that is killed at a step: enough that files are replaced, ranked out and removed


def metric_of(epoch: int) -> float:
    """Rises and falls, so that some epochs become the best and some drop out."""
    return float((epoch * 7) % 5)


def save_epochs(folder: Path, acknowledged: int, background: bool, count: float) -> None:
    """Continue the run in ``folder``; report each epoch after it is saved, as a byte into ``acknowledged``."""
    store = CheckpointStore(folder, keep=2, background=background)
    newest = store.load_newest()
    epoch = newest[0]["epoch"] + 1 if newest else 0
    while count > 0:
        value = {name: torch.full((20_000,), float(epoch)) for name in "abc"}
        store.save({"state_dict": value}, epoch=epoch, metric=metric_of(epoch))
        for tensor in value.values():
            tensor.fill_(-1)
        store.wait()
        os.write(acknowledged, b".")
        epoch, count = epoch + 1, count - 1
    store.wait()


def run(folder: Path, step: int | None, seconds: float) -> tuple[int, bool]:
    """One run in a fork, killed at a step or after ``seconds``; returns the reported epochs and if it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        if step is not None:
            kill_at_call(step)
        save_epochs(folder, writing, background=step is None, count=SAVES if step is not None else float("inf"))
        os._exit(0)
    os.close(writing)
    if step is None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        reported = len(pipe.read())
    assert os.WIFSIGNALED(status) or status == 0, status
    return reported, os.WIFSIGNALED(status)


def check(folder: Path, at_least: int, at_most: int) -> int:
    """Checks everything in ``folder``; returns the newest epoch (-1 for none)."""
    store = CheckpointStore(folder, keep=2)
    newest = store.load_newest()
    if newest is None:
        assert at_least == -1, f"epoch {at_least} is gone"
        return -1
    content, path = newest
    epoch = content["epoch"]
    assert at_least <= epoch <= at_most, f"{path.name}: epoch {epoch}, not {at_least} to {at_most}"
    whole = all(bool(tensor.eq(epoch).all()) for tensor in content["state_dict"].values())
    assert whole, f"{path.name} mixes checkpoints"
    assert store.best_metric == max(metric_of(e) for e in range(epoch + 1))
    best = read_checkpoint(folder / "model_best.pth.tar")
    assert best["metric"] >= store.best_metric, f"model_best is epoch {best['epoch']}"
    # Killed within its very first save, a run may keep that state under one of its names only.
    files = {path.name for path in folder.glob("checkpoint-*")}
    assert {f"checkpoint-{e}.pth.tar" for _, e in content["ranking"]["top"]} <= files or epoch == 0, files
    return int(epoch)


def killed_at_every_step(folder: Path) -> dict[str, int]:
    """Each run starts in a new folder and gets one step further, until one ends before it is killed."""
    killed, saved, alive = 0, 0, False
    while not alive:
        fresh = folder / f"step-{killed}"
        fresh.mkdir(parents=True)
        reported, was_killed = run(fresh, killed, 0)
        check(fresh, reported - 1, reported)
        killed, saved, alive = killed + was_killed, saved + reported, not was_killed
    return {"killed": killed, "saved": saved}


def killed_at_random_times(folder: Path) -> dict[str, int]:
    """Each run continues the one before."""
    folder.mkdir()
    rng, newest, saved, runs = random.Random(0), -1, 0, 10
    for _ in range(runs):
        reported, _ = run(folder, None, rng.uniform(0.05, 0.4))
        newest = check(folder, newest + reported, newest + reported + 1)
        saved += reported
    return {"killed": runs, "saved": saved}


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads do not survive a fork
    folder = Path(sys.argv[1])
    print(
        json.dumps({"step": killed_at_every_step(folder / "steps"), "time": killed_at_random_times(folder / "times")})
    )
