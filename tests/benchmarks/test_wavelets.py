"""The wavelet benchmark: every candidate is right before it is timed, and a wrong one stops the program."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import wavelets


def image(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.filterwarnings("ignore:Level value of 1 is too high")  # pywt and its followers, on a 1x1 image
@pytest.mark.parametrize("op", ["swt", "dwt"])
@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 3, 32, 32), (2, 3, 16, 32), (3, 1, 9, 14), (1, 2, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_all_candidates_match_pywt(op: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = image(*shape, dtype=dtype)
    candidates, left_out = wavelets.build_candidates(op, x)
    assert len(candidates) + len(left_out) == len(wavelets.CANDIDATES)
    for name, candidate in candidates.items():
        wavelets.check_forward(name, candidate, op, x)
        wavelets.check_adjoint(name, candidate, op, x)


def test_wrong_candidates_stop_the_program() -> None:
    x = image(2, 3, 8, 8)
    good = wavelets.build_candidates("dwt", x)[0][wavelets.FFT]
    for wrong in (
        dataclasses.replace(good, signs=(1, 1, 1, 1)),
        dataclasses.replace(good, unpack=lambda y: y[:, :-3].unflatten(1, (3, -1))),
        dataclasses.replace(good, run=lambda x: good.run(x) * float("nan")),
    ):
        with pytest.raises(SystemExit):
            wavelets.check_forward("wrong", wrong, "dwt", x)
    with pytest.raises(SystemExit, match="gradient"):
        half = dataclasses.replace(good, run=lambda x: good.run((x + x.detach()) / 2))
        wavelets.check_adjoint("half the gradient", half, "dwt", x)


def test_missing_library_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _, left_out = wavelets.build_candidates("swt", image(1, 1, 8, 8))
    missing = dict.fromkeys(["pytorch_wavelets", "ptwt", "torchwavelets"], "not installed")
    assert left_out == missing | {"wsfvit, compiled": "on a CPU it needs a C++ compiler"}


@pytest.mark.parametrize("backward", [False, True])
def test_program_writes_every_op_and_shape(backward: bool, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    argv = ["--op", "all", "--shapes", "1x2x8x8", "2x1x5x7", "--warmup", "1", "--repeats", "2", "--out", str(out)]
    wavelets.main(argv + ["--backward"] * backward)
    runs = json.loads(out.read_text())["runs"]
    assert [(run["op"], run["shape"]) for run in runs] == [
        (op, shape) for op in ("swt", "dwt") for shape in ([1, 2, 8, 8], [2, 1, 5, 7])
    ]
    for run in runs:
        assert run["results"][-1]["candidate"] == wavelets.COPY and run["results"][-1]["of_limit"] == 1


def test_graphs_need_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        wavelets.main(["--cuda-graph"])
    assert "--cuda-graph needs --device cuda" in capsys.readouterr().err


def test_what_a_graph_cannot_hold_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(step: Any, device: torch.device) -> Any:
        if step == "peer":
            raise RuntimeError("it waits for the GPU\nmore")
        return step

    monkeypatch.setattr(wavelets, "capture", capture)
    steps, refused = wavelets.capture_steps({"ours": "own", "peer": "peer"}, torch.device("cpu"))
    assert steps == {"ours": "own"} and refused == {"peer": "no CUDA graph: it waits for the GPU"}
