"""The model benchmark runs, relates each candidate to its baseline, and refuses to time models that differ."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import models
from benchmarks.baseline import create_baseline
from wsfvit.utils.errors import UserError

NAME = "wsfvit_p0_224"


def test_program_writes_both_modes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.json"
    argv = ["--models", "resnet10t", f"baseline:{NAME}", "--img-size", "64", "--batch-size", "2"]
    models.main([*argv, "--train", "--warmup", "1", "--repeats", "2", "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    assert [(r["mode"], r["model"]) for r in results] == [
        (mode, name) for mode in ("inference", "training") for name in ("resnet10t", f"baseline:{NAME}")
    ]
    assert all(r["median"] > 0 and r["baseline"] == f"baseline:{NAME}" for r in results)
    assert results[1]["speed"] == 1
    assert "speed vs baseline" in capsys.readouterr().out


def test_an_update_is_timed_whole_and_everything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, steps = [], []

    def compile_eagerly(model: torch.nn.Module, options: dict[str, Any]) -> torch.nn.Module:
        asked.append(options)
        return plain(model, backend="eager")

    plain, plain_step = torch.compile, torch.optim.AdamW.step
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (steps.append(self), plain_step(self)))
    built = {name: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10)) for name in ("a", "fused:a")}
    before = [p.clone() for p in built["a"].parameters()]
    argv = ["--models", "a", "--img-size", "2", "--repeats", "2", "--warmup", "1", "--train", "--compile"]
    options = ["max-autotune", "--compile-options", "realize_reads_threshold=8"]
    timings = models.time_models(built, models.parse_args([*argv, *options]), torch.device("cpu"))
    assert list(timings["inference"]) == ["a", "fused:a"] and list(timings["training"]) == ["a"]
    expected = torch._inductor.list_mode_options("max-autotune") | {"realize_reads_threshold": 8}
    assert asked == [expected] * 4 and len(expected) > 1 and len(steps) > 2
    assert all(torch.equal(p, old) for p, old in zip(built["a"].parameters(), before, strict=True))
    assert models.parse_args([*argv, "reduce-overhead"]).compile == "reduce-overhead"


def test_peers_are_built_for_the_size_asked_for() -> None:
    peers = models.build_models(["peers"], 48)
    assert set(models.PEERS) == set(peers) and {"mwa", "sa", "wavemix", "wacnn"} <= {n.split("_")[0] for n in peers}
    assert peers["mwa_vit_xs_patch4_32"].img_size == (48, 48)
    small = {name: peers[name] for name in ("wacnn_resnet18", "wacnn_resnet18_baseline")}
    args = models.parse_args(
        ["--models", "peers", "--img-size", "48", "--batch-size", "1", "--repeats", "1", "--train"]
    )
    timings = models.time_models(small, args, torch.device("cpu"))
    assert all(timing.median > 0 for mode in ("inference", "training") for timing in timings[mode].values())


def test_check_accepts_equal_and_refuses_different_models() -> None:
    baseline = create_baseline(NAME, img_size=64)
    pair = {NAME: copy.deepcopy(baseline), f"baseline:{NAME}": baseline}
    (check,) = models.check_models(pair, 64, torch.device("cpu"), seed=0)
    assert check["relative_error"] == {"output": 0.0, "gradient": 0.0}
    with torch.no_grad():
        next(pair[NAME].parameters()).add_(0.1)
    with pytest.raises(SystemExit, match="nothing was timed"):
        models.check_models(pair, 64, torch.device("cpu"), seed=0)


def test_each_model_is_related_to_its_own_baseline() -> None:
    names = ["baseline:wsfvit_t_224", "wsfvit_p0_224", "baseline:wsfvit_p0_224", "resnet10t"]
    assert models.baseline_of("wsfvit_p0_224", names) == "baseline:wsfvit_p0_224"
    assert models.baseline_of("resnet10t", names) == "baseline:wsfvit_t_224"
    assert models.baseline_of("baseline:wsfvit_p0_224", names) == "baseline:wsfvit_p0_224"
    assert models.baseline_of("resnet10t", ["resnet10t"]) is None


def test_amp_needs_a_half_type() -> None:
    with pytest.raises(SystemExit):
        models.parse_args(["--models", "resnet10t", "--amp"])


@pytest.mark.parametrize("name", ["baseline:resnet10t", f"baseline:{NAME}", NAME])
def test_a_baseline_or_size_that_does_not_exist(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*(no baseline|60)"):
        models.build_models([name], 60)
