"""The predict command: strips and animations of known and unknown futures, of Moving MNIST and of own sequences."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from wsfvit.utils.errors import UserError, run_main
from wsfvit.video.args import predict_parser
from wsfvit.video.checkpoint import load_model
from wsfvit.video.predict import run_prediction
from wsfvit_cli import dispatch

main = partial(dispatch, group="video")


@pytest.fixture
def predict(tiny_run, tmp_path):
    checkpoint = tiny_run.run_dir / "model_best.pth.tar"

    def run(*argv):
        fixed = ["--checkpoint", checkpoint, "--device", "cpu", "--out", tmp_path / "out", "--save-npy"]
        files = run_prediction(predict_parser().parse_args([str(part) for part in (*fixed, *argv)]))
        return load_model(checkpoint)[0], np.load(files[-1]), files

    return run


@pytest.fixture
def own(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 30, 32), dtype=np.uint8)
    np.save(tmp_path / "own.npy", frames)
    return tmp_path / "own.npy", torch.from_numpy(frames).float().div(255)[:, :, None]


def test_moving_mnist_further_than_trained(predict, capsys):
    _, predicted, files = predict("--count", 2, "--length", 5)
    assert predicted.shape == (2, 5, 1, 30, 32) and predicted.min() >= 0 and predicted.max() <= 1
    names = ["prediction_0.png", "prediction_0.gif", "prediction_1.png", "prediction_1.gif", "predictions.npy"]
    assert [file.name for file in files] == names and all(file.is_file() for file in files)
    assert Image.open(files[1]).n_frames == 3 + 5
    assert "generated-test of built-in digits: 2 of 10000 sequences" in capsys.readouterr().out


def test_own_sequences_with_a_truth_and_from_their_end(predict, own, capsys):
    path, frames = own
    heights = []
    for argv, seen in (([], frames[:, :3]), (["--from-end"], frames[:, -3:]), (["--length", "6"], frames[:, -3:])):
        model, predicted, files = predict("--data", path, *argv)
        with torch.no_grad():
            expected = model.predict(seen, predicted.shape[1]).clamp(0, 1)
        np.testing.assert_allclose(predicted, expected, atol=1e-5)
        assert ("has 8 frames, a truth would take 9" in capsys.readouterr().out) == ("6" in argv)
        heights.append(Image.open(files[0]).height)
    assert heights[0] == 2 * heights[1] == 2 * heights[2], "truth and error are shown where there is a truth"


def test_mistakes_are_one_line(tiny_run, own, tmp_path, capsys):
    path, _ = own
    np.save(tmp_path / "colour.npy", np.zeros((1, 4, 8, 8, 3), np.uint8))
    (tmp_path / "cut.npy").write_bytes(path.read_bytes()[:-9])
    checkpoint = str(tiny_run.run_dir / "model_best.pth.tar")
    wrong = {
        "has 3 channels, not 1": ["--data", str(tmp_path / "colour.npy")],
        "truncated": ["--data", str(tmp_path / "cut.npy")],
        "has no end": ["--from-end"],
        "a sequence needs 3": ["--data", str(path), "--layout", "TNHW"],
        "cannot be made": ["--out", str(path / "below")],
    }
    for expected, argv in wrong.items():
        fixed = ["predict", "--checkpoint", checkpoint, "--device", "cpu", "--out", str(tmp_path)]
        with pytest.raises(SystemExit) as ended:
            run_main(lambda argv=argv, fixed=fixed: main([*fixed, *argv]))
        lines = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and len(lines) == 1 and expected in lines[0], lines
    with pytest.raises(UserError, match="does not exist"):
        main(["predict", "--checkpoint", str(tmp_path / "none.pth"), "--device", "cpu"])


def test_a_missing_package_is_noticed_before_anything_is_written(predict, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        predict("--movie", ".mp4")
    assert not (tmp_path / "out").exists()
