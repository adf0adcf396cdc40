"""Short trainings of the three tasks, started as forks, and the faults that interrupt them."""

import builtins
import errno
import io
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tools.sandbox import ERROR_LINE, fork
from wsfvit.train.trainer import Trainer
from wsfvit_cli import dispatch

FILE_CALLS = [(os, name) for name in ("fsync", "link", "replace", "unlink")]
WRITING_CALLS = [(os, name) for name in ("fsync", "link", "mkdir", "write")]
SMALL_DETECTOR = "--model test_resnet --no-frozen-stats --proposals 20 --max-detections 5 --warmup-updates 2 "
SMALL_DETECTOR += "--long-side 64 --short-sides 48 64 --detector-kwargs fpn_width=16 fc_width=32 roi_samples=16"
SMALL_VIDEO = "--frames-in 3 --frames-out 2 --hid-s 4 --hid-t 8 --mlp-ratio 1 --n-s 2 --head-dim 4 --inter-heads 2 "
SMALL_VIDEO += "--window-size 4 --size 30 32 --samples-per-epoch 6 --val-sequences 3 --test-sequences 3 --pictures 1"
SECOND_SIGNAL = 0.1  # seconds after the first


@dataclass(frozen=True)
class Case:
    """A training: its command line without folders, and its number of processes."""

    name: str
    argv: tuple[str, ...]
    processes: int = 1


def short_cases(shapes: str = "shapes") -> list[Case]:
    """Trainings of three epochs of a few batches that draw random numbers wherever a training can.

    Args:
        shapes: The detector's data: six training and two validation images.
    """
    steps = "--device cpu --epochs 3 --opt adamw --lr 1e-3 --clip-grad 1 --recovery-interval 1 --model-ema"
    steps += " --model-ema-decay 0.7"
    data = "train --dataset synthetic --train-num-samples 24 --val-num-samples 6 --num-classes 4 --img-size 32 -b 4"
    noise = "--aa rand-m9-mstd0.5-inc1 --reprob 0.5 --mixup 0.4 --cutmix 1 --drop 0.1 --drop-path 0.2"
    logged = f"{data} -vb 4 --warmup-epochs 1 {steps} {noise} --model test_resnet"
    resnet = f"{logged} --no-tensorboard"
    vit = resnet.replace("test_resnet", "test_vit")
    two = resnet.replace("-b 4", "-b 2")
    detector = f"detection train {shapes} {SMALL_DETECTOR} -b 2 {steps} --no-tensorboard"
    video = f"video train {SMALL_VIDEO} -b 2 {steps} --no-tensorboard"
    table = [
        ("batch norm, TensorBoard", f"{logged} -j 0 --log-interval 1", 1),
        ("2 workers", f"{resnet} -j 2", 1),
        ("accumulation", f"{vit} -j 0 --grad-accum-steps 4 --sched-on-updates", 1),
        ("2 processes, accumulation", f"{two} -j 0 --grad-accum-steps 2 --no-ddp-bb", 2),
        ("2 processes, 2 workers, bfloat16", f"{two} -j 2 --amp --amp-dtype bfloat16", 2),
        ("detection, 2 workers", f"{detector} -j 2", 1),
        ("video", f"{video} -j 0", 1),
    ]
    return [Case(name, tuple(text.split()), processes) for name, text, processes in table]


def before_calls(functions: Iterable[tuple[ModuleType, str]], act: Callable[..., None]) -> None:
    """Make this process call ``act`` with the arguments of each call of some functions first."""

    def preceded(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            act(*args, **kwargs)
            return call(*args, **kwargs)

        return wrapper

    for module, name in functions:
        setattr(module, name, preceded(getattr(module, name)))


def kill_at_call(step: int) -> None:
    """Make this process kill itself just before its ``step``-th call, from 0, that changes files."""
    steps = itertools.count()

    def act(*args: Any, **kwargs: Any) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    before_calls(FILE_CALLS, act)


def fill_disk(folder: Path, step: int) -> None:
    """Make all calls of this process that write below ``folder`` fail from the ``step``-th on: no space is left."""
    steps = itertools.count()

    def act(file: Any, *args: Any, **kwargs: Any) -> None:
        place = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.fsdecode(file)
        if place.startswith(str(folder)) and next(steps) >= step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)

    def act_on_writing(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> None:
        if set("wax+") & set(mode):
            act(file)

    before_calls(WRITING_CALLS, act)
    before_calls(((builtins, "open"), (io, "open")), act_on_writing)  # TensorBoard calls io.open


def terminate_twice(groups: Iterable[int]) -> None:
    """SIGTERM to all processes of some groups, and again after a moment, as a scheduler and then a launcher send it."""
    for pause in (SECOND_SIGNAL, 0):
        for group in groups:
            try:
                os.killpg(group, signal.SIGTERM)
            except ProcessLookupError:
                pass
        time.sleep(pause)


def terminate_in_validation() -> None:
    """Make this process and its workers be terminated twice in the first validation."""
    plain = Trainer.finish_epoch

    def finish_epoch(self: Trainer, trained: dict[str, Any], started: float) -> dict[str, Any]:
        threading.Thread(target=terminate_twice, args=([os.getpgrp()],)).start()
        Trainer.finish_epoch = plain  # type: ignore[method-assign]
        return plain(self, trained, started)

    Trainer.finish_epoch = finish_epoch  # type: ignore[method-assign]


class Training:
    """The processes of one training, started at once.

    Args:
        case: What to train.
        folder: The run folder; ``folder``.N.log beside it gets what they print in the N-th start.
        fault: Called by rank 0 before it trains.
        resume: Continue the state in the folder.

    Attributes:
        living: Process id by rank.
        statuses: Exit code by rank, negative for a signal.
    """

    def __init__(self, case: Case, folder: Path, fault: Callable[[], None] | None = None, resume: bool = True) -> None:
        starts = len(list(folder.parent.glob(f"{folder.name}.*.log")))
        self._log = folder.with_name(f"{folder.name}.{starts}.log")
        self._log.touch()
        argv = [*case.argv, "--output", str(folder.parent), "--experiment", folder.name]
        argv += ["--resume", "auto"] if resume else []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def train(rank: int) -> None:
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.processes, "MASTER_PORT": port}
            os.environ.update({"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in places.items()}})
            if fault is not None and rank == 0:
                fault()
            dispatch(argv)

        self._started = time.perf_counter()
        self.statuses: dict[int, int] = {}
        self.living: dict[int, int] = {}
        for rank in range(case.processes):
            self.living[rank] = fork(lambda: train(rank), self._log, self._log)  # noqa: B023  runs at once

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started

    @property
    def printed(self) -> str:
        """What the processes have printed."""
        return self._log.read_text(errors="replace")

    @property
    def last_line(self) -> str:
        """The end of what they have printed."""
        return (self.printed.splitlines() or [""])[-1]

    def ends_in_one_line(self) -> bool:
        """Whether the last line is the only error, and there is no traceback."""
        errors = [line for line in self.printed.splitlines() if ERROR_LINE.match(line)]
        return errors == [self.last_line] and "Traceback" not in self.printed

    def wait(self, until: Callable[[], bool] = lambda: False) -> None:
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
