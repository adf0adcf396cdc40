"""Run commands in forks, and watch what they do with a hostile file: calls, memory, time, how they end.

The process that forks should have imported what the commands need. PyTorch must have one thread there: forks lose the
others.
"""

import faulthandler
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsfvit.utils.errors import run_main

GIGABYTE = 1 << 30
# Audit events that no file may cause. The interpreter raises them, so a call is seen however it is reached.
FORBIDDEN = {
    "ctypes.dlopen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn",
    "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "urllib.Request", "webbrowser.open",
}  # fmt: skip
OWN_PICKLES = ("wsfvit.", "pathlib")  # the package keeps its lists of images as pickles of its own
CANARY = "canary"  # in the names of the file and the module that hostile files create and import
CAUGHT = 99  # exit code of a process that was ended before such a call
ERROR_LINE = re.compile(r"(\S.*: )?error: ")


def fork(function: Callable[[], object], stdout: Path, stderr: Path) -> int:
    """Start a command, with the exit codes of this package's, in a process group of its own; returns its id.

    Args:
        function: The command.
        stdout: File that what it prints is appended to.
        stderr: The same for errors, tracebacks too.
    """
    sys.stdout.flush()
    if child := os.fork():
        return child
    code: Any = 1
    try:
        faulthandler.disable()  # it would report a crash to the terminal
        os.setpgid(0, 0)
        for number, path in ((1, stdout), (2, stderr)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1) for number in (1, 2))  # a caller may capture its own
        run_main(function)
        code = 0
    except SystemExit as err:
        code = err.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)


@dataclass(frozen=True)
class Ending:
    """How a command ended: ``ok``, ``refused`` in one line, or what else; and its last line."""

    outcome: str
    message: str


class Sandbox:
    """Runs commands one after the other.

    Args:
        folder: For output, and the canary: a file or folder that hostile content creates.
        memory: Address space that a command may take in addition to what the imports took, in bytes.
        seconds: CPU time; three times as much may pass by the clock.
    """

    def __init__(self, folder: Path, memory: int = GIGABYTE, seconds: int = 10) -> None:
        self.folder, self.memory, self.seconds = folder, memory, seconds

    def run(self, function: Callable[[], object]) -> Ending:
        """Run one command."""

        def limited() -> None:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + self.memory, used + self.memory))
            resource.setrlimit(resource.RLIMIT_CPU, (self.seconds, self.seconds + 1))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            sys.addaudithook(_end_before_forbidden)
            function()

        files = [self.folder / "stdout.txt", self.folder / "stderr.txt"]
        for file in files:
            file.unlink(missing_ok=True)
        code = self._wait(fork(limited, *files))
        printed, errors = (file.read_text(errors="replace") for file in files)
        lines = errors.rstrip().splitlines() or [""]
        found = sum(bool(ERROR_LINE.match(line)) for line in lines)
        canary = self.folder / CANARY
        if canary.exists() or code == CAUGHT:
            outcome = "executed"
            shutil.rmtree(canary, ignore_errors=True) if canary.is_dir() else canary.unlink(missing_ok=True)
        elif code in (None, -signal.SIGXCPU):
            outcome = "too slow"
        elif code < 0:
            outcome = f"killed by {signal.Signals(-code).name}"
        elif "Traceback (most recent call last)" in printed + errors:
            outcome = "traceback"
        elif code == 0:
            outcome = "ok"
        elif code in (1, 2) and found == 1 and ERROR_LINE.match(lines[-1]):
            outcome = "refused"
        else:
            outcome = f"exit code {code}, {found} lines of errors"
        named = [line for line in lines if re.match(r"[\w.]*(Error|error): ", line)]  # messages may have several lines
        return Ending(outcome, (named or lines)[-1][:300])

    def _wait(self, child: int) -> int | None:
        """Exit code, negative for a signal, None if the time was over."""
        end = time.monotonic() + 3 * self.seconds
        while time.monotonic() < end:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None


def _end_before_forbidden(event: str, args: tuple[Any, ...]) -> None:
    imports = event == "import" and CANARY in args[0]
    unpickles = event == "pickle.find_class" and not args[0].startswith(OWN_PICKLES)
    if event in FORBIDDEN or imports or unpickles:
        os.write(2, f"\n{event} {args[:2]!r}\n".encode(errors="replace"))
        os._exit(CAUGHT)
