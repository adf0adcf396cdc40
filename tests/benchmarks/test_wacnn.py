"""The WA-CNN benchmark: both forms of the attention are equal, and a wrong one stops the program."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import wacnn
from wsfvit.layers import WaveletAttention
from wsfvit.utils.errors import UserError


def candidates(wavelet: str, size: tuple[int, int]) -> dict[str, nn.Module]:
    return {"ours": WaveletAttention(wavelet), "bands": wacnn.BandMatrixAttention(wavelet, *size)}


@pytest.mark.parametrize("size", [(16, 16), (6, 10), (2, 2)], ids=str)
@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior3.3"])
def test_candidates_are_equal(wavelet: str, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert wacnn.check_equal(candidates(wavelet, size), x).keys() == {"ours", "bands"}


def test_wrong_candidates_stop_the_program() -> None:
    class Swapped(WaveletAttention):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return super().forward(x)[::-1]

    class Detached(WaveletAttention):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            out, LL = super().forward(x)
            return out, LL.detach() + 0 * out

    x = torch.randn(2, 3, 8, 8)
    for wrong in (Swapped(), Detached()):
        with pytest.raises(SystemExit, match="wrong differs by"):
            wacnn.check_equal({**candidates("haar", (8, 8)), "wrong": wrong}, x)
    with pytest.raises(UserError, match="even sizes"):
        wacnn.BandMatrixAttention("haar", 7, 8)


def test_program_writes_both_modes_of_every_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.json"
    wacnn.main(["--shapes", "1x2x8x8", "2x3x4x6", "--warmup", "1", "--repeats", "2", "--out", str(out)])
    runs = json.loads(out.read_text())["runs"]
    modes = ("forward", "forward + backward")
    assert [(run["shape"], run["mode"]) for run in runs] == [
        (shape, mode) for shape in ([1, 2, 8, 8], [2, 3, 4, 6]) for mode in modes
    ]
    assert all(run["results"][0]["times_ours"] == 1 for run in runs)
    assert "times ours" in capsys.readouterr().out
