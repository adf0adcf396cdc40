"""A small run of the checkpoint fuzzer, and proof that its malicious objects act when they are unpickled."""

import pickle
from pathlib import Path

import pytest
import torch

from tools.fuzz_checkpoints import GOOD, MUTATIONS, fuzz, gadgets, make_weights, try_file


def test_every_file_loads_bit_equal_or_is_refused_in_one_line(tmp_path: Path) -> None:
    cases = fuzz(60, 0, tmp_path)
    assert [case for case in cases if case.outcome not in GOOD] == []
    assert {case.kind.split(":")[0] for case in cases} == {"hostile", *MUTATIONS}


@pytest.mark.parametrize("name", gadgets(Path("canary")))
def test_gadgets_act_when_they_are_unpickled(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps({"extra": gadgets(canary)[name]}))
    assert canary.exists()


def test_outcomes_are_distinguished(tmp_path: Path) -> None:
    path, canary, weights = tmp_path / "x.pth", tmp_path / "canary", make_weights(0)
    outcomes = []
    for content, executed in ((weights, False), (make_weights(1), False), (weights, True), ({"epoch": 1}, False)):
        torch.save({"state_dict": content}, path)
        if executed:
            canary.touch()
        outcomes.append(try_file(path, weights, canary)[0])
    assert outcomes == ["intact", "altered", "executed", "refused"]
