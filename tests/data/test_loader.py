"""Loaders: the same pixels for any number of workers, any cut and any number of processes; exact evaluation."""

import random
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_loader
from torch.utils.data import Dataset

from wsfvit.data import Augmentation, LoaderOptions, build_eval_loader, build_train_loader, create_dataset
from wsfvit.utils.errors import UserError

CONFIG = {"input_size": (3, 16, 16), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
EVAL_CONFIG = CONFIG | {"interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
# Draws from all three generators: random crops from Python's and PyTorch's, RandAugment from NumPy's too.
AUGMENTATION = Augmentation(auto_augment="rand-m9-mstd0.5-inc1", color_jitter_prob=0.8, grayscale_prob=0.2)
OPTIONS = LoaderOptions(batch_size=4, num_workers=0)


class Pictures(Dataset):
    """Random images whose label is their index."""

    def __init__(self, count):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 24, 20, 3), dtype=np.uint8)
        self.images = [Image.fromarray(image) for image in pixels]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index


def train_batches(epoch=0, first_batch=0, count=22, seed=1, repeats=1, **options):
    loader = build_train_loader(
        Pictures(count), CONFIG, replace(OPTIONS, **options), AUGMENTATION, seed=seed, repeats=repeats
    )
    loader.set_position(epoch, first_batch)
    return list(loader)


def assert_equal(batches, expected):
    assert len(batches) == len(expected) > 0
    for (images, labels), (expected_images, expected_labels) in zip(batches, expected, strict=True):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


def by_label(batches):
    return {int(label): image for images, labels in batches for image, label in zip(images, labels, strict=True)}


def test_train_batches():
    loader = build_train_loader(Pictures(22), CONFIG, OPTIONS)
    batches = list(loader)
    assert len(loader) == len(batches) == 5
    images, labels = batches[0]
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == (
        (4, 3, 16, 16),
        torch.float32,
        (4,),
        torch.int64,
    )
    assert len(by_label(batches)) == 20


@pytest.mark.parametrize("use_prefetcher", [True, False])
def test_workers_do_not_change_the_images(use_prefetcher):
    expected = train_batches(3, use_prefetcher=use_prefetcher)
    loader = build_train_loader(
        Pictures(22), CONFIG, replace(OPTIONS, num_workers=2, use_prefetcher=use_prefetcher), AUGMENTATION, seed=1
    )
    # The same workers live through all three passes, one of them abandoned.
    list(loader)
    loader.set_position(2)
    next(iter(loader))
    loader.set_position(3)
    assert_equal(list(loader), expected)
    loader.set_position(3, 2)
    assert_equal(list(loader), expected[2:])
    assert_equal([next(iter(loader))], expected[2:3])


@pytest.mark.parametrize("first_batch", range(5))
def test_a_cut_epoch_goes_on_bit_for_bit(first_batch):
    random.seed(first_batch)  # what was drawn before the cut must not matter
    assert_equal(train_batches(2, first_batch), train_batches(2)[first_batch:])


def test_position_beyond_the_epoch():
    assert train_batches(2, 5) == []
    with pytest.raises(ValueError, match="batch 6 of an epoch of 5"):
        train_batches(2, 6)


@pytest.mark.parametrize("repeats", [1, 2])
def test_world_size_does_not_change_a_global_batch(repeats):
    expected = train_batches(1, batch_size=8, repeats=repeats)
    ranks = [train_batches(1, batch_size=4, world_size=2, rank=rank, repeats=repeats) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == len(expected) == 2
    for position, (images, labels) in enumerate(expected):
        for rank in range(2):
            assert torch.equal(ranks[rank][position][0], images[rank::2])
            assert torch.equal(ranks[rank][position][1], labels[rank::2])


def test_epochs_and_seeds_differ():
    first, second, other = train_batches(0), train_batches(1), train_batches(0, seed=2)
    for one in (second, other):
        assert [labels.tolist() for _, labels in first] != [labels.tolist() for _, labels in one]
        common = by_label(first).keys() & by_label(one)
        assert sum(torch.equal(by_label(first)[label], by_label(one)[label]) for label in common) <= 1


def test_repeats_of_an_image_differ():
    for images, labels in train_batches(repeats=2):
        assert torch.equal(labels[::2], labels[1::2]), "two repeats of an image stand side by side"
        assert all(not torch.equal(one, other) for one, other in zip(images[::2], images[1::2], strict=True))


def test_repeat_zero_is_the_image_without_repeats():
    plain, repeated = by_label(train_batches(count=20)), train_batches(count=20, repeats=2)
    for images, labels in repeated:
        for image, label in zip(images[::2], labels[::2], strict=True):
            assert torch.equal(image, plain[int(label)])


def test_passes_leave_the_callers_generators_alone():
    loader = build_train_loader(Pictures(8), CONFIG, OPTIONS, AUGMENTATION)
    evaluation = build_eval_loader(Pictures(8), EVAL_CONFIG, OPTIONS)
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    list(loader), list(evaluation)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_augmentation_options_reach_the_transform():
    for augmentation in (Augmentation(no_aug=True, interpolation="bilinear"), AUGMENTATION):
        loader = build_train_loader(Pictures(8), CONFIG, OPTIONS, augmentation)
        assert ("RandAugment" in str(loader._loader.dataset.dataset.transform)) is (augmentation is AUGMENTATION)
    with pytest.raises(UserError, match="augmentation options"):
        build_train_loader(Pictures(8), CONFIG, OPTIONS, Augmentation(train_crop_mode="none"))
    with pytest.raises(UserError, match="16 .* more than the 8 training images"):
        build_train_loader(Pictures(8), CONFIG, replace(OPTIONS, batch_size=8, world_size=2))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_sees_seven_images_once(world_size):
    labels = []
    for rank in range(world_size):
        options = replace(OPTIONS, batch_size=2, world_size=world_size, rank=rank)
        loader = build_eval_loader(Pictures(7), EVAL_CONFIG, options)
        batches = [labels.tolist() for _, labels in loader]
        assert len(batches) == len(loader)
        labels += sum(batches, [])
    assert sorted(labels) == list(range(7))


def test_evaluation_with_more_ranks_than_images():
    assert list(build_eval_loader(Pictures(2), EVAL_CONFIG, replace(OPTIONS, world_size=4, rank=3))) == []


@pytest.mark.parametrize(
    ("setting", "use_prefetcher", "num_workers"),
    [
        ({}, True, 0),
        ({}, True, 2),
        ({}, False, 0),
        ({"crop_mode": "border"}, True, 0),
        ({"crop_mode": "squash"}, False, 0),
        ({"crop_border_pixels": 3}, True, 0),
    ],
)
def test_evaluation_equals_timm(setting, use_prefetcher, num_workers):
    config = EVAL_CONFIG | setting
    options = replace(OPTIONS, use_prefetcher=use_prefetcher, num_workers=num_workers)
    loader = build_eval_loader(Pictures(10), config, options)

    class TransformedByTimm(Pictures):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return self.transform(image), label

    timm_loader = create_loader(
        TransformedByTimm(10),
        batch_size=4,
        num_workers=0,
        device=torch.device("cpu"),
        use_prefetcher=use_prefetcher,
        **config,
    )
    assert_equal(list(loader), list(timm_loader))
    assert_equal(list(loader), list(timm_loader))


def test_evaluation_refuses_a_wrong_setting():
    with pytest.raises(UserError, match="interpolation.*nearby"):
        build_eval_loader(Pictures(4), EVAL_CONFIG | {"interpolation": "nearby"}, OPTIONS)


def test_digits_through_both_loaders():
    config = {"input_size": (1, 32, 32), "mean": (0.13,), "std": (0.31,)}
    dataset = create_dataset("digits", None, "test", in_chans=1)
    images, labels = next(iter(build_train_loader(dataset, config, replace(OPTIONS, batch_size=300))))
    assert images.shape == (300, 1, 32, 32) and len(set(labels.tolist())) == 10
    loader = build_eval_loader(dataset, config | {"crop_pct": 1.0}, replace(OPTIONS, batch_size=300))
    labels = torch.cat([labels for images, labels in loader])
    assert torch.bincount(labels).tolist() == [100] * 10


def test_a_loader_that_is_kept_does_not_hold_up_the_end_of_the_process():
    """Its idle workers would outlive the SIGTERM of multiprocessing for half a minute, then die with a traceback."""
    code = """
import time
from wsfvit.data import LoaderOptions, build_eval_loader, create_dataset
grey = (0.5, 0.5, 0.5)
setting = {"input_size": (3, 16, 16), "interpolation": "bicubic", "mean": grey, "std": grey, "crop_pct": 1.0}
images = create_dataset("synthetic/2", None, "val", num_samples=2)
loader = build_eval_loader(images, setting, LoaderOptions(batch_size=2, num_workers=1))
cycle = [list(loader), loader]
cycle.append(cycle)
print(time.time())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.time() - float(done.stdout) < 20
