"""A small run of the checkpoint fuzzer, and proof that its malicious objects act when they are unpickled."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from tools.fuzz_checkpoints import GOOD, MUTATIONS, fuzz, fuzz_claims, gadgets, inflate, make_weights, try_file
from tools.sandbox import CANARY, Sandbox
from wsfvit.checkpoint.integrity import find_damage
from wsfvit.checkpoint.io import save_atomic


@pytest.fixture(autouse=True)
def one_thread():
    """A fork has no others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_file_loads_bit_equal_or_is_refused_in_one_line(tmp_path: Path) -> None:
    cases = fuzz(60, 0, tmp_path)
    assert [case for case in cases if case.outcome not in GOOD] == []
    assert {case.kind.split(":")[0] for case in cases} == {"hostile", *MUTATIONS}


@pytest.mark.slow
def test_claims_of_size_are_refused(tmp_path: Path) -> None:
    assert [case for case in fuzz_claims(6, 0, tmp_path) if case.outcome != "refused"] == []


def test_a_grown_record_is_found_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "grown.pth.tar"
    save_atomic({"state_dict": {"head.weight": torch.ones(3)}}, path)
    path.write_bytes(inflate(path.read_bytes(), 1 << 20))
    assert "is compressed" in str(find_damage(path)) and path.stat().st_size < 10_000
    with zipfile.ZipFile(path) as archive:
        assert max(info.file_size for info in archive.infolist()) > 1 << 20


@pytest.mark.parametrize("name", gadgets(Path("canary")))
def test_gadgets_act_when_they_are_unpickled(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps({"extra": gadgets(canary)[name]}))
    assert canary.exists()


def test_outcomes_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sandbox, weights = tmp_path / "x.pth", Sandbox(tmp_path), make_weights(0)

    def outcome(content: object) -> str:
        torch.save({"state_dict": content}, path)
        return try_file(path, weights, sandbox)[0]

    assert [outcome(content) for content in (weights, make_weights(1), {"epoch": 1})] == [
        "intact",
        "altered",
        "refused",
    ]
    (tmp_path / CANARY).touch()
    assert outcome(weights) == "executed"
    monkeypatch.setattr("tools.fuzz_checkpoints.load_state_dict_file", lambda path: pickle.loads(path.read_bytes()))
    path.write_bytes(pickle.dumps(gadgets(tmp_path / CANARY)["eval"]))
    assert try_file(path, weights, sandbox)[0] == "executed"
