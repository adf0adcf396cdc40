"""Fuzz the commands with damaged and hostile dumps, configurations, annotations, checkpoints and data.

    python -m tools.fuzz_files --count 300 --out results/robustness/files.json

Each file is read by a real command in a fork with 1 GB of memory and 10 seconds of CPU time on top of the imports;
trainings are dry runs. It must succeed, or end in one line and exit code 1 or 2. It must not run code, start a process,
import what the file names, open a connection or unpickle (``tools.sandbox`` watches).

Values of a good file become other types, huge, negative, not finite, names of pipes, addresses, modules and devices;
keys are added that trust other files; the text gets bombs and tags; bits flip, the end is cut off, pieces move.

Prints the counts by kind, file and outcome, --out writes them as JSON; exit code 1 if a file did not end so. About
one second per file.
"""

import copy
import io
import json
import math
import os
import pickle
import random
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.common import add_out, build_parser
from tools.faults import SMALL_DETECTOR, SMALL_VIDEO
from tools.fuzz_checkpoints import Case, Gadget, flip_bits, report, splice, truncate
from tools.sandbox import CANARY, GIGABYTE, Sandbox
from wsfvit.checkpoint.io import read_checkpoint, save_atomic
from wsfvit.cli.train import train_parser
from wsfvit.detection import args as detection
from wsfvit.detection.shapes import write_shapes
from wsfvit.utils.errors import UserError, run_main
from wsfvit.video import args as video
from wsfvit.video.data.video_files import write_mp4
from wsfvit_cli import dispatch

GOOD = ("ok", "refused")
KINDS = ("settings", "annotations", "checkpoints", "data")
IMPORTED = (  # what commands import when they need it
    "av", "matplotlib.pyplot", "torchvision.transforms.v2.functional", "wsfvit.detection.predict", "wsfvit.video.train",
    "wsfvit.detection.train", "wsfvit.detection.validate", "wsfvit.eval.validate", "wsfvit.train.replay",
)  # fmt: skip
CPU = ["--device", "cpu", "-j", "0"]
SMALL = [*CPU, "--epochs", "1", "--no-tensorboard", "-b", "2", "--opt", "adamw"]
CLASSIFIER = "--dataset synthetic --train-num-samples 4 --val-num-samples 2 --num-classes 4 --model wsfvit_p0_224 "
CLASSIFIER += "--img-size 32 --model-kwargs window_size=4 depths=(1,1,1,1) --warmup-epochs 0"
DIVERGING = ["--opt", "sgd", "--lr", "1e30", "--max-bad-steps", "0", "--epochs", "4"]
ALLOWED = {"pretrained", "torchcompile", "log_wandb", "log_trackio"}  # connections and processes that a recipe may need
DESCRIBED = ("model_kwargs", "data_config", "config", "bad_step")  # in checkpoints and dumps
NUMBERS = (-1, 0, 1e-6, 0.5, 3, 1000, 10**6, 10**7, 10**9, 2**63, 10**26, -(10**26), 1e308, math.nan, math.inf)
GROWING = [f"&{new} [{','.join(['*' + old] * 9)}]" for old, new in zip("abcdefghi", "bcdefghij", strict=True)]
TEXTS = (  # in place of a value in a text
    "-1", "9" * 9, "9" * 26, "9" * 5000, "1e999", "NaN", "-Infinity", "0x" + "f" * 20, "2001-01-01", "1:2:3", "~", "\0",
    '"\\ud800"', "[" * 5000, "[" * 3000 + "]" * 3000, '{"a":' * 1500, "*unknown", "&a [*a]", "!!binary aGk=",
    "!!python/name:os.system", f"!!python/object/apply:os.system ['touch {CANARY}']",
    f"[&a [x], {', '.join(GROWING)}]",
)  # fmt: skip
BYTES = {"flipped bits": flip_bits, "truncated": truncate, "spliced": splice}


@dataclass(frozen=True)
class Target:
    """A good file of one of the ``KINDS``, of bytes or nested dicts and lists, and the command that reads it."""

    kind: str
    argv: Sequence[str]
    path: Path
    content: Any


def encode(path: Path, content: Any) -> bytes:
    """The bytes of a file, by its suffix."""
    buffer = io.BytesIO()
    if path.suffix == ".yaml":
        return yaml.safe_dump(content, sort_keys=False).encode()
    if path.suffix == ".json":
        return json.dumps(content).encode()
    if path.suffix == ".tar":
        with tempfile.NamedTemporaryFile(suffix=".pth.tar") as file:
            save_atomic(content, file.name)
            return Path(file.name).read_bytes()
    if path.suffix == ".npy":
        header = content["header"]
        if isinstance(header, dict) and isinstance(header.get("shape"), list):
            header = {**header, "shape": tuple(header["shape"])}
        text = f"{header}\n".encode()
        return b"\x93NUMPY\x02\0" + len(text).to_bytes(4, "little") + text + b"\x80" * 9600
    if path.suffix == ".npz":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("arr_0.npy", encode(path.with_suffix(".npy"), content))
        return buffer.getvalue()
    return bytes(content)


def make_targets(folder: Path, kinds: Sequence[str]) -> list[Target]:
    """Trains a small model of each task, and makes good files for the commands from it."""
    for split, seed in (("train", 1), ("val", 2)):
        write_shapes(folder / "shapes" / split, 2, (48, 64), seed)
    sandbox = Sandbox(folder, memory=8 * GIGABYTE, seconds=120)
    image = str(folder / "shapes" / "val" / "images" / "000001.png")
    targets: list[Target] = []
    dry, out = ["--dry-run", *CPU, "--output", str(folder / "out")], ["--out", str(folder / "out")]
    for task, text, parser, read in (
        ([], CLASSIFIER, train_parser(), ["predict", image]),
        (["detection"], f"{folder}/shapes {SMALL_DETECTOR}", detection.train_parser(), ["predict", image, *out]),
        (["video"], SMALL_VIDEO, video.train_parser(), ["validate", "--sequences", "1", "-j", "0"]),
    ):
        train, run = [*task, "train"], folder / "-".join(["run", *task])
        base = [*train, *text.split(), *SMALL, "--output", str(folder)]
        run_good(sandbox, [*base, "--experiment", run.name])
        settings = yaml.safe_load((run / "args.yaml").read_text())
        flags = {action.dest for action in parser._actions}
        config = {key: value for key, value in settings.items() if key in flags}
        path, again = run.with_suffix(".yaml"), run.with_suffix(".again") / "args.yaml"
        again.parent.mkdir()
        targets.append(Target("settings", [*train, "-c", str(path), *dry], path, config))
        targets.append(Target("settings", [*train, "--resume", str(again.parent), *dry], again, settings))
        state, path = read_checkpoint(run / "last.pth.tar"), run.with_suffix(".pth.tar")
        use, resume = [*task, *read, "--device", "cpu", "--checkpoint"], [*train, *dry, "--resume"]
        for argv in (use, resume, [*base, *dry, "--initial-checkpoint"]):
            targets.append(Target("checkpoints", [*argv, str(path)], path, state))
    diverging = ["train", *CLASSIFIER.split(), *SMALL, *DIVERGING, "--output", str(folder), "--experiment", "diverging"]
    sandbox.run(partial(dispatch, diverging))
    dump, path = next((folder / "diverging" / "bad-steps").iterdir()), folder / "dump.pth.tar"
    replay = ["replay", str(path), "--device", "cpu"]
    targets += [Target("settings", replay, path, read_checkpoint(dump))] * 6  # as often as the others together
    targets += annotation_targets(folder) + data_targets(folder, image)
    for target in targets:
        target.path.write_bytes(encode(target.path, target.content))
        if target.kind in kinds:
            run_good(sandbox, target.argv)
    return targets


def run_good(sandbox: Sandbox, argv: Sequence[str]) -> None:
    """A command that fails on a good file would hide every defect."""
    ending = sandbox.run(partial(dispatch, argv))
    if ending.outcome != "ok":
        raise UserError(f"a good file ends in '{ending.outcome}' ({ending.message}): {' '.join(argv)}")


def annotation_targets(folder: Path) -> list[Target]:
    path, images = folder / "instances.json", str(folder / "shapes" / "val" / "images")
    content = json.loads((folder / "shapes" / "val" / "instances.json").read_text())  # with compressed masks
    outline = {"segmentation": [[2.0, 2.0, 20.0, 2.0, 20.0, 20.0]], "bbox": [2, 2, 18, 18], "area": 162}
    height, width = (content["images"][0][side] for side in ("height", "width"))
    column = {"segmentation": {"size": [height, width], "counts": [0, height, height * (width - 1)]}, "area": height}
    crowd = {**content["annotations"][0], "id": 99, **column, "iscrowd": 1, "bbox": [0, 0, 1, height]}
    content["annotations"] = [content["annotations"][0] | outline, crowd, *content["annotations"][1:]]
    checkpoint = ["--checkpoint", str(folder / "run-detection" / "last.pth.tar")]
    validate = ["detection", "validate", *CPU, *checkpoint, "--annotations", str(path), "--images", images]
    train = ["detection", "train", str(folder / "shapes"), *SMALL_DETECTOR.split(), *SMALL, "--dry-run"]
    train += ["--train-annotations", str(path), "--train-images", images]
    commands = (validate, [*validate, "--on-bad-annotation", "skip"], train)
    return [Target("annotations", argv, path, content) for argv in commands]


def data_targets(folder: Path, image: str) -> list[Target]:
    """Class maps, an index of shards, arrays, and a folder of videos."""
    shards, clips = folder / "shards", folder / "clips"
    shards.mkdir()
    clips.mkdir()
    with import_module("webdataset").TarWriter(str(shards / "a-val-0000.tar")) as archive:
        archive.write({"__key__": "0", "png": Path(image).read_bytes(), "cls": 1})
    index = {"name": "val", "num_samples": 1, "filenames": ["a-val-0000.tar"], "shard_lengths": [1]}
    clip = clips / "clip.mp4"
    write_mp4(clip, [np.full((30, 32, 3), shade, np.uint8) for shade in range(0, 250, 50)], fps=5)
    array = {"header": {"descr": "|u1", "fortran_order": False, "shape": [2, 5, 30, 32]}}
    checkpoint = ["--checkpoint", str(folder / "run" / "last.pth.tar"), "--device", "cpu"]
    validate = ["validate", "--split", "val", *checkpoint, "-j", "0", "--data-dir"]
    measure = ["video", "validate", "--checkpoint", str(folder / "run-video" / "last.pth.tar"), *CPU, "--data"]
    content: list[tuple[list[str], Path, Any]] = [
        ([*validate, str(folder / "shapes"), "--labels-by-position", "--class-map"], folder / "map.txt", b"images"),
        (["predict", image, *checkpoint, "--class-map"], folder / "names.txt", b"a\nb\nc\nd"),
        ([*validate, str(shards), "--dataset", "wds/"], shards / "_info.json", {"splits": {"val": index}}),
        (measure, folder / "array.npy", array),
        (measure, folder / "array.npz", array),
        ([*measure, str(clips)], clip, clip.read_bytes()),
    ]
    named = ("--class-map", "--data")  # other commands are given the folder
    return [
        Target("data", [*argv, str(path)] if argv[-1] in named else argv, path, good) for argv, path, good in content
    ]


def hostile_content(folder: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Names and settings that would make a reader run code, open a connection or block."""
    canary, evil, fifo = folder / CANARY, str(folder / "evil.pth.tar"), str(folder / "fifo")
    Path(evil).write_bytes(pickle.dumps(Gadget(os.mkdir, str(canary))))
    shutil.copy(evil, folder / "evil.pkl")
    os.mkfifo(fifo)
    names = [
        f"pipe:touch {canary}", "http://127.0.0.1:9/x.tar", "rtsp://127.0.0.1:9/x.mp4", f"file://{evil}", "hfds/a/b",
        "tfds/mnist", "torch/cifar10", "wds/", f"hf-hub:{CANARY}/x", f"local-dir:{folder}", f"{CANARY}_module", fifo,
        f"{CANARY}_module.py", "/dev/zero", evil, str(folder / "evil.pkl"), f"open({str(canary)!r}, 'w')",
        f"$(touch {canary})", "../../../etc/passwd", "x" * 300, "a\0b", "a\nb", "\x1b[2J",
    ]  # fmt: skip
    wds = {"dataset": "wds/", "data_dir": str(folder), "train_num_samples": 4}
    settings: list[dict[str, Any]] = [
        *({"trust_checkpoint": True, key: evil} for key in ("initial_checkpoint", "pretrained_path", "resume")),
        *({"model_kwargs": {key: evil}} for key in ("checkpoint_path", "pretrained_cfg_overlay")),
        *(wds | {"train_split": name} for name in names[:2]),
        *({"data": name} for name in (*names[:2], fifo)),
        {"dataset": "", "data_dir": str(folder / "shapes"), "class_map": str(folder / "evil.pkl")},
        {"dataset": f"hfds/{CANARY}/x", "dataset_download": True},
        {"dataset": "torch/cifar10", "data_dir": str(folder), "dataset_download": True},
        {"device_modules": [f"{CANARY}_module"]},
        {"imports": [f"{CANARY}_module.py"]},
        {"model": f"hf-hub:{CANARY}/x"},
    ]
    return names, settings


def mutate_values(content: Any, rng: random.Random, names: Sequence[str]) -> Any:
    """One or two values of nested dicts and lists exchanged or removed, most of what describes model and data."""
    changed = copy.deepcopy(content)
    described = [changed[key] for key in DESCRIBED if changed.get(key)] or [changed]
    for _ in range(rng.choice((1, 1, 1, 2))):
        place, weights = rng.choice(described) if rng.random() < 0.7 else changed, rng.random() < 0.2
        while True:
            keys = range(len(place)) if isinstance(place, list) else [key for key in place if key not in ALLOWED]
            key = rng.choice([key for key in keys if weights or not _first_leaf_is_tensor(place[key])] or keys)
            if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.1:
                break
            place = place[key]
        if rng.random() < 0.1 and len(place) > 1:
            del place[key]
        else:
            place[key] = _other_value(place[key], rng, names)
    return changed


def _first_leaf_is_tensor(value: Any) -> bool:
    while isinstance(value, (dict, list)) and value:
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return isinstance(value, torch.Tensor)


def _other_value(value: Any, rng: random.Random, names: Sequence[str]) -> Any:
    if isinstance(value, torch.Tensor):
        wide = torch.zeros(1).expand(10**9)
        return rng.choice(
            [wide, torch.zeros(1).expand(value.shape), value * math.nan, value[None], value.to_sparse(), 1]
        )
    if rng.random() < 0.4:
        return rng.choice(NUMBERS)
    if rng.random() < 0.6:
        return rng.choice(names)
    nested: Any = value
    for _ in range(50):
        nested = [nested]
    return rng.choice([None, True, "", "text", [], {}, [value] * 3, {"a": value}, [value] * 3000, nested])


def mutate_text(blob: bytes, rng: random.Random) -> bytes:
    """One value or number of a text exchanged, or something added at its end."""
    places = [match.span() for match in re.finditer(rb"(?<=: )[^\n,{}\[\]]+|\d+", blob)] or [(len(blob), len(blob))]
    start, end = rng.choice(places)
    return blob[:start] + rng.choice(TEXTS).encode() + blob[end:]


def damage(target: Target, rng: random.Random, names: list[str], settings: list[dict[str, Any]]) -> tuple[str, bytes]:
    """The kind of damage, and the damaged file."""
    checkpoint = target.path.suffix == ".tar"
    mutations: dict[str, Callable[..., bytes]] = {**BYTES} if checkpoint else {**BYTES, "text": mutate_text}
    kinds = [*mutations, *["values"] * (0 if isinstance(target.content, bytes) else 6)]
    kinds += ["keys"] * (3 if target.kind == "settings" or "--resume" in target.argv else 0)
    kind = rng.choice(kinds)
    while True:
        content = target.content
        if kind == "keys":
            content = copy.deepcopy(content)
            (content["args"] if checkpoint else content).update(rng.choice(settings))
        try:
            blob = encode(target.path, mutate_values(content, rng, names) if kind == "values" else content)
        except (TypeError, ValueError, UserError, yaml.YAMLError):  # the format has no form for such a value
            continue
        return kind, mutations[kind](blob, rng) if kind in mutations else blob


def fuzz(kinds: Sequence[str], count: int, seed: int, folder: Path, keep: Path | None = None) -> list[Case]:
    """Tries ``count`` files of each kind; the same seed gives the same files. Bad ones are copied to ``keep``."""
    for module in IMPORTED:
        import_module(module)
    targets, sandbox, cases = make_targets(folder, kinds), Sandbox(folder), list[Case]()
    hostile = hostile_content(folder)
    for kind in kinds:
        rng, of_kind = random.Random(f"{seed} {kind}"), [target for target in targets if target.kind == kind]
        for index in range(count):
            target = of_kind[index % len(of_kind)]
            name, blob = damage(target, rng, *hostile)
            target.path.write_bytes(blob)
            ending = sandbox.run(partial(dispatch, target.argv))
            cases.append(Case(f"{kind}: {name}", target.path.name, ending.outcome, ending.message))
            if keep and ending.outcome not in GOOD:
                shutil.copy(target.path, keep / f"{kind}-{index}-{target.path.name}")
                print(f"{kind} {index}: {cases[-1].message}: {' '.join(target.argv)}", flush=True)
            target.path.write_bytes(encode(target.path, target.content))
    return cases


def main(argv: list[str] | None = None) -> None:
    parser = build_parser("tools.fuzz_files", __doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what to try")
    parser.add_argument("--count", type=int, default=300, help="files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", metavar="DIR", help="existing folder for copies of the bad files")
    add_out(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # threads do not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        cases = fuzz(args.kinds, args.count, args.seed, Path(folder), args.keep and Path(args.keep))
    bad = [f"{case.outcome}: {case.kind}, {case.base}: {case.message}" for case in cases if case.outcome not in GOOD]
    report(args, [{"kind": case.kind, "file": case.base, "outcome": case.outcome} for case in cases], bad)


if __name__ == "__main__":
    run_main(main)
