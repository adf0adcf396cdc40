"""The validate command on an untrained detector: its files, its backends, its refusals."""

import csv
import json

import pytest
from detection.tiny_detector import write_broken, write_checkpoint

from wsfvit.checkpoint.io import save_atomic
from wsfvit.detection.args import validate_parser
from wsfvit.detection.checkpoint import load_detector, read_description
from wsfvit.detection.shapes import CATEGORIES, write_shapes
from wsfvit.detection.validate import run_validation
from wsfvit.utils.errors import UserError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder / "val", 4, (48, 64))
    write_checkpoint(folder / "detector.pth")
    return folder


def validate(folder, *argv, checkpoint="detector.pth"):
    fixed = [str(folder), "--checkpoint", str(folder / checkpoint), "--device", "cpu", "-j", "0"]
    return run_validation(validate_parser().parse_args([*fixed, *map(str, argv)]))


def test_figures_tables_and_detections_are_written(written, tmp_path, capsys):
    names = ("row.json", "categories.csv", "found.json")
    flags = ("--results-file", "--categories-file", "--detections")
    pairs = [part for flag, name in zip(flags, names, strict=True) for part in (flag, tmp_path / name)]
    row = validate(written, *pairs)
    assert row["images"] == 4 and row["images_per_s"] > 0 and row["detector_images_per_s"] >= row["images_per_s"]
    assert json.loads((tmp_path / "row.json").read_text()) == row
    table = list(csv.DictReader((tmp_path / "categories.csv").open()))
    assert [entry["name"] for entry in table] == list(CATEGORIES)
    found = json.loads((tmp_path / "found.json").read_text())
    assert 0 < len(found) <= 4 * 5 and set(found[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    out = capsys.readouterr().out
    assert "Mask R-CNN on test_resnet" in out and "| circle |" in out


def test_both_backends_and_any_batch_size_give_the_same(written):
    pytest.importorskip("faster_coco_eval")
    rows = [
        validate(written, "--backend", backend, "-b", size) for backend, size in (("pycocotools", 1), ("faster", 4))
    ]
    for key in rows[0]:
        if key.startswith(("bbox", "segm")):
            assert rows[0][key] == pytest.approx(rows[1][key], abs=1e-9), key


def test_settings_of_the_checkpoint_can_be_changed(written, capsys):
    validate(written, "--short-side", 32, "--long-side", 48, "--max-detections", 1)
    assert "sides up to 32 and 48" in capsys.readouterr().out
    config = load_detector(written / "detector.pth", "cpu", max_detections=1)[0].config
    assert config.max_detections == 1 and config.fc_width == 32


@pytest.mark.parametrize("flag", ["--results-file", "--categories-file", "--detections"])
def test_a_missing_folder_is_noticed_before_anything_is_read(flag, tmp_path):
    with pytest.raises(UserError, match=f"{flag} .*none/x.json: the folder '.*none' does not exist"):
        validate(tmp_path, flag, tmp_path / "none" / "x.json")


@pytest.mark.parametrize("part", ["backbone", "rpn.head", "roi_heads.box_heads", "roi_heads.mask_heads"])
def test_a_detector_with_nan_is_refused_instead_of_measured(part, written, tmp_path):
    write_broken(written / "detector.pth", written / "nan.pth", part)
    with pytest.raises(UserError, match="the detector's outputs are not finite"):
        validate(written, "--results-file", tmp_path / "row.json", checkpoint="nan.pth")
    assert not (tmp_path / "row.json").exists()


def test_other_categories_and_other_files_are_refused(written, tmp_path):
    write_checkpoint(written / "pets.pth", categories=("cat", "dog"))
    with pytest.raises(UserError, match="category 1 is 'circle' in this data and 'cat' in checkpoint"):
        validate(written, checkpoint="pets.pth")
    save_atomic({"state_dict": {}, "task": "classification"}, written / "classifier.pth")
    with pytest.raises(UserError, match="trained for classification, not for detection"):
        validate(written, checkpoint="classifier.pth")
    with pytest.raises(UserError, match="does not describe how to build its detector"):
        read_description({}, "x.pth")


def test_a_checkpoint_cannot_make_the_backbone_fetch_files(written):
    options = {"checkpoint_path": "/etc/passwd"}
    detector = {"stages": [], "backbone_options": options}
    with pytest.raises(UserError, match="may not set checkpoint_path"):
        read_description({"detector": detector}, "x.pth")
