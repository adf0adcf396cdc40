"""The measurement of the seeding: both sides give the same pixels, and the result is written."""

import json

import numpy as np
import torch
from PIL import Image

from wsfvit.benchmarks import data
from wsfvit.benchmarks.data import main, measure_seeding


class Recorded(torch.utils.data.Dataset):
    """Remembers the random numbers that it gave out."""

    def __init__(self):
        self.given = []

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.given.append((index, torch.rand(1).item()))
        return self.given[-1]


def test_both_sides_draw_the_same_numbers(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(data.time, "process_time", lambda: next(clock))
    dataset = Recorded()
    assert measure_seeding(dataset, batch_size=2, rounds=2) == [(1, 0.5), (1, 1)] * 2
    given = iter(dataset.given)
    for _ in range(3):
        for batch in ([0, 1], [2]):
            one, other = ([next(given) for _ in batch] for _ in range(2))
            assert one == other and [index for index, _ in one] == batch
    assert len({number for _, number in dataset.given}) == 9


def test_command(tmp_path, capsys):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in range(3):
        Image.fromarray(np.full((40, 50, 3), name, np.uint8)).save(tmp_path / "images" / "a" / f"{name}.jpg")
    out = tmp_path / "data.json"
    main(["--data", str(tmp_path / "images"), "--img-size", "32", "--rounds", "1", "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    assert results["images"] == 3 and results["plain_ms_per_image"] > 0
    assert "seeding costs" in capsys.readouterr().out
