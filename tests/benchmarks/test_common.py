"""The measuring code: turns, quantiles, tables, files."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.common import environment, format_timing, markdown_table, measure, measure_together, write_results


def test_candidates_take_turns_and_start_in_turn(monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.common.MIN_SAMPLE_SECONDS", 0.0)
    seen: list[str] = []
    names = ["a", "b", "c"]
    timings = measure_together({name: lambda n=name: seen.append(n) for name in names}, warmup=1, repeats=3)
    assert "".join(seen)[-9:] == "abcbcacab"
    assert list(timings) == names


def test_timing_is_ordered_and_counts_short_functions_in_bulk() -> None:
    timing = measure(lambda: None, warmup=1, repeats=5)
    assert 0 <= timing.q20 <= timing.median <= timing.q80
    assert timing.repeats == 5 and timing.calls_per_sample > 1
    assert timing.peak_memory is None
    assert format_timing(timing)[2] == ""


def test_environment_and_results_file(tmp_path: Path) -> None:
    env = environment()
    assert {"command", "commit", "date", "torch", "timm", "python", "cpu", "threads", "card"} <= env.keys()
    path = tmp_path / "new" / "run.json"
    write_results(path, {"environment": env})
    assert json.loads(path.read_text())["environment"] == env


def test_markdown_table() -> None:
    table = markdown_table(["name", "ms"], [["a", "1.5"], ["longer", "20"]])
    assert table.splitlines() == [
        "| name   |  ms |",
        "| ------ | --: |",
        "| a      | 1.5 |",
        "| longer |  20 |",
    ]


def test_commit_is_clean_whatever_was_measured_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wsfvit/benchmarks/common.py", "results/cpu/old.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(common, "__file__", str(tmp_path / "wsfvit/benchmarks/common.py"))
    assert environment()["commit"] is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    clean = environment()["commit"]
    assert len(clean) == 40
    (tmp_path / "results/cpu/old.json").write_text("[]")
    assert environment()["commit"] == clean
    (tmp_path / "wsfvit/benchmarks/common.py").write_text("[]")
    assert environment()["commit"] == f"{clean}-dirty"
