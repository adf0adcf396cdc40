"""Kill trainings by SIGKILL at random moments, resume them, and compare with an uninterrupted one bit for bit.

    python -m tools.kill_resume --kills 100 --out results/robustness/kills.json
    python -m tools.kill_resume --kills 10 --processes 2 --folder output/kills -- --dataset digits --model ...

Without a training command it runs short trainings on generated images: with and without dataloader workers, on one and
two processes, with gradient accumulation, mixed precision, two kinds of network. After ``--`` comes the command line of
one training, without --output, --experiment and --resume.

A kill hits all processes, or one of two; it comes after a random time, while starting up too, or just before a random
one of the calls that change the run's files. In the end the weights, their EMA, the optimizer, the best checkpoint and
summary.csv (without its two columns of time) must equal those of the uninterrupted training; otherwise the exit code is
1. A run is a fork of a process that has imported everything, so a restart costs little.

Prints the kills and differences of each training, --out writes them as JSON. The default 24 kills take two minutes.
"""

import csv
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import add_out, build_parser, environment, write_results
from wsfvit.checkpoint.io import read_checkpoint
from wsfvit.checkpoint.store import BEST, LAST, CheckpointStore
from wsfvit.cli.train import parse_train_args
from wsfvit.train.classify import run_training
from wsfvit.utils.errors import run_main
from wsfvit.utils.tables import markdown_table

RESULT_FILES = (LAST, BEST)
TIMED = ("seconds", "images_per_s")
UNCOMPARED = (*TIMED, "args")  # a resumed run has other arguments
FILE_CALLS = ("fsync", "link", "replace", "unlink")
CALLS_OF_A_RUN = 40  # roughly; the fatal one is drawn from these
KILLS_OF_A_RUN = 4  # of the short trainings; then another one starts
# Seconds after which the other processes are killed too, as torchrun does at once: a start without the dead one would
# wait for it until a timeout.
PATIENCE = 3


@dataclass(frozen=True)
class Case:
    """A training: its command line without folders, and its number of processes."""

    name: str
    argv: tuple[str, ...]
    processes: int = 1


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        at: ``time`` or ``file call``.
        hit: ``all`` or ``rank N``.
        seconds: How long the run had lasted.
        saved: Epoch and batch of the checkpoint that the next run resumes from; None before the first save.
        writing: Whether a half-written file was left behind.
        waiting: Whether a process that was not hit had not noticed after ``PATIENCE`` seconds.
    """

    at: str
    hit: str
    seconds: float
    saved: tuple[int, int] | None
    writing: bool
    waiting: bool


def short_cases() -> list[Case]:
    """Trainings of three epochs of six batches that draw random numbers wherever a training can."""
    data = "--dataset synthetic --train-num-samples 24 --val-num-samples 6 --num-classes 4 --img-size 32 -b 4 -vb 4"
    steps = "--device cpu --epochs 3 --warmup-epochs 1 --opt adamw --lr 1e-3 --clip-grad 1 --no-tensorboard"
    noise = "--aa rand-m9-mstd0.5-inc1 --reprob 0.5 --mixup 0.4 --cutmix 1 --drop 0.1 --drop-path 0.2"
    resnet = f"{data} {steps} {noise} --model-ema --model-ema-decay 0.7 --recovery-interval 1 --model test_resnet"
    vit = resnet.replace("test_resnet", "test_vit")
    two = resnet.replace("-b 4", "-b 2")
    table = [
        ("batch norm", f"{resnet} -j 0", 1),
        ("2 workers", f"{resnet} -j 2", 1),
        ("accumulation", f"{vit} -j 0 --grad-accum-steps 4 --sched-on-updates", 1),
        ("bfloat16", f"{vit} -j 0 --amp --amp-dtype bfloat16", 1),
        ("2 processes", f"{two} -j 0", 2),
        ("2 processes, accumulation", f"{two} -j 0 --grad-accum-steps 2 --no-ddp-bb", 2),
        ("2 processes, 2 workers, bfloat16", f"{two} -j 2 --amp --amp-dtype bfloat16", 2),
    ]
    return [Case(name, tuple(text.split()), processes) for name, text, processes in table]


def kill_at_call(step: int) -> None:
    """Make this process kill itself just before its ``step``-th call, from 0, that changes files."""
    left = step

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **kwargs: object) -> object:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*args, **kwargs)

        return wrapper

    for name in FILE_CALLS:
        setattr(os, name, counted(getattr(os, name)))


class Training:
    """The processes of one training, started at once; what they print is appended to ``folder``.log.

    Args:
        case: What to train.
        folder: The run folder; its state is continued.
        doomed_call: Rank 0 kills itself just before this file call.
    """

    def __init__(self, case: Case, folder: Path, doomed_call: int | None = None) -> None:
        self.log = folder.with_name(folder.name + ".log")
        argv = [*case.argv, "--output", str(folder.parent), "--experiment", folder.name, "--resume", "auto"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.started = time.perf_counter()
        self.living: dict[int, int] = {}  # process id by rank
        self.statuses: dict[int, int] = {}  # exit code by rank, negative for a signal
        for rank in range(case.processes):
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.processes, "MASTER_PORT": port}
            self.living[rank] = self._fork(argv, places, doomed_call if rank == 0 else None)

    def _fork(self, argv: list[str], places: dict[str, int], doomed_call: int | None) -> int:
        sys.stdout.flush()
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.setpgid(0, 0)  # its dataloader workers are in this group
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ.update({"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in places.items()}})
            if doomed_call is not None:
                kill_at_call(doomed_call)
            run_training(parse_train_args(argv))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started

    def wait(self, until: Callable[[], bool]) -> None:
        """Returns when all processes have ended or ``until`` holds."""
        while self.living and not until():
            for rank, child in list(self.living.items()):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    self.statuses[rank] = os.waitstatus_to_exitcode(status)
                    del self.living[rank]
                    try:
                        os.killpg(child, signal.SIGKILL)  # dataloader workers whose rank has ended
                    except ProcessLookupError:
                        pass
            time.sleep(0.002)

    def kill(self, ranks: Sequence[int]) -> None:
        """Kills those of ``ranks`` that live."""
        for rank in ranks:
            if rank in self.living:
                os.kill(self.living[rank], signal.SIGKILL)

    def check(self) -> bool:
        """Whether the training ended well; False if a process was killed.

        Raises:
            RuntimeError: it failed by itself.
        """
        if -signal.SIGKILL in self.statuses.values():
            return False
        if any(self.statuses.values()):
            raise RuntimeError(f"a training failed ({self.statuses}): see {self.log}\n{self.log.read_text()[-3000:]}")
        return True


def finish(case: Case, folder: Path) -> tuple[float, float]:
    """Train to the end; returns the seconds until the run folder was written to, and in total."""
    training = Training(case, folder)
    training.wait((folder / "args.yaml").exists)
    starting = training.seconds
    training.wait(lambda: False)
    if not training.check():
        raise RuntimeError(f"a training was killed by another program: see {training.log}")
    return starting, training.seconds


def attempt(case: Case, folder: Path, longest: float, rng: random.Random) -> Kill | None:
    """Continue the training in ``folder`` and kill it within ``longest`` seconds; None if it ended before."""
    doomed_call = rng.randrange(CALLS_OF_A_RUN) if rng.random() < 0.4 else None
    hit = list(range(case.processes)) if doomed_call is None and rng.random() < 0.5 else [rng.randrange(case.processes)]
    moment = rng.uniform(0, longest)
    training = Training(case, folder, doomed_call)
    if doomed_call is None:
        training.wait(lambda: training.seconds > moment)
        training.kill(hit)
    else:
        hit = [0]
        training.wait(lambda: 0 in training.statuses)
    killed = training.seconds
    training.wait(lambda: training.seconds > killed + PATIENCE)
    waiting = bool(training.living)
    training.kill(range(case.processes))
    training.wait(lambda: False)
    if training.check():
        return None
    return Kill(
        at="time" if doomed_call is None else "file call",
        hit="all" if len(hit) == case.processes else f"rank {hit[0]}",
        seconds=round(killed, 3),
        saved=saved_position(folder),
        writing=any(folder.glob(".*.tmp")),
        waiting=waiting,
    )


def saved_position(folder: Path) -> tuple[int, int] | None:
    """Epoch and batch that the newest state in ``folder`` continues at."""
    newest = CheckpointStore(folder).load_newest()
    return newest and (newest[0]["position"]["epoch"], newest[0]["position"]["batch"])


def first_difference(one: Any, two: Any, path: str = "") -> str | None:
    """Where two contents of checkpoints first differ in a bit, leaving out times and arguments; None if nowhere."""
    if isinstance(one, dict) and isinstance(two, dict):
        if one.keys() != two.keys():
            return f"{path}: keys {sorted(map(str, one.keys() ^ two.keys()))}"
        pairs = [(one[key], two[key], f"{path}.{key}") for key in one if key not in UNCOMPARED]
    elif isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        if len(one) != len(two):
            return f"{path}: {len(one)} and {len(two)} items"
        pairs = [(a, b, f"{path}[{index}]") for index, (a, b) in enumerate(zip(one, two, strict=True))]
    elif isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return None if one.dtype == two.dtype and torch.equal(one, two) else f"{path}: tensors differ"
    else:
        return None if one == two else f"{path}: {one} and {two}"
    return next((found for pair in pairs if (found := first_difference(*pair))), None)


def read_table(folder: Path) -> list[dict[str, str]]:
    """The lines of summary.csv without the columns of time."""
    with open(folder / "summary.csv", newline="", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key not in TIMED} for row in csv.DictReader(file)]


def compare_runs(one: Path, two: Path) -> str | None:
    """Where the results of two run folders first differ; None if nowhere."""
    for name in RESULT_FILES:
        if found := first_difference(read_checkpoint(one / name), read_checkpoint(two / name), name):
            return found
    return first_difference(read_table(one), read_table(two), "summary.csv")


def check_case(case: Case, folder: Path, kills: int, kills_of_a_run: int, rng: random.Random) -> dict[str, Any]:
    """Kill ``case`` that many times, over as many runs as it takes, and compare each run with an uninterrupted one.

    Returns:
        The record, primitives only; ``differences`` is empty if all runs are equal.
    """
    folder.mkdir(parents=True)
    starting, whole = finish(case, folder / "uninterrupted")
    # Spreads the kills over the run, which resumes from the newest checkpoint each time.
    longest = starting + 2 * (whole - starting) / (min(kills, kills_of_a_run) + 1)
    done: list[Kill] = []
    differences, runs = [], 0
    while len(done) < kills:
        run = folder / f"killed-{runs}"
        for _ in range(min(kills - len(done), kills_of_a_run)):
            kill = attempt(case, run, longest, rng)
            if kill is None:
                break
            done.append(kill)
        finish(case, run)
        if found := compare_runs(folder / "uninterrupted", run):
            differences.append(f"{run.name}: {found}")
        runs += 1
    shown = {"name": case.name, "processes": case.processes, "argv": " ".join(case.argv)}
    times = {"seconds_to_start": round(starting, 3), "seconds_uninterrupted": round(whole, 3)}
    return shown | times | {"runs": runs, "differences": differences, "kills": [asdict(kill) for kill in done]}


def print_checks(checks: list[dict[str, Any]]) -> None:
    rows = []
    for check in checks:
        kills = check["kills"]
        saved = Counter("start" if k["saved"] is None else "mid" if k["saved"][1] else "end" for k in kills)
        waiting = sum(k["waiting"] for k in kills)
        states = [str(saved[key]) for key in ("start", "mid", "end")]
        writing = sum(k["writing"] or k["at"] == "file call" for k in kills)
        same = str(check["runs"] - len(check["differences"]))
        rows.append([check["name"], str(len(kills)), *states, str(writing), str(waiting), str(check["runs"]), same])
    header = ["training", "kills", "unsaved", "in an epoch", "at an end", "in a write", "rest waited", "runs", "equal"]
    print(markdown_table(header, rows))
    for check in checks:
        for difference in check["differences"]:
            print(f"{check['name']}, {difference}")


def main(argv: list[str] | None = None) -> None:
    parser = build_parser("tools.kill_resume", __doc__)
    parser.add_argument("training", nargs="*", metavar="-- ARGS", help="one training (default: the short ones)")
    parser.add_argument("--kills", type=int, default=24, metavar="N", help="kills in all")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes of the one training")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--folder", metavar="DIR", help="new folder for the runs (default: temporary)")
    add_out(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # threads do not survive a fork
    described = {"environment": environment(), "settings": vars(args)}
    cases = [Case("given", tuple(args.training), args.processes)] if args.training else short_cases()
    rng, checks = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        for index, case in enumerate(cases):
            share = args.kills // len(cases) + (index < args.kills % len(cases))
            of_a_run = share if args.training else KILLS_OF_A_RUN
            checks.append(check_case(case, folder / str(index), share, of_a_run, rng))
            print(f"{case.name}: {share} kills, {len(checks[-1]['differences'])} differences", flush=True)
    print_checks(checks)
    if args.out:
        write_results(args.out, described | {"results": checks})
        print(f"wrote {args.out}")
    sys.exit(any(check["differences"] for check in checks))


if __name__ == "__main__":
    run_main(main)
