"""The benchmark of image reading: it times what the loaders do, with both decoders."""

import io
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import data, photographs
from wsfvit.data import Augmentation, SeededDataset, create_dataset
from wsfvit.data.bad_images import TransformedDataset
from wsfvit.data.transforms import build_train_transform
from wsfvit.utils.errors import UserError


@pytest.fixture(scope="module")
def blobs():
    return photographs.resize_jpegs(photographs.generate_jpegs(3), 60, 90)


def test_generated_photographs_repeat_and_fall_off_with_the_frequency(blobs):
    assert blobs == photographs.resize_jpegs(photographs.generate_jpegs(3), 60, 90) and len(set(blobs)) == 3
    assert Image.open(io.BytesIO(blobs[0])).size == (60, 45)
    grey = np.asarray(Image.open(io.BytesIO(photographs.generate_jpegs(1)[0])).convert("L"), np.float64)
    power = np.abs(np.fft.rfft2(grey)[0, 1:200]) ** 2  # along the width
    slope = np.polyfit(np.log(np.arange(1, 200)), np.log(power), 1)[0]
    assert -2.7 < slope < -1.3  # power 1/f^2, of one line of one sample


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_sources_hold_the_files(tmp_path, blobs, kind):
    name, path = photographs.write_source(kind, tmp_path, blobs)
    assert not name and sorted(photographs.read_jpegs(path, 9)) == sorted(blobs)
    assert len(photographs.read_jpegs(path, 2)) == 2


def test_missing_photographs_are_reported(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        data.main(["--images", str(tmp_path / "none")])


@pytest.mark.parametrize("decoder", ["pillow", "torchvision"])
def test_the_timed_image_is_the_loaders(tmp_path, blobs, decoder):
    dataset = create_dataset(*photographs.write_source("tar", tmp_path, blobs), "train", decoder=decoder)
    args = data.parse_args(["--img-size", "32"])
    transform = build_train_transform(data.data_config(32), Augmentation(auto_augment=args.aa))
    loaded = SeededDataset(TransformedDataset(dataset, transform), data.SEED)
    loaded.set_epoch(4)
    seconds = Counter()
    steps = data.build_steps("recipe", args)
    for index in range(3):
        timed = data.load_image(dataset, index, 4, steps, seconds)
        assert torch.equal(torch.as_tensor(timed), torch.as_tensor(loaded[index][0]))
    assert tuple(seconds) == data.COLUMNS


def test_parts_take_the_time_between_two_looks_at_the_clock(tmp_path, blobs, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(data.time, "process_time", lambda: next(clock))
    dataset = create_dataset(*photographs.write_source("folder", tmp_path, blobs), "train")
    case = data.Case(0, "folder", "pillow", "decode")
    (record,) = data.measure_parts({case: dataset}, data.parse_args(["--rounds", "2"]))
    assert record["parts_ms"] == {"seed": 1e3, "read": 1e3, "decode": 1e3}
    assert record["cpu_ms_per_image"] == 3e3 and record["images_per_cpu_second"] == 1 / 3


def test_command(tmp_path, capsys):
    pytest.importorskip("datasets", reason="not installed: pip install 'wsfvit[data]'")
    out = tmp_path / "loader.json"
    argv = ["--count", "4", "--sides", "0", "80", "--img-size", "32", "--rounds", "1", "-j", "1"]
    data.main([*argv, "--gpu-speed", "1e6", "--out", str(out)])
    recorded = json.loads(out.read_text())
    assert recorded["images"].startswith("generated") and set(recorded["kilobytes_per_image"]) == {"0", "80"}
    cases = [
        tuple(record[key] for key in ("longer_side", "source", "decoder", "transform"))
        for record in recorded["results"]
    ]
    assert len(cases) == len(set(cases)) == 14 and (80, "parquet", "pillow", "recipe") in cases
    assert all(record["images_per_cpu_second"] > 0 for record in recorded["results"])
    assert set(recorded["loader_images_per_cpu_second"]) == {"pillow", "torchvision"}
    assert "a GPU at 1e+06 images/s needs" in capsys.readouterr().out
