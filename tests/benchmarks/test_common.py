"""The measuring code: turns, quantiles, tables, files."""

import json
from pathlib import Path

from wsfvit.benchmarks.common import (
    environment,
    format_timing,
    markdown_table,
    measure,
    measure_together,
    write_results,
)


def test_candidates_take_turns_and_start_in_turn(monkeypatch) -> None:
    monkeypatch.setattr("wsfvit.benchmarks.common.MIN_SAMPLE_SECONDS", 0.0)
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
