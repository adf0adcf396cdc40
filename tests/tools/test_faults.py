"""The faults act, and a run that takes them badly is reported."""

import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from tools.faults import Case, Training, fill_disk, terminate_twice
from tools.kill_resume import FULL_DISK, KILL, TERMINATE, check_starts, find_problem
from tools.sandbox import Sandbox
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import write_text_atomic


def test_a_full_disk_is_that_of_a_folder_from_a_call_on(tmp_path):
    """Reading, and other folders, go on; a file opened before it cannot be made durable."""
    full, other = tmp_path / "full", tmp_path / "other"
    full.mkdir()
    other.mkdir()

    def run():
        opened = open(full / "before", "w")
        fill_disk(full, 1)
        write_text_atomic(other / "a", "text")
        (full / "first").touch()  # os.open, which is not watched
        os.link(full / "first", full / "link")
        assert (full / "first").read_text() == ""
        for write in (lambda: open(full / "x", "wb"), lambda: os.mkdir(full / "y"), lambda: os.fsync(opened.fileno())):
            try:
                write()
                raise AssertionError("nothing was raised")
            except OSError as err:
                assert err.strerror == "No space left on device"
        write_text_atomic(full / "b", "text")

    ending = Sandbox(tmp_path).run(run)
    assert ending.outcome == "refused" and ending.message.endswith("full/b': No space left on device")
    assert [path.name for path in other.iterdir()] == ["a"] and not (full / "b").exists()


def test_all_processes_are_terminated_twice():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        seen = []
        signal.signal(signal.SIGTERM, lambda *args: seen.append(1))
        os.write(writing, b".")
        while len(seen) < 2:
            time.sleep(0.01)
        os._exit(7)
    os.read(reading, 1)
    terminate_twice([child])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def ended(codes, printed="", one_line=True):
    statuses = dict(enumerate(codes))
    return SimpleNamespace(statuses=statuses, printed=printed, last_line="end", ends_in_one_line=lambda: one_line)


BEGUN = "run directory: x\n"
SAVED = f"{BEGUN}stopped on request, saved at epoch 1, batch 2: --resume auto continues"


@pytest.mark.parametrize(
    ("how", "training", "wrong"),
    [
        (KILL, ended([-9, 1]), False),
        (KILL, ended([1]), True),
        (FULL_DISK, ended([2]), False),
        (FULL_DISK, ended([2], one_line=False), True),
        (FULL_DISK, ended([1]), True),
        (TERMINATE, ended([-15]), False),
        (TERMINATE, ended([-15], BEGUN), True),
        (TERMINATE, ended([75, 75], SAVED), False),
        (TERMINATE, ended([75, 1], SAVED), True),
        (TERMINATE, ended([75], f"Traceback (most recent call last)\n{SAVED}"), True),
        (TERMINATE, ended([75], SAVED.replace("batch 2", "batch 3")), True),
    ],
)
def test_what_an_interrupted_run_should_not_do_is_reported(how, training, wrong):
    assert bool(find_problem(training, how, (1, 2))) == wrong


@pytest.mark.parametrize(
    ("script", "resume", "wrong"),
    [
        ("print('epoch 0: trained')", False, True),  # all train
        ("first or sys.exit('error: a run is there')", False, True),  # exit code 1
        ("print('error: a run is there', file=sys.stderr), first or sys.exit(2)", True, True),  # none trains
        ("print('epoch 0: trained') if first else refuse()", False, False),
        ("print('epoch 0: trained') if first else None", True, False),
        ("print('epoch 0: trained') if first else None", False, True),
    ],
)
def test_starts_of_one_folder_are_judged(tmp_path, monkeypatch, script, resume, wrong):
    def refuse():
        raise UserError("a run is there")

    def dispatch(argv):
        try:
            (tmp_path / "claimed").mkdir()
            first = True
        except FileExistsError:
            first = False
        eval(script, {"first": first, "refuse": refuse, "sys": sys})

    monkeypatch.setattr("tools.faults.dispatch", dispatch)
    case = Case("planted", ("train",))
    assert bool(check_starts(case, tmp_path / "run", 3, resume)) == wrong
    assert Training(case, tmp_path / "run")._log.name == "run.3.log"
