"""Small files cost little: what they claim is refused in one line before it is allocated, built or traversed."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import wsfvit_cli
from wsfvit.checkpoint.integrity import write_sealed
from wsfvit.checkpoint.io import read_checkpoint, save_atomic
from wsfvit.cli.config import read_config
from wsfvit.cli.run import parse_with_config
from wsfvit.cli.tools import cam_parser, predict_parser
from wsfvit.cli.train import train_parser
from wsfvit.cli.validate import validate_parser
from wsfvit.data.image_files import read_image
from wsfvit.data.labels import read_class_map
from wsfvit.detection.data.coco import read_coco
from wsfvit.utils.distributed import join_world
from wsfvit.utils.errors import UserError
from wsfvit.video.data.sequences import Cut, open_sequences, read_array

ROOT = Path(__file__).parents[1]
SHARED = [0.5] * 3
WEIGHTS = {"weight": torch.zeros(4)}
# What a checkpoint may say about its model; none of it can be built, or only at a cost beyond the file.
CLAIMS = [
    {"depths": [10**7, 1, 1, 1]},
    {"depths": [10**5, 1, 1, 1]},
    {"embed_dims": [10**5] * 4},
    {"num_classes": 10**6},
    {"num_classes": "many"},
    {"img_size": 10**6},
    {"window_size": 300},
    {"in_chans": 10**5},
    {"drop_path_rate": [0]},
    {"img_size": {"a": 1}},
]
CONFIGS = [{"crop_pct": 1e-6}, {"crop_pct": 1e6}, {"mean": [[0.5]] * 3}, {"mean": 0.5}, {"std": [0, 1, 1]},
           {"input_size": [3, 10**6, 10**6]}, {"interpolation": "none such"}]  # fmt: skip
VIDEO_CLAIMS = [("model", "hid_t", 10**6), ("model", "hid_t", "8"), ("model", "n_t", 10**5),
                ("model", "window_size", 300), ("data", "size", [10**8, 10**8]), ("data", "size", "big"),
                ("data", "digits", 10**6)]  # fmt: skip
DETECTOR_CLAIMS = [("multiple", 0), ("multiple", 10**6), ("short_side", -1), ("long_side", 10**9), ("mean", [[1]]),
                   ("fpn_width", 10**6), ("fpn_width", "16"), ("fc_width", 0),
                   ("backbone", 1), ("backbone_options", "x"), ("stages", [{"box_stds": "x"}])]  # fmt: skip


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


def layers(first: str, next_: str) -> str:
    """YAML whose every line uses the one before nine times."""
    return "\n".join([first] + [next_.format(n=n, uses=", ".join([f"*a{n - 1}"] * 9)) for n in range(1, 12)])


def unfolding(levels: int) -> list[object]:
    """A list that holds ten times another one, and so on."""
    value: list[object] = [0] * 10
    for _ in range(levels):
        value = [value] * 10
    return value


def write_archive(path: Path, blob: bytes, **options: object) -> Path:
    """A sealed checkpoint with one more record."""
    with open(path, "wb") as file:
        write_sealed(WEIGHTS, file)
    with zipfile.ZipFile(path, "a", **options) as archive:
        archive.writestr("archive/data/9", blob)
    return path


def refused(call, *args, **kwargs) -> str:
    """The message of the UserError that ``call`` ends in: one line."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_archives_that_claim_more_than_they_have(tmp_path):
    packed = write_archive(tmp_path / "a.pth", b"\0" * 10**6, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refused(read_checkpoint, packed)
    save_atomic(WEIGHTS, tmp_path / "b.pth")
    blob = bytearray((tmp_path / "b.pth").read_bytes())
    place = blob.rindex(b"PK\1\2")
    blob[place + 20 : place + 28] = struct.pack("<II", 10**9, 10**9)
    (tmp_path / "b.pth").write_bytes(blob)
    assert "claim more bytes" in refused(read_checkpoint, tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"args": nested(100)}, "nested too deep"),
        ({"args": unfolding(8)}, "too many values"),
        ({"epoch": 1 << 200}, "integer of 201 bits"),
        ({"table": torch.zeros(1).expand(1000, 1000)}, "not all of them stored"),
        ({"table": torch.zeros(2, 2).to_sparse()}, "sparse"),
        ({"table": torch.zeros(10, 10, device="meta")}, "on meta"),
    ],
)
def test_content_that_is_more_than_its_file(tmp_path, content, reason):
    torch.save({"state_dict": WEIGHTS, **content}, tmp_path / "x.pth")
    assert reason in refused(read_checkpoint, tmp_path / "x.pth")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        layers("a0: &a0 [1, 1]", "a{n}: &a{n} [{uses}]"),
        layers("a0: &a0 {x: 1}", "a{n}: &a{n} {{<<: [{uses}]}}"),
        "[" * 1500,
        f"seed: {'9' * 5000}",
        "seed: !!timestamp 9",
        "seed: 2001-99-99",
    ],
    ids=("loop", "aliases", "merges", "depth", "digits", "time", "date"),
)
def test_yaml_that_unfolds(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    assert "is not valid YAML" in refused(read_config, tmp_path / "c.yaml")


def test_anchors_of_a_config_are_read(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"mean": SHARED, "std": SHARED}))
    assert "*id" in (tmp_path / "c.yaml").read_text()
    assert read_config(tmp_path / "c.yaml") == {"mean": SHARED, "std": SHARED}


def write_frames(path: Path, header: dict[str, object], blob: bytes = b"") -> Path:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    if path.suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", file.getvalue() + blob)
    else:
        path.write_bytes(file.getvalue() + blob)
    return path


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("shape", [(-1, 4, 4, 1), (10**12, 4, 4, 1), (10**30, 4, 4, 1)])
def test_arrays_with_a_false_claim(tmp_path, name, shape):
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    assert "not an array of numbers" in refused(read_array, write_frames(tmp_path / name, header, b"\0" * 16))


def test_class_maps_that_claim_memory(tmp_path):
    # LONG_BINPUT at 2**31, which pickle's C code answers with a table of 32 GB; BYTEARRAY8 of 2**40 bytes.
    file = tmp_path / "map.pkl"
    file.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    assert read_class_map(str(file)) == {}
    file.write_bytes(b"\x80\x05\x96\0\0\0\0\0\1\0\0.")
    refused(read_class_map, str(file))
    (tmp_path / "map.txt").write_bytes(b"\xff\xfe\0")
    assert "map.txt" in refused(read_class_map, str(tmp_path / "map.txt"))
    file.write_bytes(pickle.dumps({"a": 0, "b": 1}))
    assert read_class_map(str(file)) == {"a": 0, "b": 1}


@pytest.mark.parametrize(("width", "height"), [(10**8, 10**8), (10**7, 10**7), (10**30, 1), (65_535, 65_535)])
def test_coco_images_of_any_size(tmp_path, width, height):
    image = {"id": 1, "file_name": "a.png", "height": height, "width": width}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert "more than an image can have" in refused(read_coco, tmp_path / "a.json", tmp_path) or width == 10**30


def test_coco_files_that_are_deep_or_long(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("[" * 100_000)
    assert "is not a JSON file" in refused(read_coco, file, tmp_path)
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    image = {"id": 1, "file_name": "a.png", "height": 100, "width": 100}
    entry = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [0, 0, 100, 100],
        "segmentation": [[0, 0, 400, 400] * 500],
    }
    content = {"images": [image], "annotations": [entry], "categories": [{"id": 1, "name": "a"}]}
    file.write_text(json.dumps(content))
    assert "the outline of a polygon is longer" in refused(read_coco, file, tmp_path)
    entry |= {"segmentation": [[0, 0, 50, 0, 50, 50]], "bbox": [0, 0, 10**400, 1]}
    file.write_text(json.dumps(content))
    assert "bbox" in refused(read_coco, file, tmp_path)


def test_images_that_claim_more_pixels_than_bytes(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    blob = bytearray((tmp_path / "a.png").read_bytes())
    blob[16:24] = struct.pack(">II", 12_000, 12_000)
    blob[29:33] = struct.pack(">I", zlib.crc32(blob[12:29]))
    (tmp_path / "a.png").write_bytes(blob)
    assert "it claims 12000x12000 pixels in" in refused(read_image, tmp_path / "a.png")


@pytest.mark.parametrize(
    "changes",
    [
        {"args": 1}, {"args": {"model_kwargs": 1}}, {"args": {"seed": 1 << 40}}, {"args": {"batch_size": "x"}},
        {"bad_step": 1}, {"bad_step": {"rank": 1}}, {"bad_step": {"batches": [10**9]}},
        {"bad_step": {"norms": {"fc": ["x", 1.0]}}}, {"bad_step": {"losses": ["x"]}}, {"bad_step": {"epoch": "x"}},
    ],
    ids=str,
)  # fmt: skip
def test_dumps_with_one_bad_value(tmp_path, changes):
    step = {"rank": 0, "world_size": 1, "epoch": 0, "batches": [0], "indices": [[0]], "losses": [1.0], "norms": {}}
    args = {"model": "test_resnet", "dataset": "digits", "in_chans": 1, "num_classes": 10, "batch_size": 4}
    content = {"state_dict": WEIGHTS, "args": args, "bad_step": step}
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    torch.save(content, tmp_path / "dump.pth.tar")
    refused(wsfvit_cli.dispatch, ["replay", str(tmp_path / "dump.pth.tar"), "-j", "0", "--device", "cpu"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("kind", ["fifo", "/dev/zero"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    def place(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path) if kind == "fifo" else path.symlink_to(kind)
        return path

    refused(read_checkpoint, place("a.pth"))
    refused(read_checkpoint, place("a.safetensors"))
    refused(read_config, place("a.yaml"))
    refused(read_class_map, str(place("a.txt")))
    refused(read_image, place("a.png"))
    refused(read_coco, place("a.json"), tmp_path)
    refused(open_sequences, place("a.npy"), Cut(2))
    refused(open_sequences, place("a.mp4"), Cut(2))
    place("data/train/a/a.png"), place("data/validation/a/b.png")
    for name in ("c", "d"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"data/train/a/{name}.png")
    argv = [
        "train",
        str(tmp_path / "data"),
        "--model",
        "test_resnet",
        "--num-classes",
        "2",
        "-j",
        "0",
        "--device",
        "cpu",
    ]
    (tmp_path / "data/train/b").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "data/train/b/c.png")
    refused(
        wsfvit_cli.dispatch,
        [*argv, "-b", "4", "--device", "cpu", "--output", str(tmp_path / "out"), "--no-tensorboard"],
    )


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc"),
        ({"WORLD_SIZE": "2"}, "RANK=,"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK=x"),
    ],
)
def test_an_environment_that_is_no_launchers(monkeypatch, environment, reason):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert reason in refused(join_world, "cpu")


@pytest.mark.parametrize(
    ("argv", "reason"), [(["--experiment", "x" * 300], "more than 255 bytes"), (["--experiment", "a\0b"], "NUL")]
)
def test_names_that_no_file_can_have(argv, reason):
    assert reason in refused(parse_with_config, train_parser(), argv)


@pytest.mark.parametrize("seed", ["9" * 26, str(1 << 32), "9" * 5000])
def test_a_seed_that_is_too_large(seed, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_with_config(train_parser(), ["--seed", seed])
    assert "argument --seed: must be" in capsys.readouterr().err
    (tmp_path / "c.yaml").write_text(f"seed: {seed[:30]}\n")
    assert "seed" in refused(parse_with_config, train_parser(), ["-c", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize("spelling", ["plain", "link", "hard link", "dots"])
def test_an_output_that_is_an_input(tmp_path, spelling):
    (tmp_path / "a.pth").write_bytes(b"x")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    for parser, argv, flag, target in (
        (validate_parser, ["--checkpoint", str(tmp_path / "a.pth")], "--results-file", tmp_path / "a.pth"),
        (validate_parser, ["--checkpoint", str(tmp_path / "a.pth")], "--confusion-matrix", tmp_path / "a.pth"),
        (predict_parser, [str(tmp_path / "images" / "a.png")], "--out", tmp_path / "images" / "a.png"),
        (predict_parser, [str(tmp_path / "images")], "--out", tmp_path / "images" / "a.png"),
        (cam_parser, [str(tmp_path / "images")], "--out", tmp_path / "images" / "a.png"),
    ):
        other = tmp_path / f"other{target.suffix}"
        other.unlink(missing_ok=True)
        if spelling == "link":
            other.symlink_to(target)
        elif spelling == "hard link" and target.suffix == ".pth":
            os.link(target, other)
        else:
            other = target if spelling == "plain" else target.parent / ".." / target.parent.name / target.name
        assert f"{flag} would overwrite the input" in refused(parse_with_config, parser(), [*argv, flag, str(other)])
        parse_with_config(parser(), [*argv, flag, str(tmp_path / "new.png")])


CHILD = """
import json, resource, sys, time
import torch, wsfvit_cli, wsfvit.inference.predictor, wsfvit.detection.predict, wsfvit.video.predict  # noqa
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
for argv in json.load(sys.stdin):
    began = time.monotonic()
    try:
        wsfvit_cli.main(argv)
        code = 0
    except SystemExit as err:
        code = err.code
    print(json.dumps([code, time.monotonic() - began]), file=sys.stderr, flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_small_checkpoints_stay_below_a_gigabyte_and_ten_seconds(tmp_path):
    from detection.tiny_detector import write_checkpoint
    from video.tiny import TINY

    from wsfvit.video.args import build_config
    from wsfvit.video.args import train_parser as video_parser
    from wsfvit.video.checkpoint import describe

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    image, commands = str(tmp_path / "a.png"), []

    def add(content: object, *command: str) -> None:
        file = tmp_path / f"{len(commands)}.pth"
        save_atomic(content, file)
        assert file.stat().st_size < 10_000
        commands.append([*command, "--checkpoint", str(file)])

    for kwargs in CLAIMS:
        described = {"arch": "wsfvit_p0_224", "model_kwargs": {"img_size": 32, "window_size": 4, **kwargs}}
        add({"state_dict": WEIGHTS, **described}, "predict", image)
    args = video_parser().parse_args(TINY)
    for part, key, value in VIDEO_CLAIMS:
        described = describe(build_config(args), args, (30, 32))
        described["config"][part][key] = value
        add({"state_dict": WEIGHTS, **described}, "video", "predict", "--device", "cpu")
    write_checkpoint(tmp_path / "detector.pth")
    detector = read_checkpoint(tmp_path / "detector.pth")
    for key, value in DETECTOR_CLAIMS:
        config = {**detector["config"], "detector": dict(detector["config"]["detector"])}
        (config if key in config else config["detector"])[key] = value
        add({"state_dict": WEIGHTS, "task": "detection", "config": config}, "detection", "predict", image)
    ended = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(commands), capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    lines = [line for line in ended.stderr.splitlines() if line.startswith(("error: ", "["))]
    assert "Traceback" not in ended.stderr and len(lines) == 2 * len(commands), ended.stderr
    for command, message, outcome in zip(commands, lines[::2], lines[1::2], strict=True):
        code, seconds = json.loads(outcome)
        assert (message[:7], code) == ("error: ", 2) and seconds < 10, (command, message, outcome)


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_evaluation_settings_that_no_image_fits(tmp_path, changes):
    import timm

    config = {"input_size": [3, 32, 32], "mean": SHARED, "std": SHARED, "interpolation": "bicubic", "crop_pct": 0.9}
    model = timm.create_model("test_resnet", num_classes=3)
    described = {"arch": "test_resnet", "model_kwargs": {"num_classes": 3}, "data_config": {**config, **changes}}
    save_atomic({"state_dict": model.state_dict(), **described}, tmp_path / "x.pth")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    refused(
        wsfvit_cli.dispatch, ["predict", str(tmp_path / "a.png"), "--checkpoint", str(tmp_path / "x.pth"), "-j", "0"]
    )
