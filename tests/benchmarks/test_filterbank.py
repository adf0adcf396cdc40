"""The benchmark of other wavelets than Haar: its convolution candidate avoids matrices, a wrong one is refused."""

import pytest
import torch

from benchmarks import filterbank
from wsfvit.wavelets import filterbank as ours


def test_convolution_is_measured_and_the_limit_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    side = ours.MAX_MATRIX_SIDE
    x = torch.randn(4, 4, 8, 8)
    candidates = filterbank.build_candidates("db2", "zero", x)
    monkeypatch.setattr(ours, "_multiply", lambda *_: pytest.fail("matrices"))
    filterbank.check("convolution", candidates[filterbank.CONVOLUTION], "db2", "zero", x)
    assert ours.MAX_MATRIX_SIDE == side
    with pytest.raises(SystemExit, match="db2 by db3 differs"):
        run = filterbank.build_candidates("db3", "periodization", x)[filterbank.CONVOLUTION]
        filterbank.check("db3", run, "db2", "periodization", x)
