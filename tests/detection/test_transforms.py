"""The augmentation: hand-computed sizes, boxes and masks, and the ranges of the published policy."""

import collections

import numpy as np
import pytest
import torch

from wsfvit.detection.data.dataset import PaddingCollate, Sample
from wsfvit.detection.data.transforms import (
    EvalTransform,
    Normalize,
    TrainSizes,
    TrainTransform,
    crop,
    fitted_size,
    flip,
    resize,
    start_view,
)


def view_of(height, width, boxes=()):
    """An image whose red channel counts the rows and whose green channel counts the columns."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack((rows, columns, rows * 0)).to(torch.uint8)
    return start_view(image, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))


def test_a_published_test_image():
    view = EvalTransform()(view_of(480, 640, [[64, 48, 128, 96]]))
    assert view.size == (840, 1120)
    assert view.boxes.tolist() == [[112, 84, 224, 168]]  # times 1.75
    batch = PaddingCollate(224)([Sample(Normalize()(view.image), None, (480, 640), 1)])
    assert batch.images.shape == (1, 3, 896, 1120) and batch.sizes == [(840, 1120)] and batch.targets == []
    assert not batch.images[:, :, 840:].any() and batch.images[:, :, :840].all()


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((640, 480), (1120, 840)),
        ((500, 375), (1120, 840)),
        ((427, 640), (747, 1120)),  # 427 * 1.75 = 747.25
        ((426, 640), (746, 1120)),  # 745.5, and a half rounds up
        ((100, 100), (896, 896)),
        ((2000, 10), (1120, 6)),  # 5.6
        ((100_000, 10), (1120, 1)),  # never nothing
    ],
)
def test_sizes_after_resizing(size, fitted):
    assert fitted_size(size, 896, 1120) == fitted


def test_boxes_are_cut_off_at_the_edges_of_the_image():
    assert view_of(10, 20, [[-3, 2, 25, 11]]).boxes.tolist() == [[0, 2, 20, 10]]


def test_flip():
    view = flip(view_of(10, 20, [[2, 1, 6, 4]]))
    assert view.boxes.tolist() == [[14, 1, 18, 4]]
    assert view.image[1, 0].tolist() == view.columns.tolist() == list(range(19, -1, -1))
    assert view.rows.tolist() == list(range(10))


def test_resize_boxes_with_the_scale_of_each_side():
    view = resize(view_of(10, 20, [[2, 1, 6, 4]]), (5, 60))
    assert view.boxes.tolist() == [[6, 0.5, 18, 2]]
    assert view.rows.tolist() == [0, 2, 4, 6, 8] and view.columns.tolist()[:7] == [0, 0, 0, 1, 1, 1, 2]


def test_resized_pixels_are_bilinear_without_antialias():
    """Halved, each pixel lies between the middle two; enlarged fourfold, it lies at eighths, held at the edges."""
    view = view_of(8, 8)
    assert resize(view, (4, 8)).image[0, :, 0].tolist() == [1, 3, 5, 7]  # 0.5, 2.5, ... rounded up
    assert resize(view, (2, 8)).image[0, :, 0].tolist() == [2, 6]  # 1.5 and 5.5: two of four rows, not all
    tens = view.image * 16
    enlarged = resize(start_view(tens, view.boxes), (32, 8)).image[0, :, 0].tolist()
    assert enlarged[:7] == [0, 0, 2, 6, 10, 14, 18] and enlarged[-3:] == [110, 112, 112]


def test_crop():
    boxes = [[2, 1, 6, 4], [0, 0, 3, 3], [5, 2, 20, 10], [18, 8, 20, 10]]
    view = crop(view_of(10, 20, boxes), top=2, left=4, size=(5, 10))
    assert view.kept.tolist() == [0, 2]
    assert view.boxes.tolist() == [[0, 0, 2, 2], [1, 0, 10, 5]]
    assert view.image[0, :, 0].tolist() == view.rows.tolist() == [2, 3, 4, 5, 6]
    assert view.image[1, 0].tolist() == view.columns.tolist() == list(range(4, 14))
    again = crop(view, 0, 5, (5, 5))
    assert again.kept.tolist() == [2]


def test_chosen_rows_follow_a_chain():
    view = resize(crop(resize(flip(view_of(12, 12)), (6, 24)), 1, 2, (4, 8)), (8, 4))
    assert view.rows.tolist() == [2, 2, 4, 4, 6, 6, 8, 8]
    assert view.columns.tolist() == [10, 9, 8, 7]  # of 10 10 9 9 8 8 7 7


def sizes_drawn(transform, height, width, count):
    torch.manual_seed(0)
    return collections.Counter(transform(view_of(height, width)).size for _ in range(count))


def test_the_published_sizes_can_be_scaled():
    assert TrainSizes().scaled_to(140) == TrainSizes((56, 84, 112), 140, (50, 62, 75), (56, 75))


def test_half_of_the_images_are_cropped():
    """Without a crop a square stays one, of one of three sizes; one crop of twenty is a square."""
    drawn = sizes_drawn(TrainTransform(TrainSizes((14, 21, 28), 35, (40,), (10, 29))), 40, 40, 400)
    squares = [drawn[side, side] for side in (14, 21, 28)]
    assert all(count > 40 for count in squares) and 170 < sum(squares) < 250
    assert {min(size) for size in drawn} <= {12, 13, *range(14, 29)} and max(map(max, drawn)) == 35


def test_the_long_side_has_a_limit():
    assert all(max(size) <= 140 for size in sizes_drawn(TrainTransform(TrainSizes().scaled_to(140)), 50, 200, 20))


def test_crops_reach_both_ends_of_their_range():
    transform = TrainTransform(TrainSizes((10,), 1000, (10,), (7, 9)))
    torch.manual_seed(0)
    views = [transform._random_crop(view_of(8, 20)) for _ in range(300)]
    assert {view.size[0] for view in views} == {7, 8} and {view.size[1] for view in views} == {7, 8, 9}
    assert {int(view.columns[0]) for view in views} == set(range(14)) and {int(view.rows[0]) for view in views} == {
        0,
        1,
    }


def test_half_of_the_images_are_mirrored():
    transform = TrainTransform(TrainSizes((8,), 16, (8,), (8, 8)))
    torch.manual_seed(0)
    mirrored = sum(
        int(view.columns[0]) > int(view.columns[-1]) for view in (transform(view_of(8, 16)) for _ in range(200))
    )
    assert 80 < mirrored < 120


def test_published_normalisation():
    got = Normalize()(torch.full((3, 1, 1), 200, dtype=torch.uint8)).flatten()
    expected = (200 - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="crop_range"):
        TrainSizes(crop_range=(9, 8))
    with pytest.raises(ValueError, match="lists not empty"):
        TrainSizes(short_sides=())
