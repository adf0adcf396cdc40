"""The AFNO benchmark: its candidates are equal, at odd sizes too, and a wrong one stops the program."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import mwa


@pytest.mark.parametrize("shape", [(2, 12, 8, 8), (1, 12, 5, 7)], ids=str)
def test_candidates_are_equal(shape: tuple[int, ...]) -> None:
    for case in mwa.build_cases(shape, 3, torch.device("cpu")).values():
        assert mwa.check_equal(case) < mwa.TOLERANCE


def test_wrong_candidates_stop_the_program() -> None:
    case = mwa.build_cases((2, 12, 8, 8), 3, torch.device("cpu"))["mixer"]
    function, *others = case[mwa.EINSUMS]
    for wrong in (lambda x: function(x.flip(1)), lambda x: function(x.detach()) + 0 * x):
        with pytest.raises(SystemExit, match="differ by"):
            mwa.check_equal(case | {mwa.EINSUMS: (wrong, *others)})


def test_program_writes_every_shape(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    mwa.main("--shapes 1x8x4x4 2x8x3x5 --num-blocks 2 --warmup 1 --repeats 2 --out".split() + [str(out)])
    runs = json.loads(out.read_text())["runs"]
    assert [run["shape"] for run in runs] == [[1, 8, 4, 4], [2, 8, 3, 5]]
    assert all(len(run["results"]) == 8 and run["results"][0]["speed_over_einsums"] > 0 for run in runs)
