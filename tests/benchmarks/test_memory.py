"""The bytes that a backward pass waits for, against networks whose bytes are known."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from benchmarks import memory


@pytest.mark.parametrize("batch", [1, 3])
def test_every_memory_is_counted_once_and_weights_are_not(batch: int) -> None:
    # Two products save their inputs, 8 and 16 wide; ReLU its output, which is the second one's input.
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    assert memory.saved_bytes(model, torch.randn(batch, 8)) == 4 * batch * (8 + 16)
    # A view is the memory it looks at.
    viewing = nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(8, 4))
    assert memory.saved_bytes(viewing, torch.randn(batch, 8)) == 4 * batch * 8


def run(tmp_path: Path, systems: dict[str, dict[str, object]], *arguments: str) -> dict[str, dict[str, object]]:
    settings = {"title": "sizes", "results": str(tmp_path), "seeds": [0], "systems": systems}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    memory.main([str(tmp_path / "study.yaml"), "--out", str(tmp_path / "memory.json"), *arguments])
    return json.loads((tmp_path / "memory.json").read_text())["results"]


def test_program_lists_the_systems_of_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    systems = {"small": {"model": "resnet10t", "img_size": 32}, "large": {"model": "resnet10t", "img_size": 64}}
    found = run(tmp_path, systems)
    assert "| small " in capsys.readouterr().out
    (small,), (large,) = (found[name]["activations_per_image"].values() for name in systems)
    # Maps four times as large, but for what follows the mean over them.
    assert 3.9 < large / small <= 4
    assert found["small"]["weights_and_optimizer"] == 16 * found["small"]["params"]


def test_other_image_sizes(tmp_path: Path) -> None:
    own = run(tmp_path, {"system": {"model": "resnet10t", "img_size": 32}})["system"]["activations_per_image"]
    found = run(tmp_path, {"system": {"model": "resnet10t"}}, "--img-size", "32", "48")["system"]
    assert list(found["activations_per_image"]) == ["32x32", "48x48"]
    assert found["activations_per_image"]["32x32"] == own["32x32"]
