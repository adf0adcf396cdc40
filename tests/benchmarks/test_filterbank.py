"""The benchmark of wavelets other than Haar: candidates agree, and a wrong one stops the program."""

import json

import pytest
import torch

from benchmarks import filterbank
from wsfvit.wavelets import filterbank as ours


def test_candidates_agree_and_are_written(tmp_path, capsys) -> None:
    out = tmp_path / "run.json"
    argv = "--wavelets db2 --shapes 2x4x8x9 --repeats 1 --warmup 1 --backward --out".split()
    filterbank.main([*argv, str(out)])
    (run,) = json.loads(out.read_text())["runs"]
    assert {"wsfvit", filterbank.CONVOLUTION, "pytorch_wavelets"} <= {result["candidate"] for result in run["results"]}
    assert "db2, symmetric, 2x4x8x9, forward + backward" in capsys.readouterr().out


def test_convolution_is_measured_and_the_limit_put_back(monkeypatch) -> None:
    side = ours.MAX_MATRIX_SIDE
    x = torch.randn(4, 4, 8, 8)
    candidates = filterbank.build_candidates("db2", "zero", x)
    monkeypatch.setattr(ours, "_multiply", lambda *_: pytest.fail("matrices"))
    filterbank.check("convolution", candidates[filterbank.CONVOLUTION], "db2", "zero", x)
    assert ours.MAX_MATRIX_SIDE == side
    with pytest.raises(SystemExit, match="db2 by db3 differs"):
        run = filterbank.build_candidates("db3", "periodization", x)[filterbank.CONVOLUTION]
        filterbank.check("db3", run, "db2", "periodization", x)
