"""Transforms: timm's, and where they differ."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, create_transform

from wsfvit.data import Augmentation, seed_all
from wsfvit.data.transforms import build_train_transform

CONFIG = {"input_size": (3, 24, 24), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))


def test_pixels_equal_timm():
    options = dict(color_jitter_prob=0.5, grayscale_prob=0.3, gaussian_blur_prob=0.3, vflip=0.5, train_crop_mode="rkrc")
    ours = build_train_transform(CONFIG, Augmentation(**options), use_prefetcher=False)
    theirs = create_transform(**CONFIG, **options, is_training=True, interpolation="random")
    for number in range(10):
        seed_all(number)
        expected = theirs(PICTURE)
        seed_all(number)
        assert torch.equal(ours(PICTURE), expected)


@pytest.mark.parametrize("policy", ["rand-m10-n6-inc1", "rand-m0-n6", "original", "v0", "augmix-m10"])
def test_policies_run_at_both_ends_of_the_scale(policy):
    """timm's posterize would raise here with Pillow 13."""
    transform = build_train_transform(CONFIG, Augmentation(auto_augment=policy))
    for number in range(60):
        seed_all(number)
        assert transform(PICTURE).shape == (3, 24, 24)


def test_posterize_of_no_bits_is_black_and_others_are_timms():
    transform = build_train_transform(CONFIG, Augmentation(auto_augment="rand-m10-inc1"))
    (policy,) = [part for part in transform.transforms if isinstance(part, auto_augment.RandAugment)]
    (posterize,) = [op.aug_fn for op in policy.ops if op.name == "PosterizeIncreasing"]
    assert np.asarray(posterize(PICTURE, 0)).max() == 0
    for bits in range(1, 9):
        assert posterize(PICTURE, bits) == auto_augment.posterize(PICTURE, bits)
    assert auto_augment.NAME_TO_OP["Posterize"] is auto_augment.posterize, "timm itself is left as it was"
