"""The one command for a GPU: its programs start, results stay, failures and the end of the time are reported."""

import importlib
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu
from wsfvit.cli.train import parse_train_args
from wsfvit.utils.errors import UserError


def run_here(command: list[str], **options) -> subprocess.CompletedProcess:
    """Stands in for subprocess.run: the measuring programs in this process, the tests not at all."""
    module, arguments = command[2], command[3:]
    if module == "pytest":
        options["stdout"].write("7 passed\n")
    else:
        importlib.import_module(module).main(arguments)
    return subprocess.CompletedProcess(command, 0)


def test_every_kind_of_step_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    stand_in = SimpleNamespace(run=run_here, STDOUT=subprocess.STDOUT, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(gpu, "subprocess", stand_in)
    monkeypatch.setattr(torch, "compile", lambda model, options: model)  # minutes of a CPU
    monkeypatch.setattr(gpu, "TINY_MODELS", ["resnet10t"])
    # The rest of the plan differs from these in sizes and models only, which the test below checks.
    names = ["tests_models", "wavelets_reference_small_backward", "models_wsfvit_compiled", "attention_efficient"]
    argv = ["--tiny", "--device", "cpu", "--out", str(tmp_path), "--only", *names]
    gpu.main(argv)
    assert {path.stem for path in tmp_path.glob("*.json")} == set(names)
    assert json.loads((tmp_path / "tests_models.json").read_text())["outcome"] == "7 passed"
    assert json.loads((tmp_path / "models_wsfvit_compiled.json").read_text())["results"]
    monkeypatch.setattr(gpu, "subprocess", None)  # starting one again would be an error
    gpu.main(argv)
    assert capsys.readouterr().out.count("done    models_wsfvit_compiled:") == 1


def test_the_real_plan_is_understood_by_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/opt/{name}")
    steps = list(gpu.plan("cuda", tiny=False))
    tiny = {step.name for step in gpu.plan("cuda", tiny=True)}
    assert {step.name for step in steps} == tiny and len(tiny) == len(steps)
    for step in steps:
        module, *arguments = step.arguments
        if module.startswith("benchmarks."):
            importlib.import_module(module).parse_args([*arguments, "--device", "cuda"])
        elif module == "tools.kill_resume":
            assert parse_train_args(arguments[arguments.index("--") + 1 :]).device == "cuda"
        else:
            paths = [each for each in step.arguments if each.startswith("tests/")]
            assert paths and all(Path(__file__).parents[2].joinpath(path).exists() for path in paths)
    assert {step.variables.get("WSFVIT_WAVELET_BACKEND") for step in steps} == {None, "reference", "triton"}
    for name, text in gpu.EXPECTED.items():
        assert text in {step.expected for step in steps if step.name.startswith(name)}, name
    assert {step.under[2] for step in steps if step.under} == {"memcheck", "racecheck"}


def test_failures_and_lack_of_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--tiny", "--device", "cpu", "--out", str(tmp_path), "--only", "wavelets_reference_float32"]
    gpu.main([*argv, "--minutes", "0"])
    assert "continues with: wavelets_reference_float32 wavelets_reference_float32_backward" in capsys.readouterr().out
    wrong = gpu.Step("wrong", ["no_such_program"])
    assert "exit status 1" in gpu.run_step(wrong, "cpu", tmp_path / "wrong.json", 100)
    assert "no_such_program" in (tmp_path / "wrong.log").read_text()
    assert "not done within 0 s" in gpu.run_step(wrong, "cpu", tmp_path / "wrong.json", 0.01)
    assert not list(tmp_path.glob("*.json"))
    with pytest.raises(UserError, match="no step begins with nothing"):
        gpu.main(["--only", "nothing"])
