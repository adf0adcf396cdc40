"""Transforms: timm's, and where they differ."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torch.utils.data import Dataset

from wsfvit.data import Augmentation, seed_all
from wsfvit.data.seeding import SeededDataset
from wsfvit.data.transforms import build_train_transform
from wsfvit.utils.errors import UserError

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


PADDED = Augmentation(crop_padding=4, hflip=0.0, color_jitter=0.0)
# No pixel is black, and all differ.
SMALL = np.arange(1, 24 * 24 * 3 + 1).reshape(24, 24, 3).astype(np.uint8) | 1


def test_padded_crop_moves_the_image_and_fills_up_with_black():
    """Every offset of 9 x 9 comes up; each gives the image moved by it, in uint8 and normalised."""
    whole = np.pad(SMALL, ((4, 4), (4, 4), (0, 0))).transpose(2, 0, 1)
    windows = {whole[:, i : i + 24, j : j + 24].tobytes(): (i, j) for i in range(9) for j in range(9)}
    assert len(windows) == 81
    transform = build_train_transform(CONFIG, PADDED)
    normalised = build_train_transform(CONFIG, PADDED, use_prefetcher=False)
    seen = set()
    for number in range(1000):
        seed_all(number)
        pixels = transform(Image.fromarray(SMALL))
        assert pixels.dtype == torch.uint8
        seen.add(windows[pixels.numpy().tobytes()])
    assert len(seen) == 81
    mean, std = (torch.tensor(CONFIG[key]).view(3, 1, 1) for key in ("mean", "std"))
    seed_all(999)
    torch.testing.assert_close(normalised(Image.fromarray(SMALL)), (pixels / 255 - mean) / std)


class Pictures(Dataset):
    """One picture, again and again."""

    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.transform(Image.fromarray(SMALL)).numpy().tobytes()


def test_padded_crop_follows_the_seeds_of_the_loader():
    """It draws from torch's global generator, which is seeded for every image of an epoch."""
    epochs = []
    for epoch in (0, 0, 1):
        dataset = SeededDataset(Pictures(build_train_transform(CONFIG, PADDED)), seed=7)
        dataset.set_epoch(epoch)
        torch.manual_seed(len(epochs))
        epochs.append([dataset[index] for index in range(40)])
    assert epochs[0] == epochs[1] != epochs[2]
    assert len(set(epochs[0])) > 10


@pytest.mark.parametrize(
    "picture", [PICTURE, torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1)], ids=["pil", "tensor"]
)
def test_padded_crop_of_another_size_covers_the_window_first(picture):
    """30 x 40 becomes 24 x 32: 8 pixels of black and of picture to move along the longer side."""
    transform = build_train_transform(CONFIG, Augmentation(crop_padding=4, interpolation="bilinear", color_jitter=0.0))
    for number in range(20):
        seed_all(number)
        pixels = transform(picture)
        assert pixels.shape == (3, 24, 24)
        assert (pixels.amax((0, 1)) == 0).sum() <= 4 and (pixels.amax((0, 2)) == 0).sum() <= 4


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({"train_crop_mode": "rkrc"}, "--train-crop-mode"),
        ({"scale": (0.5, 1.0)}, "--scale"),
        ({"ratio": (1.0, 1.0)}, "--ratio"),
        ({"no_aug": True}, "--no-aug"),
    ],
)
def test_padded_crop_refuses_what_it_replaces(more, flag):
    with pytest.raises(UserError, match=f"--crop-padding .* leave {flag} out"):
        build_train_transform(CONFIG, Augmentation(crop_padding=4, **more))
