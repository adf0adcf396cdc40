"""The train command: what it builds from its flags, overfitting, and exact resume of a stopped run."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detection.tiny_detector import RECIPE, SMALL, parse, write_checkpoint
from PIL import Image

from wsfvit.checkpoint.io import load_state_dict_file, save_atomic
from wsfvit.detection import train
from wsfvit.detection.args import predict_parser, validate_parser
from wsfvit.detection.data.transforms import TrainSizes
from wsfvit.detection.predict import run_predict
from wsfvit.detection.shapes import write_shapes
from wsfvit.detection.validate import run_validation
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError

ROOT = Path(__file__).parents[2]
# Half a minute on one core.
OVERFIT = ["--epochs", 50, "--eval-interval", 50, "--batch-size", 8, "--lr", 2e-3, "--decay-milestones", 41]
OVERFIT += ["--hflip", 0, "--crop-prob", 0, "--proposals", 60, "--max-detections", 10, "--warmup-updates", 20]
OVERFIT += ["--long-side", 80, "--short-sides", 80, "--detector-kwargs", "fpn_width=32", "fc_width=128"]
OVERFIT += ["roi_samples=32", "rpn_samples=64"]
ALONE = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_shapes(folder / "train", 6, (48, 64), seed=1)
    write_shapes(folder / "val", 2, (48, 64), seed=2)
    return folder


def test_eight_images_are_overfitted_and_all_commands_agree_on_them(tmp_path):
    annotations, images = write_shapes(tmp_path / "shapes", 8, (80, 80), seed=3)
    files = ["--train-annotations", annotations, "--train-images", images]
    files += ["--val-annotations", annotations, "--val-images", images]
    args = parse("unused", *OVERFIT, *files, "--output", tmp_path, "--experiment", "run")
    best = train.run_training(args).best
    assert best["bbox_AP50"] > 0.9 and best["segm_AP50"] > 0.9

    checkpoint = str(tmp_path / "run" / "model_best.pth.tar")
    argv = ["--annotations", str(annotations), "--images", str(images), "--checkpoint", checkpoint, "--device", "cpu"]
    measured = run_validation(validate_parser().parse_args([*argv, "-j", "0"]))
    for name in ("bbox_AP", "bbox_AP50", "segm_AP", "segm_AP50"):
        assert measured[name] == best[name]

    image = str(sorted(images.iterdir())[0])
    argv = [image, "--checkpoint", checkpoint, "--out", str(tmp_path / "found"), "--device", "cpu", "--score", "0.1"]
    found = run_predict(predict_parser().parse_args(argv))
    truth = json.loads(annotations.read_text())["annotations"]
    expected = sorted(entry["category_id"] for entry in truth if entry["image_id"] == 1)
    assert sorted(entry["category_id"] for entry in found["annotations"][: len(expected)]) == expected
    assert json.loads((tmp_path / "found" / "detections.json").read_text()) == found
    with Image.open(tmp_path / "found" / "000001.png") as drawing, Image.open(image) as original:
        assert (
            drawing.size == (7 * original.width, 7 * original.height)
            and drawing.tobytes() != original.convert("RGB").resize(drawing.size).tobytes()
        )


def test_a_stopped_run_resumes_exactly_and_every_second_epoch_is_validated(data, tmp_path, monkeypatch):
    flags = ["--epochs", 3, "--batch-size", 2, "--eval-interval", 2, "--model-ema", "--drop-path", 0.1, "--lr", 1e-3]

    def run(name, *more):
        return train.run_training(parse(data, *flags, "--output", tmp_path, "--experiment", name, *more))

    whole = run("whole")
    assert [("bbox_AP" in row) for row in whole.rows] == [False, True, True]
    table = list(csv.DictReader((whole.run_dir / "summary.csv").open()))
    columns = ["epoch", "train_loss", "bbox_AP", "bbox_AP50", "bbox_AP75"]
    assert list(table[0])[:5] == columns and list(table[0])[-1] == "images_per_s"
    assert table[0]["bbox_AP"] == "" and float(table[2]["segm_AP"]) == pytest.approx(whole.rows[2]["segm_AP"])
    assert (whole.run_dir / "detections.png").exists()

    losses, learn = [], train.DetectionTask.loss

    def stop_at_the_fifth(task, forward, batch):
        losses.append(None)
        if len(losses) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(task, forward, batch)

    monkeypatch.setattr(train.DetectionTask, "loss", stop_at_the_fifth)
    assert not run("cut").finished
    resumed = run("cut", "--resume", "auto")
    kept = [load_state_dict_file(r.run_dir / "last.pth.tar", task="detection")[0] for r in (whole, resumed)]
    assert kept[0].keys() == kept[1].keys()
    for key, value in kept[0].items():
        assert torch.equal(value, kept[1][key]), key
    assert resumed.rows[-1]["segm_AP"] == whole.rows[-1]["segm_AP"]


def test_boxes_alone_are_learnt_measured_and_remembered(tmp_path, capsys):
    annotations, images = write_shapes(tmp_path / "shapes", 2, (48, 64), seed=1)
    content = json.loads(annotations.read_text())
    for entry in content["annotations"]:
        entry["segmentation"] = []
    annotations.write_text(json.dumps(content))
    files = ["--train-annotations", annotations, "--train-images", images]
    files += ["--val-annotations", annotations, "--val-images", images, "--output", tmp_path, "--experiment", "run"]
    with pytest.raises(UserError, match="--boxes-only trains without masks"):
        train.run_training(parse("unused", *files))
    with pytest.raises(UserError, match="--boxes-only measures no masks: leave out --eval-metric segm_AP"):
        train.run_training(parse("unused", *files, "--boxes-only", "--eval-metric", "segm_AP"))
    (row,) = train.run_training(parse("unused", *files, "--boxes-only", "--epochs", 1)).rows
    assert row["bbox_AP"] >= 0 and "segm_AP" not in row
    checkpoint = str(tmp_path / "run" / "last.pth.tar")
    argv = ["--annotations", str(annotations), "--images", str(images), "--checkpoint", checkpoint, "--device", "cpu"]
    capsys.readouterr()
    measured = run_validation(validate_parser().parse_args([*argv, "-j", "0"]))
    assert measured["bbox_AP"] == row["bbox_AP"] and "segm" not in capsys.readouterr().out


def test_validation_without_objects_selects_no_best_epoch(data, tmp_path, caplog):
    annotations, images = write_shapes(tmp_path / "empty", 2, (48, 64), seed=1)
    content = json.loads(annotations.read_text()) | {"annotations": []}
    annotations.write_text(json.dumps(content))
    files = ["--val-annotations", annotations, "--val-images", images, "--output", tmp_path, "--experiment", "run"]
    result = train.run_training(parse(data, *files, "--epochs", 1))
    assert result.best is None and "bbox_AP" not in result.rows[0] and caplog.text.count("has no object") == 1


def test_two_processes_train_a_cascade_and_agree_on_the_metrics(data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "wsfvit.detection", "train", str(data), *RECIPE, "--detector", "cascade_mask_rcnn", "-b", "1"]
    command += ["--epochs", "1", "--grad-accum-steps", "3", "--amp", "--amp-dtype", "bfloat16"]
    command += ["--output", str(tmp_path), "--experiment", "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 0: train loss") == 1
    checkpoint = str(tmp_path / "two" / "last.pth.tar")
    argv = [str(data), "--checkpoint", checkpoint, "--device", "cpu", "-j", "0", "--amp", "--amp-dtype", "bfloat16"]
    alone = run_validation(validate_parser().parse_args(argv))
    (row,) = csv.DictReader((tmp_path / "two" / "summary.csv").open())
    for name in ("bbox_AP", "bbox_AR100", "segm_AP", "segm_AR100"):
        assert float(row[name]) == pytest.approx(alone[name], abs=1e-5)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "detection").glob("*.yaml")), ids=lambda path: path.stem)
def test_dry_run_of_every_recipe(path, data, capsys):
    """Small, but with what the recipes differ by: detector, rates, precision flag, widths of their own."""
    recipe = ["-c", str(path), "--dry-run", "--device", "cpu", "--no-amp", "-b", "2", "--global-batch-size", "2"]
    recipe += ["--model", "test_resnet", "--model-kwargs", "--pad-multiple", "32"]
    train.run_training(parse(data, *recipe))
    assert "dry run: one update" in capsys.readouterr().out


def test_sizes_follow_the_long_side_and_flags_win(data):
    assert train.build_sizes(parse(data, "--long-side", 1120, "--short-sides", 448, 672, 896)) == TrainSizes()
    sizes = train.build_sizes(parse(data, "--long-side", 560, "--short-sides", 100, "--crop-range", 30, 40))
    assert sizes == TrainSizes((100,), 560, (200, 250, 300), (30, 40))
    with pytest.raises(UserError, match="crop_range"):
        train.build_sizes(parse(data, "--crop-range", 40, 30))


def test_the_configuration_follows_the_flags(data):
    args = parse(data, "--detector", "cascade_mask_rcnn", "--drop-path", 0.2, "--model-kwargs", "a=(1,2)")
    config = train.build_config(args, 7)
    assert len(config.stages) == 3 and config.num_classes == 7 and config.fpn_width == SMALL["fpn_width"]
    assert config.proposals_train == config.proposals_test == config.candidates_test == 20
    assert config.max_detections == 5
    assert config.backbone_options == {"frozen_stats": False, "drop_path_rate": 0.2, "a": (1, 2)}
    with pytest.raises(UserError, match="no setting fpn_wide"):
        train.build_config(parse(data, "--detector-kwargs", "fpn_wide=3"), 7)


def build(data, *argv):
    """Task, detector and loaders of a small training."""
    task = train.DetectionTask(parse(data, *argv), ALONE)
    model = task.build_model(start=True)
    return task, model, task.build_loaders(model)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--model-dtype", "bfloat16"], "float32: pass --amp"),
        (["--pretrained", "--initial-checkpoint", "x"], "pass one"),
        (["--model", "test_resnett"], "did you mean test_resnet"),
        (["--batch-size", "7"], "more than the 6 training images"),
        (["--initial-checkpoint", "none.pth"], "does not exist"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(data, argv, expected):
    with pytest.raises(UserError, match=expected):
        build(data, *argv)


def test_a_backbone_starts_from_a_classifier_and_a_detector_from_another_with_other_categories(data, tmp_path, capsys):
    import timm

    torch.manual_seed(1)
    classifier = timm.create_model("test_resnet")
    save_atomic({"state_dict": classifier.state_dict()}, tmp_path / "classifier.pth")
    _, model, _ = build(data, "--pretrained-path", tmp_path / "classifier.pth")
    assert torch.equal(model.backbone.body.state_dict()["conv1.0.weight"], classifier.conv1[0].weight)

    other = write_checkpoint(tmp_path / "other.pth", categories=("cat", "dog"))
    _, model, _ = build(data, "--initial-checkpoint", tmp_path / "other.pth")
    assert torch.equal(model.rpn.head.cls_logits.weight, other.rpn.head.cls_logits.weight)
    assert model.roi_heads.box_heads[0].cls.out_features == 4  # of three shapes and the background
    assert "new: roi_heads.box_heads.0.cls.weight" in capsys.readouterr().out


def test_training_pictures_show_the_objects(data):
    task, _, (loader, _) = build(data, "--batch-size", 2, "--crop-prob", 0)
    batch = next(iter(loader))
    drawn = task.images(batch)
    assert drawn.shape == batch.images.shape and 0 <= drawn.min() and drawn.max() <= 1
    h, w = batch.sizes[0]
    x1, y1 = batch.targets[0]["boxes"][0, :2].long().tolist()
    inside = drawn[0, :, y1, x1]
    assert batch.targets[0]["boxes"].shape[1] == 4 and h <= drawn.shape[2] and w <= drawn.shape[3]
    plain = batch.images[0] * torch.tensor(task.setting.normalize.std)[:, None, None]
    plain = plain + torch.tensor(task.setting.normalize.mean)[:, None, None]
    assert (inside - plain[:, y1, x1]).abs().max() > 0.05
