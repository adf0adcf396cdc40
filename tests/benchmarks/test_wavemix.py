"""The WaveMix benchmark: its candidates are equal at odd sizes too, and a wrong one stops the program."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import wavemix


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(16, 16), (13, 22)], ids=str)
def test_candidates_are_equal(level: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    candidates = wavemix.build_candidates(level, torch.device("cpu"))
    assert set(wavemix.check_equal(candidates, x)) == {wavemix.ONCE, wavemix.AGAIN, wavemix.PUBLISHED}
    assert all(len(pyramid(x)) == level for pyramid in candidates.values())


def test_wrong_candidates_stop_the_program() -> None:
    x = torch.randn(2, 3, 8, 8)
    candidates = wavemix.build_candidates(2, torch.device("cpu"))
    good = candidates[wavemix.PUBLISHED]
    for wrong in (lambda x: [y.flip(1) for y in good(x)], lambda x: [y + 0 * x.sum() for y in good(x.detach())]):
        with pytest.raises(SystemExit, match="wrong differs by"):
            wavemix.check_equal(candidates | {"wrong": wrong}, x)


def test_program_writes_every_shape_and_level(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    argv = ["--shapes", "1x2x8x8", "2x1x5x7", "--levels", "1", "3", "--warmup", "1", "--repeats", "2"]
    wavemix.main([*argv, "--out", str(out)])
    runs = json.loads(out.read_text())["runs"]
    assert [(run["shape"], run["level"], run["backward"]) for run in runs] == [
        (shape, level, backward) for shape in ([1, 2, 8, 8], [2, 1, 5, 7]) for level in (1, 3) for backward in (0, 1)
    ]
    assert all(run["results"][0]["times_ours"] == 1 for run in runs)
