"""The speed tables of the pages: equal to the records, and made of whatever was recorded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import ROOT
from tools import readme_tables
from tools.readme_tables import TABLES, Results, peers_tables, wavelets_tables
from wsfvit.utils.errors import UserError

CARD = {"device": "cuda", "dtype": "bfloat16", "amp": True}
MARKERS = "<!-- table: {} -->\n<!-- end of table -->\n"


def run_of(settings: dict[str, Any], **content: Any) -> dict[str, Any]:
    settings = {"device": "cpu", "dtype": "float32", "amp": False, "batch_size": 4, "img_size": 32} | settings
    return {
        "environment": {"threads": 2, "cpu": "Xeon(R) Processor @ 2 GHz", "card": "NVIDIA H200"},
        "settings": settings,
        **content,
    }


def of_models(speeds: dict[str, float], memory: int | None = None) -> list[dict[str, Any]]:
    """Records of models that are ``speeds`` times as fast as a baseline of one second."""
    return [
        {"mode": "inference", "model": name, "median": 1 / speed, "images_per_second": 4 * speed, "speed": speed}
        | {"peak_memory": memory}
        for name, speed in speeds.items()
    ]


def of_transforms(backward: bool, **seconds: float) -> dict[str, Any]:
    results = [{"candidate": name, "median": value} for name, value in seconds.items()]
    return run_of({"backward": backward}, runs=[{"op": "dwt", "shape": [2, 3, 9, 8], "results": results}])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with a record and a page whose table is empty."""
    write(tmp_path, "cpu/models_t_224", run_of({}, results=of_models({"resnet10t": 2.0, "fused:resnet10t": 3.0})))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(f"before\n{MARKERS.format('models')}after\n")
    (tmp_path / "README.md").write_text("no table\n")
    return tmp_path


def write(root: Path, name: str, record: dict[str, Any]) -> None:
    path = root / f"results/{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def test_the_tables_of_this_repository_agree_with_its_records(tmp_path: Path) -> None:
    """Every kind of table stands in docs/benchmarks.md."""
    (tmp_path / "results").symlink_to(ROOT / "results")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    readme_tables.main(["--check", "--root", str(tmp_path)])
    assert {found[1] for found in readme_tables.TABLE.finditer((ROOT / "docs/benchmarks.md").read_text())} == set(
        TABLES
    )


def test_a_stale_table_is_named_and_rewritten(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, argv = root / "docs" / "page.md", ["--root", str(root)]
    readme_tables.main(argv)
    text = page.read_text()
    assert "| timm `resnet10t` | 500 | 8.00 | 2.00x |" in text and "(../results/cpu/models_t_224.json)" in text
    assert "Not measured on a GPU yet." in text and "Xeon, 2 threads" in text
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n")
    readme_tables.main([*argv, "--check"])
    write(root, "cpu/models_t_224", run_of({}, results=of_models({"resnet10t": 2.5})))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        readme_tables.main([*argv, "--check"])
    assert stopped.value.code == 1
    assert "page.md: stale: models" in capsys.readouterr().out and page.read_text() == text


def test_records_of_a_gpu_add_tables(root: Path) -> None:
    speeds = {"wsfvit_t_224": 1.25, "baseline:wsfvit_t_224": 1.0, "convnext_tiny": 0.004}
    write(root, "gpu/models_t_train", run_of(CARD, results=of_models(speeds, memory=3 * 2**29)))
    *_, table = TABLES["models"](Results(root, root))
    assert table.splitlines() == [
        "| inference, batch 4, 32x32, bfloat16 autocast, NVIDIA H200 "
        "([models_t_train.json](results/gpu/models_t_train.json)) | ms | images/s | against the baseline | peak MiB |",
        "|---|---|---|---|---|",
        "| `wsfvit_t_224` | 800 | 5.00 | 1.25x | 1536 |",
        "| published computation of `wsfvit_t_224` | 1000 | 4.00 | 1 | 1536 |",
        "| timm `convnext_tiny` | 250000 | 0.0160 | 0.00x | 1536 |",
    ]


def test_transforms_of_both_directions(root: Path) -> None:
    for name in ("cpu/wavelets_dwt", "cpu/wavelets_swt", "gpu/wavelets_triton_small"):
        write(root, name, of_transforms(False, ours=0.002, other=0.004, copy=0.001))
        write(root, f"{name}_backward", of_transforms(True, ours=0.003, other=0.03))
    write(root, "gpu/wavelets_triton_float32", of_transforms(False, ours=1.0))  # its backward pass is still to come
    first, *others = wavelets_tables(Results(root, root))
    assert len(others) == 2 and first.splitlines()[2:] == [
        "| ours | 2.00 | 3.00 | 1 |",
        "| other | 4.00 | 30.0 | 2.0x to 10.0x |",
        "| copy | 1.00 | - | 0.5x |",
    ]
    assert "| 2x3x9x8, forward | 2x3x9x8, forward + backward | times ours |" in first.splitlines()[0]


def test_gains_over_the_published_peers_in_old_and_new_records(root: Path) -> None:
    """The older programs recorded the direction in three ways."""

    def results(ours: float, published: float, **more: Any) -> list[dict[str, Any]]:
        each = {"ours": ours, "pytorch_wavelets, per level (published)": published, "wsfvit, per level": 2 * ours}
        return [{"candidate": name, "median": seconds, **more} for name, seconds in each.items()]

    wavemix = [{"shape": [n], "level": 3, "backward": b, "results": results(1, n + b)} for n in (2, 4) for b in (0, 1)]
    other = {"shape": [2], "level": 1, "backward": False, "results": results(1, 100)}
    directions = ("forward", "forward + backward")
    write(root, "cpu/wavemix", run_of({}, runs=[*wavemix, other]))
    write(root, "cpu/wacnn", run_of({}, runs=[{"shape": [2], "mode": d, "results": results(2, 6)} for d in directions]))
    parts = [(part, d) for part in ("block product", "mixer") for d in directions]
    old = [each for part, d in parts for each in results(1, 2, part=part, direction=d)]
    write(root, "cpu/mwa", run_of({}, runs=[{"shape": [2], "results": old}]))
    (table,) = peers_tables(Results(root, root))
    cells = [[cell.strip() for cell in line.split("|")[2:4]] for line in table.splitlines()[2:]]
    assert cells == [["2.0x to 4.0x", "3.0x to 5.0x"], ["2.0x", "2.0x"], ["3.0x", "3.0x"], ["2.0x"] * 2, ["2.0x"] * 2]
    new = [{"shape": [2], "part": part, "direction": d, "results": results(1, 2)} for part, d in parts]
    write(root, "cpu/mwa", run_of({}, runs=new))
    assert next(peers_tables(Results(root, root))) == table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MARKERS.format("modles"), "table modles does not exist; there are models, wavelets"),
        ("<!-- table: models -->\n", "table models has no <!-- end of table -->"),
        ("<!-- table: models -->\n" + MARKERS.format("wavelets"), "table models has no <!-- end of table -->"),
        (MARKERS.format("loader"), "loader.json cannot be read: record it with its program"),
    ],
)
def test_mistakes_in_a_page(root: Path, text: str, message: str) -> None:
    (root / "docs" / "page.md").write_text(text)
    with pytest.raises(UserError, match=message):
        readme_tables.main(["--root", str(root)])
    assert (root / "docs" / "page.md").read_text() == text


def test_damaged_records_and_no_table(root: Path) -> None:
    record = root / "results/cpu/models_t_224.json"
    for content, message in (("{", "cannot be read"), ('{"environment": {}}', "a record .* is of another kind")):
        record.write_text(content)
        with pytest.raises(UserError, match=message):
            readme_tables.main(["--root", str(root)])
    (root / "docs" / "page.md").unlink()
    with pytest.raises(UserError, match="no page of .* has a line"):
        readme_tables.main(["--root", str(root)])
