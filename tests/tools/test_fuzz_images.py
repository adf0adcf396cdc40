"""The image fuzzer: a small run, and it reports what goes wrong."""

import json
import random

import pytest

from tools import fuzz_images
from wsfvit.data.bad_images import BadImage


@pytest.mark.parametrize("decoder", ["pillow", "torchvision"])
def test_damaged_images_are_read_or_refused_by_name(tmp_path, capsys, decoder):
    out = str(tmp_path / "images.json")
    fuzz_images.main(["--count", "60", "--seed", "1", "--decoder", decoder, "--out", out])
    assert "60 files, 0 of them did not end as they should" in capsys.readouterr().out
    recorded = json.loads((tmp_path / "images.json").read_text())
    assert recorded["bad"] == 0 and sum(row["files"] for row in recorded["results"]) == 60
    assert {row["outcome"] for row in recorded["results"]} == {"read", "refused"}


def test_the_same_seed_gives_the_same_damage():
    blob = fuzz_images.make_bases()["JPEG"]
    for mutate in fuzz_images.MUTATIONS.values():
        one, other, third = (mutate(blob, random.Random(seed)) for seed in (1, 1, 2))
        assert one == other != third


class Broken:
    def __getitem__(self, index):
        if index == 0:
            raise MemoryError("too large")
        return BadImage(index, "cannot read\nanything")


@pytest.mark.parametrize(("index", "outcome"), [(0, "MemoryError"), (1, "refused without its name")])
def test_what_goes_wrong_is_reported(index, outcome):
    assert fuzz_images.Outcomes(Broken(), ["a.png", "b.png"])[index][0] == outcome
