"""What the sandbox sees: every way in which a hostile file may be noticed, and nothing where a command ends well."""

import ctypes
import os
import pickle
import signal
import socket
import sys
import time
import urllib.request
import webbrowser

import pytest
import torch

from tools.sandbox import CANARY, Sandbox
from wsfvit.utils.errors import UserError


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path, memory=200 << 20, seconds=1)


def fail(text, error=UserError):
    raise error(text)


def refuse_twice():
    print("error: one", file=sys.stderr)
    fail("two")


@pytest.mark.parametrize(
    ("command", "outcome"),
    [
        (lambda: None, "ok"),
        (lambda: fail("one line"), "refused"),
        (lambda: fail("one line\nand another"), "refused"),
        (refuse_twice, "exit code 2, 2 lines of errors"),
        (lambda: sys.exit(3), "exit code 3, 0 lines of errors"),
        (lambda: fail("a defect", ValueError), "traceback"),
        (lambda: bytearray(1 << 30), "refused"),
        (lambda: torch.ones(1 << 28), "refused"),
        (lambda: ctypes.string_at(0), "killed by SIGSEGV"),
        (lambda: sum(0 for _ in iter(int, 1)), "too slow"),
        (lambda: time.sleep(20), "too slow"),
    ],
)
def test_how_a_command_ends(sandbox, command, outcome):
    assert sandbox.run(command).outcome == outcome


@pytest.mark.parametrize(
    "command",
    [
        lambda: os.system("true"),
        lambda: os.execv("/bin/true", ["true"]),
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: os.fork(),
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: urllib.request.urlopen("http://127.0.0.1:9"),
        lambda: webbrowser.GenericBrowser("true").open("http://127.0.0.1:9"),
        lambda: __import__(f"{CANARY}_module"),
        lambda: pickle.loads(pickle.dumps(os.mkdir)),
    ],
)
def test_what_no_file_may_cause_is_seen_and_prevented(sandbox, command):
    assert sandbox.run(command).outcome == "executed"


def test_a_canary_is_seen_once(sandbox, tmp_path):
    for make in ((tmp_path / CANARY).touch, (tmp_path / CANARY).mkdir):
        assert [sandbox.run(make).outcome, sandbox.run(lambda: None).outcome] == ["executed", "ok"]


def test_a_waiting_command_is_killed(sandbox, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert sandbox.run((tmp_path / "fifo").read_bytes).outcome == "too slow"
    assert signal.getsignal(signal.SIGXCPU) == signal.SIG_DFL  # the limits are those of the fork
