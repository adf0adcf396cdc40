"""Train several systems by one recipe with several seeds, and compare them; finished rows are not run again.

    python -m experiments.study configs/cifar10/study_cpu.yaml --data PATH_TO_CIFAR10
    python -m experiments.study configs/cifar10/study.yaml --data PATH_TO_CIFAR10 --list
    python -m experiments.study configs/cifar10/study.yaml --data ... --only "wacnn_*" --seeds 0 --budget 50

A row is one system with one seed: a training in a process of its own, then its MACs, speed and memory. Each finished
row goes to the folder that the YAML file names, with its arguments, log and table of epochs; results.json, results.md
and results.png there are rewritten after every row. A row that fails is recorded with its error, the others go on, and
the next call tries it again. Ctrl-C, SIGTERM and the end of --budget save the running row; the same command continues
it. Several equal calls at once share the rows. study_cpu.yaml takes six hours of a CPU core.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml

from benchmarks.common import build_parser
from experiments.study_plan import Row, Study, choose_rows, load_study, row_settings
from experiments.study_report import write_report
from wsfvit.cli.common import natural_int, positive_float
from wsfvit.train.run_dir import changed_arguments
from wsfvit.train.signals import STOPPED_EXIT_CODE, StopRequests
from wsfvit.utils.distributed import resolve_device
from wsfvit.utils.errors import UserError, run_main
from wsfvit.utils.files import held, make_folder, write_text_atomic
from wsfvit.utils.progress import duration

DATA_VARIABLE = "WSFVIT_CIFAR10"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser("experiments.study", __doc__)
    parser.add_argument("study", metavar="FILE.yaml", help="the study: recipe, systems, seeds, comparisons")
    parser.add_argument(
        "--data",
        metavar="DIR",
        default=os.environ.get(DATA_VARIABLE),
        help=f"folder of train.parquet and test.parquet (default: ${DATA_VARIABLE})",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PATTERN", default=["*"], help='systems to run, e.g. "wacnn_*" (default: all)'
    )
    parser.add_argument("--seeds", type=natural_int, nargs="+", metavar="N", help="seeds to run (default: the study's)")
    parser.add_argument("--budget", type=positive_float, metavar="MINUTES", help="save and stop after that time")
    parser.add_argument("--list", action="store_true", help="show the state of each row and exit")
    parser.add_argument("--output", default="output/study", metavar="DIR", help="folder of the checkpoints")
    return parser.parse_args(argv)


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Differences between two settings of a row that change its result."""
    return changed_arguments(before, now) + [f"{key} added or removed" for key in sorted(before.keys() ^ now.keys())]


def outcome(record: dict[str, Any]) -> str:
    """Top-1 or error of a row, as text."""
    return f"failed: {record['error']}" if "error" in record else f"top-1 {record['top1']:.2f} %"


def read_record(study: Study, row: Row) -> dict[str, Any] | None:
    """Record of a row, or None.

    Raises:
        UserError: it was finished with other settings than the study's.
    """
    path = study.results / row.name / "row.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    changed = changed_settings(record["settings"], row_settings(study, row))
    if "error" not in record and changed:
        raise UserError(
            f"{row.name} was finished with other settings ({', '.join(changed)}): remove '{path.parent}' to run it "
            "again, or let the study name another folder of results"
        )
    return record


def show_rows(study: Study, rows: Sequence[Row], output: Path) -> None:
    """Print the state of each row."""
    for row in rows:
        record = read_record(study, row)
        if record is None:
            begun = (output / study.name / row.name / "last.pth.tar").exists()
            state = "interrupted, will continue" if begun else "not run"
        else:
            state = outcome(record)
        print(f"{row.name:40s} {state}")


class Runner:
    """Run rows one after the other.

    Args:
        study: The study.
        data: Folder of the data, or None where the settings name a built-in data set.
        output: Folder of the checkpoints.
        budget: Seconds after which to save and stop, or None.
    """

    def __init__(self, study: Study, data: str | None, output: Path, budget: float | None) -> None:
        self.study, self.output = study, output
        self.data = None if data is None else str(Path(data).resolve())
        self.started = time.monotonic()
        self.deadline = None if budget is None else self.started + budget

    def run(self, rows: Sequence[Row]) -> bool:
        """Run the unfinished rows and rewrite the report; returns False after a request to stop."""
        records = {row: read_record(self.study, row) for row in rows}
        todo = [row for row, record in records.items() if record is None or "error" in record]
        print(f"{self.study.title}: {len(rows)} rows, {len(rows) - len(todo)} of them finished", flush=True)
        write_report(self.study)
        with StopRequests() as stop:
            for done, row in enumerate(todo):
                if self._is_over(stop):
                    return False
                left = ""
                if done:
                    left = f", {duration((time.monotonic() - self.started) / done * (len(todo) - done))} left"
                folder = self.output / self.study.name / row.name
                print(f"[{done + 1}/{len(todo)}{left}] {row.name}, log: {folder / 'log.txt'}", flush=True)
                make_folder(folder)
                with held(folder / ".row.lock") as own:
                    if not own or read_record(self.study, row) != records[row]:
                        print("  another command runs it or has run it", flush=True)
                        continue
                    began = time.monotonic()
                    code = self._run_row(row, folder, stop)
                    if code == STOPPED_EXIT_CODE:
                        print(f"  {row.name} saved: start the same command again to continue", flush=True)
                        return False
                    shown = outcome(self._record(row, folder, code))
                    print(f"  {shown} ({duration(time.monotonic() - began)})", flush=True)
                write_report(self.study)
        return True

    def _is_over(self, stop: StopRequests) -> bool:
        return stop.requested or (self.deadline is not None and time.monotonic() > self.deadline)

    def _run_row(self, row: Row, folder: Path, stop: StopRequests) -> int:
        """Train and measure one row; returns its exit code.

        Raises:
            UserError: the folder holds an unfinished run with other settings.
        """
        (folder / "measured.json").unlink(missing_ok=True)
        settings = row_settings(self.study, row)
        config = settings | {
            "output": str(folder.parent),
            "experiment": row.name,
            "resume": "auto",
            "checkpoint_hist": 1,
            "no_tensorboard": True,
        }
        if self.data is not None:
            config |= {"dataset": f"hfds/{self.data}", "data_dir": str(self.output / "cache")}
        begun = folder / "settings.json"
        if (folder / "last.pth.tar").exists() and begun.is_file():
            if changed := changed_settings(json.loads(begun.read_text()), settings):
                shown = ", ".join(changed)
                raise UserError(f"'{folder}' holds a run with other settings ({shown}): remove it, or change --output")
        write_text_atomic(begun, json.dumps(settings))
        write_text_atomic(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        argv = [str(folder), *(str(self.study.measure[key]) for key in ("batch_size", "repeats"))]
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            return self._execute(argv, log, stop)

    def _execute(self, argv: list[str], log: TextIO, stop: StopRequests) -> int:
        """Run study_row in a process of its own and pass on requests to stop."""
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "experiments.study_row", *argv],
            stdout=log,
            stderr=log,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            # So that a terminal's Ctrl-C reaches it once, through this process.
            start_new_session=True,
        )
        asked = False
        try:
            while process.poll() is None:
                if not asked and self._is_over(stop):
                    process.send_signal(signal.SIGTERM)
                    asked = True
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        # Outside the training a signal ends the process at once: there is nothing to save.
        return STOPPED_EXIT_CODE if asked and process.returncode == -signal.SIGTERM else process.returncode

    def _record(self, row: Row, folder: Path, code: int) -> dict[str, Any]:
        """Copy the outcome of a row to the results folder, without paths of this machine."""
        record: dict[str, Any] = {"system": row.system, "seed": row.seed, "settings": row_settings(self.study, row)}
        log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        if code == 0:
            record |= json.loads((folder / "measured.json").read_text())
        else:
            lines = [line for line in log.splitlines() if line.strip()]
            reason = f"killed by signal {-code}" if code < 0 else lines[-1] if lines else f"exit code {code}"
            record["error"] = self._without_paths(reason)
        target = self.study.results / row.name
        target.mkdir(parents=True, exist_ok=True)
        for name in ("summary.csv", "args.yaml", "log.txt"):
            if (folder / name).is_file():
                write_text_atomic(target / name, self._without_paths((folder / name).read_text(errors="replace")))
        write_text_atomic(target / "row.json", self._without_paths(json.dumps(record, indent=2)) + "\n")
        return record

    def _without_paths(self, text: str) -> str:
        output = str(self.output) if self.output.is_absolute() else None
        for path, name in ((self.data, "DATA"), (output, "OUTPUT"), (str(Path.cwd()), ".")):
            text = text.replace(path, name) if path else text
        return text


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    study = load_study(args.study)
    rows = choose_rows(study, args.only, args.seeds)
    if args.list:
        show_rows(study, rows, Path(args.output))
        return
    if args.data is None and not study.settings.get("dataset"):
        raise UserError(f"no data given: pass --data DIR (or set {DATA_VARIABLE}), a folder of parquet files")
    if args.data is not None and not Path(args.data).is_dir():
        raise UserError(f"--data {args.data}: no such folder")
    resolve_device(study.settings.get("device"))
    budget = None if args.budget is None else args.budget * 60
    if not Runner(study, args.data, Path(args.output), budget).run(rows):
        sys.exit(STOPPED_EXIT_CODE)
    print(f"report: {study.results / 'results.md'}")


if __name__ == "__main__":
    run_main(main)
