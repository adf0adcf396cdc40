"""The predict command on an untrained detector: files of any folder, equal names, unreadable files."""

import json

import numpy as np
import pytest
from detection.tiny_detector import write_broken, write_checkpoint
from PIL import Image

from wsfvit.detection.args import predict_parser
from wsfvit.detection.predict import run_predict
from wsfvit.utils.errors import UserError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two images of the same name in two folders, one grey and in portrait format."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name, image in (("a", Image.fromarray(pixels)), ("b", Image.fromarray(pixels[:, :, 0].T.copy()))):
        (folder / name).mkdir()
        image.save(folder / name / "cat.png")
    write_checkpoint(folder / "detector.pth")
    return folder


def predict(folder, out, *argv, names=("a", "b")):
    paths = [str(folder / name) for name in names]
    fixed = ["--checkpoint", str(folder / "detector.pth"), "--out", str(out), "--device", "cpu"]
    return run_predict(predict_parser().parse_args([*paths, *fixed, *argv]))


def test_every_image_gets_a_drawing_and_one_file_has_all_detections(images, tmp_path):
    content = predict(images, tmp_path / "out", "--score", "0.06")
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == content
    assert [(image["width"], image["height"]) for image in content["images"]] == [(60, 40), (40, 60)]
    drawings = [image["drawing"] for image in content["images"]]
    assert len(set(drawings)) == 2 and all("cat" in name for name in drawings)
    for image in content["images"]:
        with Image.open(tmp_path / "out" / image["drawing"]) as drawing:
            assert drawing.size == (13 * image["width"], 13 * image["height"])  # 40 pixels become 520
    assert content["annotations"] and all(entry["score"] >= 0.06 for entry in content["annotations"])
    assert {tuple(entry["segmentation"]["size"]) for entry in content["annotations"]} <= {(40, 60), (60, 40)}


def test_an_image_without_detections_is_only_enlarged(images, tmp_path):
    content = predict(images, tmp_path, "--score", "1", names=("a",))
    assert content["annotations"] == []
    with Image.open(tmp_path / "cat.png") as drawing, Image.open(images / "a" / "cat.png") as original:
        assert drawing.tobytes() == original.resize((780, 520)).tobytes()


def test_a_detector_with_nan_finds_not_nothing_but_is_refused(images, tmp_path):
    write_broken(images / "detector.pth", tmp_path / "nan.pth", "fpn")
    with pytest.raises(UserError, match="outputs are not finite .first in fpn"):
        predict(images, tmp_path / "out", "--checkpoint", str(tmp_path / "nan.pth"), names=("a",))


def test_a_detector_of_boxes_only_gives_no_masks(images, tmp_path):
    write_checkpoint(tmp_path / "boxes.pth", mask_loss_weight=0.0)
    content = predict(images, tmp_path / "out", "--checkpoint", str(tmp_path / "boxes.pth"), "--score", "0.06")
    assert content["annotations"] and not any("segmentation" in entry for entry in content["annotations"])


def test_unreadable_images_are_named_after_the_others(images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="1 of 2 images could not be read.*broken.png"):
        predict(images, tmp_path / "out", names=("a", str(tmp_path / "broken.png")))
    assert (tmp_path / "out" / "cat.png").exists() and (tmp_path / "out" / "detections.json").exists()
