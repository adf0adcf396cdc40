"""A file in the release's layout goes through the commands, at its own size and at another."""

from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from parity import fill_by_key

from wsfvit.engine.args import parse_train_args, parse_validate_args
from wsfvit.engine.train import run_training
from wsfvit.engine.validate import run_validation
from wsfvit.errors import UserError


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys and shapes of the release (the parity tests hold the model to them), its wrapper, a Namespace inside."""
    state = fill_by_key(timm.create_model("wsfvit_p0_224")).float().state_dict()
    path = tmp_path_factory.mktemp("release") / "wsfvit_p0_224.pth.tar"
    args = Namespace(model="wsfvit_p0_224", lr=3e-3)
    torch.save({"epoch": 299, "arch": "wsfvit_p0_224", "state_dict": state, "args": args, "version": 2}, path)
    return path


def validate_args(path: Path, *more: str) -> Namespace:
    argv = ["--dataset", "digits", "--split", "validation", "--checkpoint", str(path), "--device", "cpu", "-j", "0"]
    return parse_validate_args([*argv, "--model", "wsfvit_p0_224", *more])


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images do: these tests are about loading."""
    monkeypatch.setattr("wsfvit.data.digits.Digits.__len__", lambda self: 4)


@pytest.mark.parametrize("size", [None, 224, 64])
def test_validate_loads_it(published: Path, size: int | None, caplog: pytest.LogCaptureFixture) -> None:
    [result] = run_validation(validate_args(published, *([] if size is None else ["--img-size", str(size)])))
    side = size or 224
    assert result["input_size"] == [3, side, side]
    resized = [r.getMessage() for r in caplog.records if "Resized" in r.getMessage()]
    assert len(resized) == (1 if side == 64 else 0)


def test_training_starts_from_it_at_another_size(
    published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    argv = ["--dataset", "digits", "--model", "wsfvit_p0_224", "--initial-checkpoint", str(published), "-b", "2"]
    argv += ["--img-size", "64", "--epochs", "1", "--warmup-epochs", "0", "--lr", "1e-9", "--device", "cpu", "-j", "0"]
    result = run_training(parse_train_args([*argv, "--output", str(tmp_path), "--experiment", "run"]))
    trained = torch.load(result["run_folder"] / "last.pth.tar", weights_only=True)["state_dict"]
    source = torch.load(published, weights_only=False)["state_dict"]
    key = "stages.2.blocks.1.attn_inter.attn.qkv.weight"
    torch.testing.assert_close(trained[key], source[key], atol=1e-5, rtol=1e-5)
    table = "stages.0.blocks.0.attn_local.attn.rel_pos.relative_position_bias_table"
    assert trained[table].shape == (2, 3, 3) and "Resized" in caplog.text


@pytest.mark.parametrize(
    "more, message",
    [
        (["--model", "wsfvit_t_224"], "does not fit wsfvit_t_224"),
        (["--num-classes", "10"], "it has 1000 classes, the model wsfvit_p0_224 has 10"),
    ],
)
def test_a_wrong_model_is_one_line(published: Path, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run_validation(validate_args(published, *more))
    assert "\n" not in str(caught.value)
