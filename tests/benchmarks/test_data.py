"""The measurement of the seeding: what it times, and that the result is written."""

import json

import numpy as np
import torch
from PIL import Image

from wsfvit.benchmarks import data
from wsfvit.benchmarks.data import main, measure_reading


class Draws(torch.utils.data.Dataset):
    """Counts the ticks of the clock that its reading takes, and remembers its random numbers."""

    def __init__(self, clock):
        self.clock, self.drawn = clock, []

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.drawn.append(torch.rand(1).item())
        next(self.clock)


def test_both_parts_are_timed_on_seeded_numbers(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(data.time, "process_time", lambda: next(clock))
    dataset = Draws(clock)
    assert measure_reading(dataset, rounds=2) == [(1, 2)] * 2
    again = Draws(clock)
    measure_reading(again, rounds=2)
    assert again.drawn == dataset.drawn and len(set(dataset.drawn)) == 9


def test_command(tmp_path, capsys):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in range(3):
        Image.fromarray(np.full((40, 50, 3), name, np.uint8)).save(tmp_path / "images" / "a" / f"{name}.jpg")
    out = tmp_path / "data.json"
    main(["--data", str(tmp_path / "images"), "--img-size", "32", "--rounds", "1", "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    assert results["images"] == 3 and results["reading_ms_per_image"] > 0
    assert "seeding costs" in capsys.readouterr().out
