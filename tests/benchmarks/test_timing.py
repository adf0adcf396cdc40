"""Timing and output that the programs share: turns, quantiles, updates, files."""

import json
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks import common, timing
from benchmarks.common import environment, parse_shape, write_results
from benchmarks.timing import build_step, measure_together, relative_error, require_small, training_step


def test_candidates_take_turns_and_start_in_turn(monkeypatch) -> None:
    monkeypatch.setattr(timing, "MIN_SAMPLE_SECONDS", 0.0)
    seen: list[str] = []
    names = ["a", "b", "c"]
    timings = measure_together({name: lambda n=name: seen.append(n) for name in names}, warmup=1, repeats=3)
    assert "".join(seen)[-9:] == "abcbcacab"
    assert list(timings) == names


def test_timing_is_ordered_and_counts_short_functions_in_bulk() -> None:
    (found,) = measure_together({"": lambda: None}, warmup=1, repeats=5).values()
    assert 0 <= found.q20 <= found.median <= found.q80
    assert found.repeats == 5 and found.calls_per_sample > 1
    assert found.peak_memory is None and found.cells()[2] == ""


def test_the_backward_step_reaches_the_input_and_the_weights() -> None:
    layer, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    grads = build_step(layer, x, "forward + backward", list(layer.parameters()))()
    assert [grad.shape for grad in grads] == [x.shape, layer.weight.shape, layer.bias.shape]
    assert not build_step(layer, x, "forward")().requires_grad


def test_a_training_step_updates_and_frees_the_gradients() -> None:
    layer, x = torch.nn.Linear(2, 1, bias=False), torch.ones(1, 2, requires_grad=True)
    before = layer.weight.detach().clone()
    training_step(layer, lambda: layer(x), nullcontext, torch.optim.SGD(layer.parameters(), lr=0.5), [x])
    torch.testing.assert_close(layer.weight, before - 0.5)
    assert layer.weight.grad is None and x.grad is None


def test_errors_are_relative_and_nan_is_refused() -> None:
    assert relative_error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
    assert relative_error(torch.tensor([1 + 1j]), torch.tensor([1 + 0j])) == pytest.approx(1)
    assert require_small("a", 0.1, 0.2) == 0.1
    for error in (0.2, float("nan")):
        with pytest.raises(SystemExit, match="nothing was timed"):
            require_small("a", error, 0.2)


def test_environment_and_results_file(tmp_path: Path) -> None:
    env = environment()
    assert {"command", "commit", "date", "torch", "timm", "python", "cpu", "threads", "card"} <= env.keys()
    path = tmp_path / "new" / "run.json"
    write_results(path, {"environment": env})
    assert json.loads(path.read_text())["environment"] == env


def test_commit_is_clean_whatever_was_measured_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("benchmarks/common.py", "results/cpu/old.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    assert Path(common.__file__) == common.ROOT / "benchmarks/common.py"
    monkeypatch.setattr(common, "ROOT", tmp_path)
    assert environment()["commit"] is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    clean = environment()["commit"]
    assert len(clean) == 40
    (tmp_path / "results/cpu/old.json").write_text("[]")
    assert environment()["commit"] == clean
    (tmp_path / "benchmarks/common.py").write_text("[]")
    assert environment()["commit"] == f"{clean}-dirty"


def test_shape_argument() -> None:
    assert parse_shape("4x3x224x224") == (4, 3, 224, 224)
    for text in ("4x3x224", "4x3x0x1", "axbxcxd"):
        with pytest.raises(Exception, match="BxCxHxW"):
            parse_shape(text)
