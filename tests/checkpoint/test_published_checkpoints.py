"""Files in the layout of a release, WSF-ViT's or a peer's, go through the commands, at another size too."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from parity import fill_by_key
from peers import RELEASES, save_release

from wsfvit.cli.train import parse_train_args
from wsfvit.cli.validate import parse_validate_args
from wsfvit.data.digits import Digits
from wsfvit.eval.validate import run_validation
from wsfvit.train.classify import run_training
from wsfvit.utils.errors import UserError
from wsfvit_cli import dispatch


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
    trained = torch.load(result.run_dir / "last.pth.tar", weights_only=True)["state_dict"]
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


@pytest.mark.parametrize("release", RELEASES)
def test_every_command_loads_a_peers_weights(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the names of its authors' code, with a new classifier too."""
    name, kwargs, _, _ = RELEASES[release]
    path = str(save_release(release, tmp_path))
    model = ["--model", name, "--device", "cpu", "--model-kwargs", *(f"{key}={value}" for key, value in kwargs.items())]
    data = [*model, "--dataset", "digits", "-j", "0"]
    [result] = run_validation(parse_validate_args([*data, "--split", "validation", "--checkpoint", path]))
    assert result["model"] == name and result["weights"] == "raw"

    picture = tmp_path / "digit.png"
    Digits("validation", in_chans=3)[0][0].save(picture)
    capsys.readouterr()
    dispatch(["predict", str(picture), "--json", "--checkpoint", path, *model])
    [line] = capsys.readouterr().out.splitlines()
    assert len(json.loads(line)["predictions"]) == 5

    argv = [*data, "--initial-checkpoint", path, "-b", "2", "--epochs", "1", "--warmup-epochs", "0", "--lr", "1e-9"]
    argv += ["--num-classes", "12", "--output", str(tmp_path), "--experiment", "run"]
    trained = run_training(parse_train_args(argv)).run_dir / "last.pth.tar"
    assert "its classifier of 10 classes is replaced by a new one of 12" in capsys.readouterr().out
    start = timm.create_model(name, **kwargs, num_classes=10, checkpoint_path=path)
    first = f"{start.default_cfg['first_conv']}.weight"
    state = torch.load(trained, weights_only=True)["state_dict"]
    torch.testing.assert_close(state[first], start.state_dict()[first], atol=1e-5, rtol=1e-5)
