"""No command that is given only an untrusted file runs code from it, starts a process, or opens a connection."""

import importlib
import os
import socket
import subprocess
import sys

import hostile_files
import pytest
from detection.tiny_detector import RECIPE
from detection.tiny_detector import write_checkpoint as write_detector
from tiny_data import TINY_RUN
from video.tiny import TINY as TINY_VIDEO

import wsfvit_cli
from wsfvit.checkpoint.io import save_atomic
from wsfvit.video.args import build_config, train_parser
from wsfvit.video.checkpoint import describe
from wsfvit.video.model.simvp import SimVP

TRAIN = ["train", *TINY_RUN]
DETECTION = ["detection", "train", *RECIPE, "--epochs", "1"]
VIDEO = ["video", "train", *TINY_VIDEO, "--epochs", "1", "--no-tensorboard"]
ANNOTATED = ["--{split}-images", "{folder}", "--{split}-annotations", "{file}"]
COCO = [part.replace("{split}", split) for split in ("train", "val") for part in ANNOTATED]
# Each untrusted file that a command takes: the kind in hostile_files, and the command line.
CASES = [
    *(("configs", [*command, "-c", "{file}"]) for command in (TRAIN, DETECTION, VIDEO)),
    *(("checkpoints", [*command, "--resume", "{file}"]) for command in (TRAIN, DETECTION, VIDEO)),
    *(("runs", [*command, "--resume", "{file}"]) for command in (TRAIN, DETECTION, VIDEO)),
    ("checkpoints", [*TRAIN, "--dataset", "digits", "--in-chans", "1", "--initial-checkpoint", "{file}"]),
    ("checkpoints", [*TRAIN, "--dataset", "digits", "--in-chans", "1", "--pretrained-path", "{file}"]),
    ("class_maps", [*TRAIN, "{folder}", "--class-map", "{file}"]),
    ("shards", [*TRAIN, "--dataset", "wds/", "--data-dir", "{file}"]),
    ("folders", [*TRAIN, "{file}", "--num-classes", "2"]),
    ("checkpoints", ["validate", "--dataset", "digits", "--checkpoint", "{file}"]),
    ("checkpoints", ["predict", "{image}", "--checkpoint", "{file}"]),
    ("checkpoints", ["cam", "{folder}", "--checkpoint", "{file}"]),
    ("checkpoints", ["export", "--checkpoint", "{file}", "--output", "{folder}/x.pt2", "--format", "torch"]),
    ("checkpoints", ["plot", "{file}", "--out", "{folder}/x.png"]),
    ("class_maps", ["export", "--model", "test_resnet", "--class-map", "{file}", "--output", "{folder}/x.onnx"]),
    ("images", ["cam", "{folder}", "--model", "test_resnet", "--out", "{folder}/x.png"]),
    ("dumps", ["replay", "{file}"]),
    ("checkpoints", ["weights", "get", "{file}", "--model", "wsfvit_p0_224"]),
    ("annotations", [*DETECTION, *COCO]),
    *(("checkpoints", ["detection", name, "--checkpoint", "{file}", *more]) for name, more in (
        ("validate", ["{folder}"]), ("predict", ["{image}"]), ("export", ["--output", "{folder}/x.onnx"]))),
    ("annotations", ["detection", "validate", "--images", "{folder}", "--annotations", "{file}", "--checkpoint",
                     "{detector}", "-j", "0"]),
    ("arrays", [*VIDEO, "--data", "{file}"]),
    *(("arrays", ["video", name, "--data", "{file}", "--checkpoint", "{video}"]) for name in ("validate", "predict")),
    *(("checkpoints", ["video", name, "--checkpoint", "{file}"]) for name in ("validate", "predict")),
]  # fmt: skip
WITHOUT_FILES = {"flops", "info", "detection shapes", "detection flops", "video flops"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Checkpoints of an untrained detector and video model, for the commands that read data after them."""
    folder = tmp_path_factory.mktemp("models")
    write_detector(folder / "detector.pth")
    args = train_parser().parse_args(TINY_VIDEO)
    config = build_config(args)
    save_atomic({"state_dict": SimVP(config).state_dict(), **describe(config, args, (30, 32))}, folder / "video.pth")
    return folder


@pytest.fixture
def canaries(monkeypatch, tmp_path):
    """What a hostile file set off, by name."""
    fired = []

    def fire(name):
        def raise_alarm(*args, **kwargs):
            fired.append(f"{name} {args[:2]}")
            raise AssertionError(fired[-1])

        return raise_alarm

    # A library may ask the operating system for its version; nothing of a file is in that.
    for module, names in ((subprocess, ("Popen",)), (os, ("system", "popen", "posix_spawn", "execv", "execve")),
                          (socket, ("create_connection", "getaddrinfo"))):  # fmt: skip
        for name in names:
            monkeypatch.setattr(module, name, fire(f"{module.__name__}.{name}"))
    monkeypatch.setattr(socket.socket, "connect", fire("connect"))
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{hostile_files.MODULE}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    importlib.invalidate_caches()
    yield fired
    sys.modules.pop(hostile_files.MODULE, None)


@pytest.mark.parametrize(("kind", "command"), CASES, ids=lambda part: part if isinstance(part, str) else None)
def test_no_command_runs_code_from_a_file(kind, command, models, canaries, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    canary, folder = tmp_path / "canary", tmp_path / "files"
    folder.mkdir()
    task = command[0] if command[0] in ("detection", "video") else "classification"
    names = {"folder": folder, "image": hostile_files.picture(tmp_path), "detector": models / "detector.pth",
             "video": models / "video.pth"}  # fmt: skip
    for file in getattr(hostile_files, kind)(folder, canary, task):
        argv = [part.format(file=file, **names) for part in command]
        with pytest.raises(SystemExit) as end:
            wsfvit_cli.main(argv)
        lines = capsys.readouterr().err.strip().splitlines()
        assert (end.value.code, lines[-1][:7]) == (2, "error: "), (file, lines)
        assert "Traceback" not in "".join(lines)
        assert not canaries and not canary.exists() and hostile_files.MODULE not in sys.modules, file


def test_every_command_has_its_files_tried():
    known = {f"{group} {name}".strip() for group, commands in wsfvit_cli.GROUPS.items() for name in commands}
    tried = {" ".join(command[: 1 + (command[0] in ("detection", "video"))]) for _, command in CASES}
    assert tried | WITHOUT_FILES == known and not tried & WITHOUT_FILES
