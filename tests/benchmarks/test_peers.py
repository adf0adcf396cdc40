"""The peers' benchmark: all computations of a part are equal, at odd sizes too, and a wrong one stops the program."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks import peers
from benchmarks.peers import TOLERANCES, Candidate, check_candidates
from wsfvit.utils.errors import UserError


def cases_of(peer: str, shape: tuple[int, ...], *options: str) -> list[dict[str, Candidate]]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return [candidates for _, candidates in peers.CASES[peer](x, peers.parse_args([peer, *options]))]


@pytest.mark.parametrize(
    ("peer", "shape", "options"),
    [
        *(("wavemix", (2, 3, *size), ("--levels", "1", "2", "3", "4")) for size in ((16, 16), (13, 22))),
        *(
            ("wacnn", (2, 3, *size), ("--wavelet", wavelet))
            for wavelet in ("haar", "db2", "bior3.3")
            for size in ((16, 16), (6, 10), (2, 2))
        ),
        *(("afno", shape, ("--num-blocks", "3")) for shape in ((2, 12, 8, 8), (1, 12, 5, 7))),
    ],
    ids=str,
)
def test_candidates_are_equal(peer: str, shape: tuple[int, ...], options: tuple[str, ...]) -> None:
    cases = cases_of(peer, shape, *options)
    assert len(cases) == {"wavemix": 4, "wacnn": 1, "afno": 2}[peer]
    for candidates in cases:
        assert check_candidates(candidates, TOLERANCES[peer]).keys() == candidates.keys()
        assert sum(name.endswith("(published)") for name in candidates) == 1


@pytest.mark.parametrize("peer", peers.CASES)
def test_wrong_candidates_stop_the_program(peer: str) -> None:
    """A wrong value, then a right one with a wrong gradient; of several outputs, the first."""
    for candidates in cases_of(peer, (2, 12, 8, 8)):
        good = list(candidates.values())[-1]

        def outputs(x: torch.Tensor, good: Candidate = good) -> list[torch.Tensor]:
            return list(peers.tensors_of(good.run(x)))

        for wrong in (
            lambda x, run=outputs: [run(x)[0].flip(1), *run(x)[1:]],
            lambda x, run=outputs: [run(x)[0].detach() + 0 * run(x)[0], *run(x)[1:]],
        ):
            with pytest.raises(SystemExit, match="wrong differs: relative error"):
                check_candidates(candidates | {"wrong": dataclasses.replace(good, run=wrong)}, TOLERANCES[peer])


def test_band_matrices_need_even_sizes() -> None:
    with pytest.raises(UserError, match="even sizes"):
        peers.BandMatrixAttention("haar", 7, 8)


def test_program_writes_every_case_and_direction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.json"
    argv = "wavemix --shapes 1x2x8x8 2x1x5x7 --levels 1 3 --warmup 1 --repeats 2 --out".split()
    peers.main([*argv, str(out)])
    runs = json.loads(out.read_text())["runs"]
    assert [(run["shape"], run["level"], run["direction"]) for run in runs] == [
        (shape, level, direction)
        for shape in ([1, 2, 8, 8], [2, 1, 5, 7])
        for level in (1, 3)
        for direction in ("forward", "forward + backward")
    ]
    for run in runs:
        ours, *others = run["results"]
        assert ours["times_ours"] == 1
        assert all(other["times_ours"] == other["median"] / ours["median"] for other in others)
    assert "times ours" in capsys.readouterr().out
