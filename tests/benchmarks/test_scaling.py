"""The scaling benchmark: costs relative to the first setting, and the exchange of gradients between two processes."""

import json
import multiprocessing
import os
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import scaling
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError

TINY = ["--model", "test_vit", "--batch-sizes", "2", "4", "--img-sizes", "32", "64", "--warmup", "1", "--repeats", "3"]


def work(rank, port, out):
    """One of two processes that torchrun would start."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    scaling.main([*TINY, "--threads", "1", "--out", out])


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked: they need not import everything again.
    context = multiprocessing.get_context("fork")
    out = tmp_path / "result.json"
    processes = [context.Process(target=work, args=(rank, port, str(out)), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    two = json.loads(out.read_text())
    assert two["processes"] == 2 and two["seconds"] > 0 and two["share_of_exchange"] < 1
    assert two["images_per_second"] == pytest.approx(4 / two["seconds"])
    assert two["gradient_bytes"] == 4 * sum(p.numel() for p in scaling.create_timm_model("test_vit", 32).parameters())


def test_command(tmp_path, capsys, monkeypatch):
    commands = []

    def run(command, **_):
        if "torch.distributed.run" not in command:  # the commit is asked for too
            return subprocess.CompletedProcess(command, 0, "")
        commands.append(command)
        size = int(command[4].removeprefix("--nproc-per-node="))
        result = {"processes": size, "seconds": 1.0, "seconds_without_exchange": 0.75, "share_of_exchange": 0.25}
        Path(command[-1]).write_text(json.dumps(result | {"images_per_second": 1.5 * size}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(scaling.subprocess, "run", run)
    out = tmp_path / "scaling.json"
    argv = [*TINY, "--threads", "1", "--processes", "1", "2", "--out", str(out)]
    scaling.main(argv)
    recorded = json.loads(out.read_text())
    settings = [(record["batch_size"], record["img_size"]) for record in recorded["sizes"]]
    assert settings == [(2, 32), (4, 32), (2, 32), (2, 64)]
    assert [recorded["sizes"][place]["cost_of_an_image"] for place in (0, 2)] == [1, 1]
    assert [record["processes"] for record in recorded["processes"]] == [1, 2]
    assert all(command[7 : 7 + len(argv)] == argv for command in commands)
    assert "of proportional" in capsys.readouterr().out


def test_our_models_keep_their_windows_on_request(monkeypatch):
    args = scaling.parse_args(
        ["--model", "wsfvit_p0_224", "--batch-sizes", "1", "--img-sizes", "32", "64", "--keep-window"]
    )
    made = []
    monkeypatch.setattr(scaling, "build_step", lambda args, net, size, *_: made.append((net, size)) or (lambda: None))
    records = scaling.measure_sizes(args, torch.device("cpu"))
    assert [r["setting"] for r in records] == ["batch 1", "32 pixels", "64 pixels", "64 pixels, window kept"]
    assert [size for _, size in made] == [32, 32, 64, 64] and made[3][0] is made[0][0] is not made[2][0]


def test_the_exchange_is_what_the_steps_without_it_lack(monkeypatch):
    """One process exchanges nothing: only the clock makes the difference here."""
    ticks = iter([0, 3, 3, 4, 10, 14, 14, 15])
    monkeypatch.setattr(scaling.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(scaling, "build_model", lambda *_: nn.Linear(2, 3))
    monkeypatch.setattr(scaling, "build_step", lambda *_: lambda: None)
    args = scaling.parse_args(["--warmup", "1", "--repeats", "1"])
    found = scaling.measure_exchange(args, World(torch.device("cpu")))
    assert (found["seconds"], found["seconds_without_exchange"], found["share_of_exchange"]) == (4, 1, 0.75)
    assert found["gradient_bytes"] == 36 and found["images_per_second"] == 1 / 4


def test_processes_that_fail_are_told(monkeypatch):
    monkeypatch.setattr(scaling.subprocess, "run", lambda *_, **__: scaling.subprocess.CompletedProcess([], 1))
    with pytest.raises(UserError, match="with 4 processes failed"):
        scaling.start_processes([], 4)
