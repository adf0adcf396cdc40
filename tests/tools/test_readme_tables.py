"""The README's speed tables and their picture: equal to the records, and made of whatever was recorded."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from tools import readme_tables as report
from tools import speed_picture
from tools.report_tables import MODELS, SECTIONS, TRANSFORMS, machine, models_table, transforms_table
from wsfvit.utils.errors import UserError
from wsfvit.wavelets import haar_dwt2d

CARD = {"device": "cuda", "dtype": "bfloat16", "amp": True}


def run_of(settings: dict[str, Any], **content: Any) -> dict[str, Any]:
    environment = {"threads": 2, "card": "NVIDIA H200"}
    settings = {"device": "cpu", "dtype": "float32", "amp": False, "batch_size": 4, "img_size": 32} | settings
    return {"environment": environment, "settings": settings, "link": "[file]", **content}


def of_models(speeds: dict[str, float], mode: str = "inference", memory: int | None = None) -> list[dict[str, Any]]:
    """Records of models that are ``speeds`` times as fast as a baseline of one second."""
    return [
        {"mode": mode, "model": name, "median": 1 / speed, "images_per_second": 4 * speed, "speed": speed}
        | {"peak_memory": memory}
        for name, speed in speeds.items()
    ]


def of_transforms(seconds: dict[str, float], shape: tuple[int, ...] = (2, 3, 9, 8), op: str = "dwt") -> dict[str, Any]:
    return {"op": op, "shape": shape, "results": [{"candidate": n, "median": s} for n, s in seconds.items()]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with small records and a README whose tables are empty."""
    write(tmp_path, MODELS[0][0], run_of({}, results=of_models({"resnet10t": 2.0, "fused:resnet10t": 3.0})))
    for name, (op, factor) in zip(TRANSFORMS[0], itertools.product(("dwt", "swt"), (1, 3)), strict=True):
        times = {"wsfvit (reference)": 0.002 * factor, "copy (same bytes)": 0.001 * factor}
        write(tmp_path, name, run_of({"backward": factor == 3}, runs=[of_transforms(times, op=op)]))
    tables = [f"<!-- table: {name} -->\n{report.END}\n" for name in ("models", "wavelets")]
    (tmp_path / "README.md").write_text("before\n" + "between\n".join(tables) + "after\n")
    return tmp_path


def write(root: Path, name: str, record: dict[str, Any]) -> None:
    path = root / f"results/{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def test_the_tables_of_this_repository_agree_with_its_records(capsys: pytest.CaptureFixture[str]) -> None:
    report.main(["--check"])
    assert "every table agrees" in capsys.readouterr().out
    text = (report.ROOT / "README.md").read_text()
    wanted = set(SECTIONS)
    assert {begin[1] for begin in report.BEGIN.finditer(text)} >= wanted


def test_a_stale_table_is_named_and_rewritten(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--root", str(root)]
    report.main(argv)
    text = (root / "README.md").read_text()
    assert "| timm `resnet10t` | 500 | 8.00 | 2.00x |" in text and "Not measured on a GPU yet." in text
    assert [text.count(word) for word in ("before\n", "between\n", "after\n", report.END)] == [1, 1, 1, 2]
    assert (root / "docs" / "speed.png").read_bytes().startswith(b"\x89PNG")
    report.main([*argv, "--check"])
    write(root, MODELS[0][0], run_of({}, results=of_models({"resnet10t": 2.5})))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        report.main([*argv, "--check"])
    assert stopped.value.code == 1
    assert "stale: table models" in (said := capsys.readouterr().out) and "wavelets" not in said
    assert (root / "README.md").read_text() == text


def test_models_of_a_gpu() -> None:
    speeds = {"wsfvit_t_224": 1.25, "baseline:wsfvit_t_224": 1.0, "fused:wsfvit_t_224": 1.5, "convnext_tiny": 0.004}
    first = run_of(CARD, results=of_models(speeds, "training", memory=3 * 2**29))
    again = run_of(CARD, results=of_models({"wsfvit_t_224": 9.0, "wacnn_resnet18": 2.0}, "training", memory=2**20))
    again["link"] = "[more]"
    assert models_table([first, again], "training").splitlines() == [
        "| training, batch 4, 32x32, bfloat16 autocast, NVIDIA H200 ([file], [more]) "
        "| ms | images/s | peak MiB | against the baseline |",
        "|---|---|---|---|---|",
        "| `wsfvit_t_224` | 800 | 5.00 | 1536 | 1.25x |",
        "| published computation of `wsfvit_t_224` | 1000 | 4.00 | 1536 | 1 |",
        "| `wsfvit_t_224`, `fuse_for_inference` | 667 | 6.00 | 1536 | 1.50x |",
        "| timm `convnext_tiny` | 250000 | 0.0160 | 1536 | 0.00x |",
        "| `wacnn_resnet18` | 500 | 8.00 | 1.00 | 2.00x |",
    ]
    assert machine([run_of({})]) == "CPU, 2 threads"


def test_transforms_of_several_runs() -> None:
    forward = run_of({"backward": False}, runs=[of_transforms({"ours": 0.002, "other": 0.004, "copy": 0.001})])
    forward["runs"].append(of_transforms({"ours": 7.0}, op="swt"))
    backward = run_of({"backward": True}, runs=[of_transforms({"ours": 0.003, "other": 0.03})])
    assert transforms_table([forward, backward], "dwt").splitlines()[0::2] == [
        "| Haar DWT, ms, float32, CPU, 2 threads ([file], [file]) "
        "| 2x3x9x8, forward | 2x3x9x8, forward + backward | times ours |",
        "| ours | 2.00 | 3.00 | 1 |",
        "| copy | 1.00 | - | 0.5x |",
    ]
    assert "| other | 4.00 | 30.0 | 2.0x to 10.0x |" in transforms_table([forward, backward], "dwt")


def test_records_of_a_gpu_add_tables_and_panels(root: Path) -> None:
    write(root, "gpu/models_n_train", run_of(CARD, results=of_models({"resnet10t": 40.0}, memory=2**20)))
    write(root, "gpu/models_p0_train", run_of(CARD, results=of_models({"resnet14t": 30.0}, memory=2**20)))
    write(
        root, "gpu/wavelets_triton_float32", run_of({**CARD, "backward": False}, runs=[of_transforms({"ours": 1e-5})])
    )
    text, stale = report.rewrite_tables((root / "README.md").read_text(), root)
    assert stale == ["models", "wavelets"] and text.count("NVIDIA H200") == 2
    assert "Not measured" not in text
    assert "[models_p0_train.json](results/gpu/models_p0_train.json), [models_n_train.json]" in text
    _, _, models, bandwidth = speed_picture.draw_speed(root).axes
    assert "H200" in models.get_title() and "H200" in bandwidth.get_title()
    assert len(models.lines) == 2


def test_groups_are_steps_of_the_gpu_program() -> None:
    steps = {f"gpu/{step.name}" for step in gpu.plan("cuda", tiny=False)}
    assert {name for group in (*MODELS[1:], *TRANSFORMS[1:]) for name in group} <= steps


@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (1, 4, 6, 7)])
def test_bandwidth(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, dtype=torch.bfloat16)
    moved = speed_picture.moved_bytes(shape, "bfloat16")
    assert moved == x.nbytes + haar_dwt2d(x).nbytes


def test_the_picture_shows_speed_over_macs_and_bandwidth(root: Path) -> None:
    models, bandwidth = speed_picture.draw_speed(root).axes
    macs = speed_picture.count_macs("resnet10t", 32)
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in models.lines] == [(macs / 1e9, 8), (macs / 1e9, 12)]
    (points,) = bandwidth.lines
    gigabytes = speed_picture.moved_bytes((2, 3, 9, 8), "float32") / 1e9
    assert points.get_xdata() == pytest.approx([gigabytes / 0.002, gigabytes / 0.001])
    assert [label.get_text() for label in bandwidth.get_yticklabels()] == ["wsfvit (reference)", "copy (same bytes)"]


@pytest.mark.parametrize(
    ("readme", "said"),
    [
        ("no table\n", "no line <!-- table"),
        ("<!-- table: modles -->\n<!-- end of table -->\n", "no table modles; the tables are models, wavelets"),
        ("<!-- table: models -->\n", "table models has no <!-- end of table -->"),
        ("<!-- table: models -->\n<!-- table: wavelets -->\n<!-- end of table -->\n", "table models has no"),
        ("<!-- table: loader -->\n<!-- end of table -->\n", "results/cpu/loader.json is missing"),
    ],
)
def test_mistakes_in_the_readme(root: Path, readme: str, said: str) -> None:
    (root / "README.md").write_text(readme)
    with pytest.raises(UserError, match=said):
        report.main(["--root", str(root)])
    assert (root / "README.md").read_text() == readme


def test_damaged_records(root: Path) -> None:
    record = root / f"results/{MODELS[0][0]}.json"
    record.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        report.main(["--root", str(root)])
    record.write_text('{"environment": {}}')
    with pytest.raises(UserError, match="table models: a record .* is of another kind"):
        report.main(["--root", str(root)])
    with pytest.raises(UserError, match="README.md cannot be read"):
        report.main(["--root", str(root / "nowhere")])
