"""COCO's masks: decoding of the three forms at chosen pixels, and the check of what pycocotools gets."""

import sys

import numpy as np
import pytest
from pycocotools import mask as oracle

from wsfvit.detection.data.coco_masks import (
    check_segmentation,
    coco_mask_module,
    decompress_counts,
    encode_masks,
    sample_masks,
)
from wsfvit.utils.errors import UserError


def random_masks(count, height, width):
    random = np.random.default_rng(0)
    return np.stack([random.random((height, width)) < chance for chance in np.linspace(0, 1, count)])


@pytest.mark.parametrize("size", [(7, 5), (64, 200), (1, 1)])
def test_compressed_counts_are_read_as_pycocotools_writes_them(size):
    for mask in random_masks(9, *size):
        (rle,) = encode_masks(mask[None])
        counts = decompress_counts(rle["counts"])
        assert counts.sum() == size[0] * size[1]
        again = oracle.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
        assert again["counts"].decode() == rle["counts"]
        assert check_segmentation(rle, *size) == ""


def test_runs_of_millions_of_pixels():
    (rle,) = encode_masks(np.ones((1, 3000, 2000), bool))
    assert decompress_counts(rle["counts"]).tolist() == [0, 6_000_000]


@pytest.mark.parametrize("form", ["compressed", "counts"])
def test_rle_gives_the_mask_back(form):
    masks = random_masks(5, 12, 9)
    rles = encode_masks(masks)
    if form == "counts":
        rles = [{"size": [12, 9], "counts": decompress_counts(rle["counts"]).tolist()} for rle in rles]
    assert (sample_masks(rles, 12, 9, np.arange(12), np.arange(9)) == masks).all()


def test_polygons_are_united():
    squares = [[1, 1, 3, 1, 3, 3, 1, 3], [5, 0, 6, 0, 6, 4, 5, 4]]
    expected = np.zeros((6, 8), np.uint8)
    expected[1:3, 1:3] = expected[0:4, 5] = 1
    assert (sample_masks([squares], 6, 8, np.arange(6), np.arange(8))[0] == expected).all()


def test_chosen_pixels():
    masks = random_masks(6, 30, 20)
    rows, columns = np.arange(5, 25) * 3 // 4, np.arange(19, 2, -1)
    got = sample_masks(encode_masks(masks), 30, 20, rows, columns)
    assert got.dtype == np.uint8 and (got == masks[:, rows][:, :, columns]).all()


def test_no_masks_and_masks_outside():
    assert sample_masks([], 6, 8, np.arange(3), np.arange(2)).shape == (0, 3, 2)
    assert not sample_masks([[[1, 1, 3, 1, 3, 3, 1, 3]]], 6, 8, np.arange(4, 6), np.arange(8)).any()
    assert encode_masks(np.zeros((0, 4, 5), bool)) == []


def test_missing_pycocotools_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)  # importing it now raises
    with pytest.raises(UserError, match="pip install pycocotools"):
        coco_mask_module()
