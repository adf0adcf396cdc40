"""Interrupt trainings of the three tasks at random moments, resume them, and compare with uninterrupted ones.

    python -m tools.kill_resume --kills 100 --starts 2 --out results/robustness/kills.json
    python -m tools.kill_resume --kills 10 --processes 2 --folder output/kills -- --dataset digits --model ...

Without a training command it runs short trainings on generated data: with and without dataloader workers, on one and
two processes, with gradient accumulation and mixed precision. After ``--`` comes the command line of one training
(``detection train ...`` for the other tasks), without --output, --experiment and --resume. What interrupts it (--how):

- SIGKILL to all processes or one of two, after a random time or just before a random call that changes files;
- SIGTERM to all processes and workers, and again after a moment, after a random time or in a validation: once the
  trainer runs, it must save and end with exit code 75;
- a full disk from a random call that writes on: the run must end in one line.

In the end weights, EMA, optimizer, best checkpoint and summary.csv (without its columns of time) must equal those of
an uninterrupted training. --starts starts trainings of one new folder at once: one may train, the others end in one
line. Otherwise the exit code is 1. A run is a fork of a process that has imported everything, so it starts quickly.

Prints the interruptions and differences of each training, --out writes them as JSON. A kill takes five seconds of CPU.
"""

import csv
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import add_out, build_parser, environment, write_results
from tools.faults import Case, Training, fill_disk, kill_at_call, short_cases, terminate_in_validation, terminate_twice
from wsfvit.checkpoint.io import read_checkpoint
from wsfvit.checkpoint.store import BEST, LAST, CheckpointStore
from wsfvit.detection.shapes import write_shapes
from wsfvit.train.signals import STOPPED_EXIT_CODE
from wsfvit.utils.errors import UserError, run_main
from wsfvit.utils.tables import markdown_table

IMPORTED = ("torch.utils.tensorboard", "wsfvit.detection.train", "wsfvit.train.classify", "wsfvit.video.train")
RESULT_FILES = (LAST, BEST)
TIMED = ("seconds", "images_per_s", "sequences_per_s")
UNCOMPARED = (*TIMED, "args")  # a resumed run has other arguments
CALLS_OF_A_RUN = 40  # roughly; the fatal one is drawn from these
KILLS_OF_A_RUN = 4  # of the short trainings; then another one starts
KILL, TERMINATE, FULL_DISK = HOW = ("SIGKILL", "SIGTERM twice", "full disk")
# Seconds after which the other processes are killed too, as torchrun does at once: a start without the dead one would
# wait for it until a timeout. A request to stop gets the time to save.
PATIENCE = {KILL: 3, FULL_DISK: 3, TERMINATE: 30}
LONGEST = 120  # seconds of an attempt: one that hangs is killed, and reported


@dataclass(frozen=True)
class Kill:
    """One interruption.

    Attributes:
        how: One of ``HOW``.
        at: ``time``, ``file call`` or ``validation``.
        hit: ``all`` or ``rank N``.
        seconds: How long the run had lasted.
        saved: Epoch and batch of the checkpoint that the next run resumes from; None before the first save.
        problem: What should not have happened, or "".
    """

    how: str
    at: str
    hit: str
    seconds: float
    saved: tuple[int, int] | None
    problem: str


def finish(case: Case, folder: Path) -> tuple[float, float]:
    """Train to the end; returns the seconds until the run folder was written to, and in total.

    Raises:
        RuntimeError: it failed, or another program killed it.
    """
    training = Training(case, folder)
    training.wait((folder / "args.yaml").exists)
    starting = training.seconds
    training.wait()
    if any(training.statuses.values()):
        raise RuntimeError(f"a training failed ({training.statuses}): {training.last_line[:300]}")
    return starting, training.seconds


def attempt(case: Case, folder: Path, longest: float, how: str, rng: random.Random) -> Kill | None:
    """Continue the training in ``folder`` and interrupt it within ``longest`` seconds; None if it ended before."""
    moment, call = rng.uniform(0, longest), rng.randrange(CALLS_OF_A_RUN)
    at = "time"
    fault: Callable[[], None] | None = None
    if how == FULL_DISK or (how == KILL and rng.random() < 0.4):
        at, fault = "file call", partial(fill_disk, folder, call) if how == FULL_DISK else partial(kill_at_call, call)
    elif how == TERMINATE and rng.random() < 0.5:
        at, fault = "validation", terminate_in_validation
    everyone = list(range(case.processes))
    hit = [0] if at == "file call" else everyone
    if (how, at) == (KILL, "time") and rng.random() < 0.5:
        hit = [rng.choice(everyone)]
    training = Training(case, folder, fault)
    if fault is not None:
        training.wait(lambda: 0 in training.statuses or training.seconds > LONGEST)
    else:
        training.wait(lambda: training.seconds > moment)
        terminate_twice(training.living.values()) if how == TERMINATE else training.kill(hit)
    interrupted = training.seconds
    training.wait(lambda: training.seconds > interrupted + PATIENCE[how])
    training.kill(everyone)
    training.wait()
    if not any(training.statuses.values()):
        return None
    names, saved = "all" if len(hit) == case.processes else f"rank {hit[0]}", saved_position(folder)
    return Kill(how, at, names, round(interrupted, 3), saved, find_problem(training, how, saved))


def find_problem(training: Training, how: str, saved: tuple[int, int] | None) -> str:
    """What an interrupted training should not have done, or ""."""
    codes = set(training.statuses.values())
    shown = f"{how}, exit codes {sorted(codes)}: {training.last_line[:300]}"
    if how == KILL:
        return "" if -signal.SIGKILL in codes else shown
    if how == FULL_DISK:  # of two processes the other one fails too, or is killed
        ended = training.statuses[0] == 2 and (len(training.statuses) > 1 or training.ends_in_one_line())
        return "" if ended else shown
    if "run directory: " not in training.printed:  # terminated while it started, maybe before it could catch a signal
        return ""
    said = saved is not None and f"saved at epoch {saved[0]}, batch {saved[1]}" in training.printed
    return "" if codes <= {0, STOPPED_EXIT_CODE} and said and "Traceback" not in training.printed else shown


def check_starts(case: Case, folder: Path, count: int, resume: bool) -> str:
    """Start ``case`` several times at once in a folder that does not exist; returns what went wrong, or ""."""
    trainings = [Training(case, folder, resume=resume) for _ in range(count)]
    for training in trainings:
        training.wait()
    trained = [training for training in trainings if "epoch 0: " in training.printed]
    for training in trainings:
        # With --resume auto those that wait may find everything done.
        done = training.statuses[0] == 0 and (training in trained or resume)
        if len(trained) != 1 or not (done or (training.statuses[0] == 2 and training.ends_in_one_line())):
            return f"{len(trained)} of {count} starts trained, {training.statuses}: {training.last_line[:300]}"
    return ""


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


def check_case(
    case: Case, folder: Path, kills: int, kills_of_a_run: int, starts: int, hows: list[str], rng: random.Random
) -> dict[str, Any]:
    """Interrupt ``case`` that many times, over as many runs as it takes, and compare each with an uninterrupted one.

    Returns:
        The record, primitives only; ``differences`` is empty if all runs are equal and ended as they should.
    """
    folder.mkdir(parents=True)
    starting, whole = finish(case, folder / "uninterrupted")
    # Spreads the kills over the run, which resumes from the newest checkpoint each time.
    longest = starting + 2 * (whole - starting) / (min(kills, kills_of_a_run) + 1)
    done: list[Kill] = []
    differences: list[str] = []

    def compare(run: Path) -> None:
        try:
            finish(case, run)
            found = compare_runs(folder / "uninterrupted", run)
        except (RuntimeError, UserError) as err:
            found = str(err)
        if found:
            differences.append(f"{run.name}: {found}")

    runs = 0
    while len(done) < kills:
        run = folder / f"killed-{runs}"
        for _ in range(min(kills - len(done), kills_of_a_run)):
            kill = attempt(case, run, longest, rng.choice(hows), rng)
            if kill is None:
                break
            done.append(kill)
            if kill.problem:
                differences.append(f"{run.name}: {kill.problem}")
        compare(run)
        runs += 1
    for index in range(starts if case.processes == 1 else 0):
        run = folder / f"together-{index}"
        if problem := check_starts(case, run, count=rng.choice((2, 3)), resume=index % 2 == 0):
            differences.append(f"{run.name}: {problem}")
        compare(run)
        runs += 1
    shown = {"name": case.name, "processes": case.processes, "argv": " ".join(case.argv)}
    times = {"seconds_to_start": round(starting, 3), "seconds_uninterrupted": round(whole, 3)}
    return shown | times | {"runs": runs, "differences": differences, "kills": [asdict(kill) for kill in done]}


def print_checks(checks: list[dict[str, Any]]) -> None:
    rows = []
    for check in checks:
        kills = check["kills"]
        how = Counter(kill["how"] for kill in kills)
        saved = Counter("start" if k["saved"] is None else "mid" if k["saved"][1] else "end" for k in kills)
        numbers = [*(how[key] for key in HOW), *(saved[key] for key in ("start", "mid", "end"))]
        rows.append([check["name"], *map(str, [*numbers, check["runs"], len(check["differences"])])])
    header = ["training", *HOW, "saved nothing", "in an epoch", "at an end", "runs", "bad"]
    print(markdown_table(header, rows))
    for check in checks:
        print(*(f"{check['name']}, {difference}\n" for difference in check["differences"]), sep="", end="")


def main(argv: list[str] | None = None) -> None:
    parser = build_parser("tools.kill_resume", __doc__)
    parser.add_argument("training", nargs="*", metavar="-- ARGS", help="one training (default: the short ones)")
    parser.add_argument("--kills", type=int, default=24, metavar="N", help="interruptions in all")
    parser.add_argument("--how", nargs="+", choices=HOW, default=[KILL, *HOW], help="kinds to draw from")
    parser.add_argument("--starts", type=int, default=0, metavar="N", help="simultaneous starts of each training")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes of the one training")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--folder", metavar="DIR", help="new folder for the runs (default: temporary)")
    add_out(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # threads do not survive a fork
    for module in IMPORTED:
        import_module(module)
    described = {"environment": environment(), "settings": vars(args)}
    rng, checks = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        for split, count, seed in (("train", 6, 1), ("val", 2, 2)):
            write_shapes(folder / "shapes" / split, count, (48, 64), seed)
        cases = short_cases(str(folder / "shapes"))
        if args.training:
            command = [] if args.training[0] in ("train", "detection", "video") else ["train"]
            cases = [Case("given", (*command, *args.training), args.processes)]
        for index, case in enumerate(cases[: args.kills]):
            share = args.kills // len(cases) + (index < args.kills % len(cases))
            of_a_run = share if args.training else KILLS_OF_A_RUN
            checks.append(check_case(case, folder / str(index), share, of_a_run, args.starts, args.how, rng))
            print(f"{case.name}: {share} kills, {len(checks[-1]['differences'])} differences", flush=True)
    print_checks(checks)
    if args.out:
        write_results(args.out, described | {"results": checks})
        print(f"wrote {args.out}")
    sys.exit(any(check["differences"] for check in checks))


if __name__ == "__main__":
    run_main(main)
