"""wsfvit predict."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import wsfvit.inference.predictor as predict
from wsfvit.cli.validate import parse_validate_args
from wsfvit.data.digits import Digits
from wsfvit.data.image_files import read_image
from wsfvit.factory.data import build_eval_loader
from wsfvit.factory.model import fuse_model
from wsfvit.inference.predictor import load_classifier, resolve_class_names
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError, run_main
from wsfvit_cli import dispatch

SHOWN = (5, 250, 999)


@pytest.fixture
def last(trained) -> str:
    return str(trained.run_dir / "last.pth.tar")


@pytest.fixture
def folder(tmp_path):
    """Three digits as files, one of them a folder deeper."""
    digits = Digits("validation", in_chans=1)
    (tmp_path / "digits" / "more").mkdir(parents=True)
    for name, index in zip(("a.png", "b.png", "more/c.PNG"), SHOWN, strict=True):
        digits[index][0].save(tmp_path / "digits" / name)
    (tmp_path / "digits" / "notes.txt").write_text("not a picture")
    return tmp_path / "digits"


def run(monkeypatch, *argv: str) -> None:
    dispatch(["predict", "--device", "cpu", *map(str, argv)])


def test_probabilities_are_those_of_the_evaluation(last, folder, monkeypatch, capsys):
    run(monkeypatch, folder, "--checkpoint", last, "--json", "--topk", "10", "-b", "2")
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["image"] for result in results] == [str(folder / name) for name in ("a.png", "b.png", "more/c.PNG")]
    args = parse_validate_args(["--dataset", "digits", "--device", "cpu", "-j", "0", "--checkpoint", last])
    args.pretrained = False
    classifier = load_classifier(args, None, last)
    digits = Digits("validation", in_chans=1)
    digits.images, digits.labels = digits.images[list(SHOWN)], digits.labels[list(SHOWN)]
    ((images, _),) = build_eval_loader(args, digits, classifier.data_config, 3, World(torch.device("cpu")))
    expected = classifier.model(images).softmax(1)
    for result, row in zip(results, expected.tolist(), strict=True):
        found = {entry["class"]: entry["probability"] for entry in result["predictions"]}
        assert [entry["probability"] for entry in result["predictions"]] == sorted(found.values(), reverse=True)
        np.testing.assert_allclose([found[i] for i in range(10)], row, atol=1e-5)


def test_fused_copy_has_the_same_probabilities(wsf_checkpoint, folder, monkeypatch, capsys):
    fused = []
    monkeypatch.setattr(predict, "fuse_model", lambda *given: (fused.append(fuse_model(*given)), fused[-1])[1])
    tables = []
    for more in (["--no-fuse"], []):
        run(monkeypatch, folder, "--checkpoint", wsf_checkpoint, "--json", *more)
        results = [json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines()]
        tables.append([sorted((entry["class"], entry["probability"]) for entry in row) for row in results])
    assert len(fused) == 1
    np.testing.assert_allclose(tables[1], tables[0], atol=1e-5)


def test_text_names_classes_and_draws(last, folder, tmp_path, monkeypatch, capsys):
    names = "zero one two three four five six seven eight nine".split()
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    out = tmp_path / "new" / "p.png"
    more = ["--checkpoint", last, "--topk", "3", "--class-map", tmp_path / "names.txt", "--out", out]
    run(monkeypatch, folder / "a.png", folder, *more)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 * (1 + 3)
    assert lines[0] == str(folder / "a.png") and lines[0:4] == lines[4:8]
    assert lines[1].split(" %  ")[1] in names
    assert np.asarray(Image.open(out)).std() > 10


def test_the_checkpoint_names_the_classes(last, folder, monkeypatch, capsys):
    run(monkeypatch, folder / "a.png", "--checkpoint", last, "--json", "--topk", "10")
    (result,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert all(entry["name"] == str(entry["class"]) for entry in result["predictions"])


def test_folders_of_classes_give_the_labels(last, folder, tmp_path, monkeypatch, capsys):
    (folder / "more").rename(folder / "7")
    drawn = []
    monkeypatch.setattr(predict, "draw_predictions", lambda results, *more: drawn.extend(results))
    monkeypatch.setattr(predict, "save_figure", lambda figure, out: None)
    run(monkeypatch, folder, "--checkpoint", last, "--out", tmp_path / "p.png")
    labels = [line.partition(" (label: ")[2] for line in capsys.readouterr().out.splitlines() if ".PNG" in line]
    assert labels == ["7)"] and [result.get("label") for result in drawn] == ["7", None, None]


def test_unreadable_images_are_named_after_the_others(last, folder, monkeypatch, capsys):
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: run(monkeypatch, folder, "--checkpoint", last, "--json", "-b", "1"))
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert [json.loads(line)["image"] for line in out.splitlines()] == [
        str(folder / "a.png"),
        str(folder / "more/c.PNG"),
    ]
    assert err.startswith("error: 1 of 3 images could not be read: ") and err.count("\n") == 1
    assert "b.png" in err and "a.png" not in err


def test_weights_of_another_model_are_noted_beside_the_output(folder, tmp_path, monkeypatch, capsys):
    weights = timm.create_model("test_resnet", num_classes=2).state_dict()
    torch.save({"arch": "test_sibling", "state_dict": weights}, tmp_path / "a.pth")
    flags = ["--num-classes", "2", "--img-size", "32", "--json"]
    run(monkeypatch, folder / "a.png", "--model", "test_resnet", "--checkpoint", tmp_path / "a.pth", *flags)
    out, err = capsys.readouterr()
    assert json.loads(out)["predictions"] and err.startswith("note: ") and "is of test_sibling" in err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["{folder}"], "pass --checkpoint FILE, or --pretrained"),
        (["{folder}", "--pretrained"], "needs --model"),
        (["{folder}/none.png", "--checkpoint", "{last}"], "none.png' does not exist"),
        (["{folder}", "--checkpoint", "{last}", "--pretrained"], "leave one out"),
        (["{folder}", "--checkpoint", "{last}", "--class-map", "{folder}/notes.txt"], "has 1 names, the model 10"),
        (["{folder}", "--checkpoint", "{last}", "--class-map", "{folder}/a.png"], "not a readable text file"),
        (["{folder}", "--checkpoint", "{last}", "--num-classes", "12"], "it has 10 classes"),
        (["{folder}", "--checkpoint", "{last}", "--fuse"], "--fuse: test_resnet has nothing to fuse"),
    ],
)
def test_mistakes_are_one_line(argv, expected, last, folder, monkeypatch, error_of):
    argv = [text.format(folder=folder, last=last) for text in argv]
    assert expected in error_of(lambda: dispatch(["predict", *argv, "--out", str(folder / "new" / "a.png")]))
    assert not (folder / "new").exists()


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned a quarter to the right
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (20, 30)


def test_class_names_without_a_file():
    class Model:
        num_classes = 1000

    assert resolve_class_names("", None, Model)[:2] == ["tench", "goldfish"]
    assert resolve_class_names("", ["x"] * 1000, Model)[0] == "x"
    assert resolve_class_names("", ["n01440764", "n01443537"] * 500, Model)[:2] == ["tench", "goldfish"]
    assert resolve_class_names("", ["n99999999"] * 1000, Model)[0] == "n99999999"
    assert not any(name.startswith("n0") for name in resolve_class_names("", None, Model))
    Model.num_classes = 3
    assert resolve_class_names("", ["a", "b"], Model) == ["class 0", "class 1", "class 2"]


def test_images_are_read_in_the_mode_of_the_training(tmp_path, monkeypatch, capsys, error_of):
    torch.manual_seed(0)
    weights = timm.create_model("test_resnet", num_classes=2, in_chans=4).state_dict()
    content = {"arch": "test_resnet", "model_kwargs": {"num_classes": 2, "in_chans": 4}, "state_dict": weights}
    torch.save(content | {"args": {"input_img_mode": "RGBA"}}, tmp_path / "a.pth")
    (tmp_path / "images").mkdir()
    for name, alpha in (("a.png", 0), ("b.png", 255)):
        Image.new("RGBA", (40, 40), (200, 10, 60, alpha)).save(tmp_path / "images" / name)
    more = ["--checkpoint", tmp_path / "a.pth", "--img-size", "32"]
    run(monkeypatch, tmp_path / "images", *more, "--json", "--out", tmp_path / "out.png")
    one, two = (json.loads(line)["predictions"][0]["probability"] for line in capsys.readouterr().out.splitlines())
    assert one != two
    argv = ["cam", str(tmp_path / "images"), "--device", "cpu", "--checkpoint", str(tmp_path / "a.pth"), "--out"]
    with pytest.raises(UserError, match="takes RGBA images, this one is RGB"):
        dispatch([*argv, str(tmp_path / "cam.png")])
    torch.save(content, tmp_path / "a.pth")
    message = error_of(lambda: run(monkeypatch, tmp_path / "images", *more))
    assert "the model takes 4 channels" in message


def test_titles_and_names_are_drawn_whole(tmp_path):
    name, file = "a class of which the name is longer than a panel is wide", "photograph-" * 8 + "1.png"
    results = [{"image": file, "label": "cat", "predictions": [{"class": 0, "name": name, "probability": 1.0}]}]
    figure = predict.draw_predictions(results, [np.zeros((32, 32, 3))], "model")
    left, right = figure.axes
    assert left.get_title().replace("\n", "") == f"{file}label: cat" and "\n" in left.get_title()
    assert name in right.texts[0].get_text().replace("\n", " ")
    figure.canvas.draw()
    width = figure.bbox.width
    for text in (left.title, right.texts[0]):
        assert text.get_window_extent().x0 >= 0 and text.get_window_extent().x1 <= width
