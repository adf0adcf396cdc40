"""Samples and batches: targets follow the image, batches resume exactly, bad images are named or left out."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detection.coco_files import write_coco
from PIL import Image

from wsfvit.data.loader import LoaderOptions
from wsfvit.detection.data.coco import read_coco
from wsfvit.detection.data.dataset import DetectionBatch, DetectionDataset
from wsfvit.detection.data.loader import AspectRatioSampler, build_eval_loader, build_train_loader
from wsfvit.detection.data.transforms import EvalTransform, TrainSizes, TrainTransform, flip
from wsfvit.detection.shapes import write_shapes
from wsfvit.utils.errors import UserError

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
PENNFUDAN = Path(__file__).parents[3] / "shared" / "data" / "pennfudan" / "instances_val.json"


def test_target_of_an_unchanged_image(tmp_path):
    data = read_coco(*write_coco(tmp_path))
    sample = DetectionDataset(data, lambda view: view, with_targets=True)[0]
    target = sample.target
    assert target["boxes"].tolist() == [[2, 1, 6, 4], [0, 0, 2, 10]] and target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [1, 0] and target["labels"].dtype == torch.int64
    expected = torch.zeros(2, 10, 20, dtype=torch.uint8)
    expected[0, 1:4, 2:6] = expected[1, :, :2] = 1
    assert target["masks"].dtype == torch.uint8 and target["masks"].equal(expected)
    assert (target["image_id"], sample.image_id, sample.original_size) == (7, 7, (10, 20))
    torch.testing.assert_close(sample.image[:, 0, 0], (torch.tensor([200, 10, 10]) / 255 - MEAN) / STD)


def test_masks_follow_flips(tmp_path):
    data = read_coco(*write_coco(tmp_path))
    plain = DetectionDataset(data, lambda view: view, with_targets=True)[0].target
    mirrored = DetectionDataset(data, flip, with_targets=True)[0].target
    assert mirrored["masks"].equal(plain["masks"].flip(2))
    assert mirrored["boxes"].tolist() == [[14, 1, 18, 4], [18, 0, 20, 10]]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return read_coco(*write_shapes(tmp_path_factory.mktemp("shapes"), 20, (48, 64)))


def test_boxes_and_masks_stay_together(shapes):
    """The box around each augmented mask lies within its box, up to the rounding of two resizings.

    Each moves an edge by less than a pixel, and the second one makes two pixels of one at most (32 to 64).
    """
    dataset = DetectionDataset(shapes, TrainTransform(TrainSizes().scaled_to(80)), with_targets=True)
    torch.manual_seed(0)
    seen = 0
    for index in range(len(dataset)):
        target = dataset[index].target
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            if box[2] - box[0] < 6 or box[3] - box[1] < 6 or not mask.any():
                continue  # the rest of an object that was cut off; a corner of a circle's box holds none of it
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            tight = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert (tight[:2] >= box[:2] - 3).all() and (tight[2:] <= box[2:] + 3).all()
            seen += bool((tight - box).abs().max() < 3)
    assert seen > 20


RATIOS = np.random.default_rng(5).choice([0.66, 0.75, 1.0, 1.33, 1.5], 101)


def epoch_of(batch_size, world_size=1, epoch=0, seed=1):
    """For each global batch the list of the batches of its ranks."""
    ranks = []
    for rank in range(world_size):
        sampler = AspectRatioSampler(RATIOS, batch_size, world_size, rank, seed)
        sampler.set_position(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler) == 101 // (batch_size * world_size)
    return list(zip(*ranks, strict=True))


@pytest.mark.parametrize(("batch_size", "world_size"), [(2, 1), (2, 8), (4, 4), (5, 1), (3, 7)])
def test_an_epoch_takes_each_image_at_most_once(batch_size, world_size):
    seen = [index for ranks in epoch_of(batch_size, world_size) for batch in ranks for index in batch]
    assert len(set(seen)) == len(seen) == 101 // (batch_size * world_size) * batch_size * world_size


def test_global_batches_do_not_depend_on_the_processes():
    def sets(*options):
        return [sorted(sum(ranks, [])) for ranks in epoch_of(*options)]

    assert sets(2, 8) == sets(4, 4) == sets(16, 1)
    assert sets(2, 2) == sets(4, 1)
    # Accumulated steps of 16 images: eight batches of 2, four of 4.
    for batch_size, steps in [(2, 8), (4, 4)]:
        small = sets(batch_size, 1)
        updates = [sorted(sum(small[start : start + steps], [])) for start in range(0, len(small), steps)]
        assert updates[:6] == sets(16, 1)


@pytest.mark.parametrize(("batch_size", "world_size"), [(2, 1), (2, 8), (4, 2)])
def test_batches_hold_images_of_similar_shape(batch_size, world_size):
    """Upright and lying images meet in one batch of each 16 images at most."""
    batches = [batch for ranks in epoch_of(batch_size, world_size) for batch in ranks]
    mixed = sum(min(RATIOS[batch]) < 1 <= max(RATIOS[batch]) for batch in batches)
    assert mixed <= -(-101 // 16)


def test_epochs_and_seeds_shuffle_and_batches_are_not_ordered_by_shape():
    orders = [epoch_of(2, 1, epoch, seed) for epoch, seed in [(0, 1), (1, 1), (0, 2)]]
    assert all(one != other for one, other in zip(orders, orders[1:] + orders[:1], strict=True))
    shapes = [RATIOS[batch[0]].mean() for batch in orders[0][:8]]
    assert shapes != sorted(shapes)


def test_the_order_of_an_epoch_never_changes():
    """A checkpoint resumed by a later version must continue with the same images."""
    sampler = AspectRatioSampler(RATIOS[:10], 5, seed=42)
    sampler.set_position(1)
    assert list(sampler) == [[9, 2, 7, 5, 4], [0, 6, 1, 3, 8]]


def test_position_and_batch_indices():
    sampler = AspectRatioSampler(RATIOS, 3, seed=1)
    sampler.set_position(3)
    whole = list(sampler)
    sampler.set_position(3, 20)
    assert list(sampler) == whole[20:] and sampler.batch_indices(7) == whole[7] and len(sampler) == 33


def train_loader(data, **options):
    dataset = DetectionDataset(data, TrainTransform(TrainSizes().scaled_to(64)), with_targets=True)
    return build_train_loader(dataset, LoaderOptions(batch_size=2, **options), multiple=32, seed=3)


def same(one, other):
    return one.images.equal(other.images) and all(
        a["masks"].equal(b["masks"]) and a["boxes"].equal(b["boxes"])
        for a, b in zip(one.targets, other.targets, strict=True)
    )


def test_training_batches_are_resumed_exactly_with_and_without_workers(shapes):
    loader = train_loader(shapes, num_workers=0)
    loader.set_position(2)
    whole = list(loader)
    assert len(whole) == len(loader) == 10 and isinstance(whole[0], DetectionBatch)
    assert all(side % 32 == 0 for batch in whole for side in batch.images.shape[2:])
    assert loader.batch_indices(0) == [image - 1 for image in whole[0].image_ids]
    workers = train_loader(shapes, num_workers=1)
    workers.set_position(2, 4)
    rest = list(workers)
    assert len(rest) == 6 and all(same(one, other) for one, other in zip(whole[4:], rest, strict=True))
    loader.set_position(3)
    assert not same(next(iter(loader)), whole[0])


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_sees_every_image_once(shapes, world_size):
    seen = []
    dataset = DetectionDataset(shapes, EvalTransform(48, 64), with_targets=False)
    for rank in range(world_size):
        options = LoaderOptions(batch_size=3, num_workers=0, world_size=world_size, rank=rank)
        for batch in build_eval_loader(dataset, options, multiple=32):
            assert batch.targets == [] and len(batch) == len(batch.sizes) == len(batch.original_sizes)
            seen += batch.image_ids
    assert sorted(seen) == list(range(1, 21))


def test_batches_move(shapes):
    batch = next(iter(train_loader(shapes, num_workers=0))).to("meta")
    assert batch.images.is_meta and batch.targets[0]["masks"].is_meta and isinstance(batch.targets[0]["image_id"], int)


def test_too_few_images_are_refused(shapes, tmp_path):
    with pytest.raises(UserError, match=r"--batch-size 32 \(all processes\) is more than the 20 training images"):
        train_loader(shapes, world_size=16)
    with pytest.raises(UserError, match="no object to learn from .*2 images smaller than 32 pixels, 4 objects in them"):
        read_coco(*write_coco(tmp_path)).for_training()


def damage(folder):
    (folder / "images" / "a.png").write_bytes(b"\x89PNG nothing more")


def shrink(folder):
    Image.new("RGB", (9, 9)).save(folder / "images" / "a.png")


@pytest.mark.parametrize(
    ("spoil", "reason"), [(damage, "UnidentifiedImageError"), (shrink, "it is 9x9, the annotation file says 20x10")]
)
def test_bad_images_are_named_or_left_out(spoil, reason, tmp_path, caplog):
    data = read_coco(*write_coco(tmp_path))
    spoil(tmp_path)
    dataset = DetectionDataset(data, lambda view: view, with_targets=True)
    with pytest.raises(UserError, match=f"a.png.*{reason}"):
        list(build_eval_loader(dataset, LoaderOptions(batch_size=2, num_workers=0)))
    with caplog.at_level(logging.WARNING):
        options = LoaderOptions(batch_size=2, num_workers=0, on_bad_image="skip")
        (batch,) = build_eval_loader(dataset, options)
    assert batch.image_ids == [3] and reason in caplog.text


def test_an_image_is_turned_where_the_annotations_say_so(tmp_path):
    """EXIF orientation 6: stored lying, shown upright; here its annotations are those of the upright image."""
    paths = write_coco(tmp_path, lambda content: content["annotations"].clear())
    lying = Image.new("RGB", (10, 20), (0, 0, 0))
    lying.paste((255, 255, 255), (0, 0, 10, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "images" / "a.png", exif=exif)
    image = DetectionDataset(read_coco(*paths), lambda view: view, with_targets=False)[0].image
    assert image.shape == (3, 10, 20)
    bright = (image[0] > 0).nonzero()
    assert bright[:, 1].unique().tolist() == [19] and len(bright) == 10


@pytest.mark.skipif(not PENNFUDAN.exists(), reason="the PennFudan annotations are not here")
def test_pennfudan_masks_have_their_areas(tmp_path):
    content = json.loads(PENNFUDAN.read_text())
    content["images"] = content["images"][:5]
    known = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in known]
    for image in content["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    (tmp_path / "instances.json").write_text(json.dumps(content))
    data = read_coco(tmp_path / "instances.json", tmp_path).for_training()
    dataset = DetectionDataset(data, lambda view: view, with_targets=True)
    assert len(dataset) == 5
    for index in range(5):
        areas = [entry["area"] for entry in dataset.record(index).annotations]
        assert dataset[index].target["masks"].sum((1, 2)).tolist() == areas
