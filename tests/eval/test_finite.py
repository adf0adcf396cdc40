"""Classification outputs are finite or refused: validation, training, prediction, export; JSON without NaN."""

import csv
import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from tiny_data import CLASSES, TINY_RUN

import wsfvit
from wsfvit.cli.tools import export_parser
from wsfvit.cli.train import parse_train_args
from wsfvit.cli.validate import parse_validate_args
from wsfvit.eval.evaluate import evaluate
from wsfvit.eval.validate import run_validation
from wsfvit.inference.export import run_export
from wsfvit.train.classify import run_training
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import to_json
from wsfvit.utils.finite import count_nonfinite, refuse_nonfinite
from wsfvit_cli import dispatch


def save(path, value=float("nan")):
    """A test_resnet for the tiny images, with ``value`` as its classifier's bias."""
    model = timm.create_model("test_resnet", num_classes=CLASSES)
    torch.nn.init.constant_(model.fc.bias, value)
    kwargs = {"num_classes": CLASSES}
    config = {"input_size": [3, 32, 32]}
    state = model.state_dict()
    torch.save({"arch": "test_resnet", "model_kwargs": kwargs, "data_config": config, "state_dict": state}, path)
    return str(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_validation_refuses_them(tmp_path, tiny_images, value):
    checkpoint, result = save(tmp_path / "a.pth", value), tmp_path / "r.json"
    argv = ["x", "--device", "cpu", "-j", "0", "--checkpoint", checkpoint, "--results-file", str(result)]
    with pytest.raises(UserError, match="outputs for 24 of 24 images are NaN or infinite: .* bfloat16"):
        run_validation(parse_validate_args(argv))
    assert not result.exists()


def test_several_models_go_on(tmp_path, tiny_images):
    save(tmp_path / "a.pth")
    save(tmp_path / "b.pth", 0.0)
    argv = ["x", "--device", "cpu", "-j", "0", "--checkpoint", str(tmp_path), "--results-file", str(tmp_path / "r.csv")]
    good, bad = run_validation(parse_validate_args(argv))
    assert "top1" in good and "NaN or infinite" in bad["error"]
    assert [bool(row["error"]) for row in csv.DictReader((tmp_path / "r.csv").open())] == [False, True]


def test_one_image_is_counted():
    class Model(torch.nn.Linear):
        def forward(self, images):
            return images.mean((2, 3)) / (images.amax((1, 2, 3)) != 2)[:, None]

    images = torch.ones(4, 3, 8, 8)
    images[1, 0, 0, 0] = 2
    with pytest.raises(UserError, match="for 1 of 4 images"):
        evaluate(Model(1, 1), [(images, torch.zeros(4, dtype=torch.int64))], torch.device("cpu"))


@pytest.mark.parametrize("half", [["--model-dtype", "float16"], ["--amp", "--amp-dtype", "float16"]], ids=" ".join)
def test_overflow_of_half_precision(tmp_path, tiny_images, half):
    checkpoint = save(tmp_path / "a.pth", 1e5)
    argv = ["x", "--device", "cpu", "-j", "0", "--checkpoint", checkpoint]
    assert run_validation(parse_validate_args(argv))[0]["images"] == 24
    with pytest.raises(UserError, match="NaN or infinite"):
        run_validation(parse_validate_args([*argv, *half]))


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_training_refuses_them(tmp_path, tiny_images, monkeypatch, more):
    """The weights of the validated model became NaN."""
    build = timm.create_model

    def broken(*args, **kwargs):
        model = build(*args, **kwargs)
        model.register_forward_hook(lambda module, _, out: out if module.training else out * float("nan"))
        return model

    monkeypatch.setattr(timm, "create_model", broken)
    with pytest.raises(UserError, match="NaN or infinite"):
        run_training(parse_train_args(["x", *TINY_RUN, *more, "--output", str(tmp_path)]))


def test_prediction_and_export_refuse_them(tmp_path):
    checkpoint = save(tmp_path / "a.pth")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="for 1 of 1 images"):
        dispatch(["predict", str(tmp_path / "a.png"), "--checkpoint", checkpoint, "--device", "cpu", "--json"])
    args = export_parser().parse_args(
        ["--checkpoint", checkpoint, "--format", "torch", "--output", str(tmp_path / "a.pt2"), "--device", "cpu"]
    )
    with pytest.raises(UserError, match="for 1 of 1 random images"):
        run_export(args)
    assert not (tmp_path / "a.pt2").exists()


def test_helpers():
    outputs = torch.tensor([[1.0, 2.0], [1.0, float("inf")], [float("nan"), 0.0]])
    assert int(count_nonfinite(outputs)) == 2 and int(count_nonfinite(outputs[:, 0])) == 1
    refuse_nonfinite(0, 3)
    with pytest.raises(UserError, match="for 2 of 3 clips"):
        refuse_nonfinite(2, 3, "clips")


def test_json_has_no_nan():
    assert json.loads(to_json({"a": [1.5]})) == {"a": [1.5]}
    with pytest.raises(UserError, match="a result is NaN or infinite"):
        to_json({"a": [float("nan")]})
    package = Path(wsfvit.__file__).parent
    writers = [
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if "json.dump" in path.read_text()
    ]
    assert writers == ["utils/files.py"]
