"""Moving MNIST: drawn by the published rule, fixed sets that stay fixed, files that are checked."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from wsfvit.data.seeding import derive_seed
from wsfvit.utils.errors import UserError
from wsfvit.video.data import moving_mnist
from wsfvit.video.data.moving_mnist import (
    DigitImages,
    Motion,
    MovingMNIST,
    draw_uniform,
    load_digits,
    open_moving_mnist,
    open_official_test,
    read_idx,
)

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
DIGITS = DigitImages(IMAGES, "other")


def uniform_by_rule(key, count):
    """SplitMix64 with Python's integers, one number at a time."""
    mask, numbers = 2**64 - 1, []
    for _ in range(count):
        key = (key + 0x9E3779B97F4A7C15) & mask
        z = key
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        numbers.append(((z ^ (z >> 31)) >> 11) / 2**53)
    return numbers


def sequence_by_rule(key, motion, images):
    """A sequence drawn digit after digit and frame after frame, by the rule."""
    frames = np.zeros((motion.frames, *motion.size), np.uint8)
    numbers = iter(uniform_by_rule(key, 4 * motion.num_digits))
    free = [side - 28 for side in motion.size]
    for _ in range(motion.num_digits):
        image = images[int(next(numbers) * len(images))]
        y, x, angle = next(numbers), next(numbers), 2 * math.pi * next(numbers)
        step_y, step_x = math.sin(angle), math.cos(angle)
        for frame in frames:
            y += step_y * motion.speed
            x += step_x * motion.speed
            if y <= 0 or y >= 1:
                y, step_y = min(max(y, 0), 1), -step_y
            if x <= 0 or x >= 1:
                x, step_x = min(max(x, 0), 1), -step_x
            for row in range(28):
                for column in range(28):
                    place = int(free[0] * y) + row, int(free[1] * x) + column
                    frame[place] = max(frame[place], image[row, column])
    return frames


@pytest.mark.parametrize("motion", [Motion(), Motion(7, (28, 45), 3, 0.37)], ids=["published", "other"])
def test_drawn_by_the_rule(motion):
    dataset = MovingMNIST(DIGITS, "train", motion, seed=5)
    dataset.set_epoch(3)
    drawn = dataset.__getitems__([8, 2])
    assert drawn.dtype == torch.uint8 and drawn.shape == (2, motion.frames, 1, *motion.size)
    for sequence, index in zip(drawn.numpy(), (8, 2), strict=True):
        assert np.array_equal(sequence[:, 0], sequence_by_rule(derive_seed(5, 3, index), motion, IMAGES))


def test_digits_reach_the_walls_and_turn_back():
    path = moving_mnist.move(np.array([0.95, 0.5]), np.array(math.pi / 2), 4, 0.1)
    assert np.allclose(path[:, 0], [1, 0.9, 0.8, 0.7]) and np.allclose(path[:, 1], 0.5)


def test_uniform_numbers_are_uniform():
    numbers = draw_uniform(np.array([derive_seed(1, index) for index in range(2000)], np.uint64), 8)
    assert numbers.min() >= 0 and numbers.max() < 1
    # Five standard errors of mean and variance of 16,000 uniform numbers, and of the correlation of two columns.
    assert abs(numbers.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / numbers.size)
    assert abs(numbers.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / numbers.size)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(8)).max() < 5 / math.sqrt(2000)


def test_a_sample_depends_only_on_seed_epoch_and_index():
    dataset, again = (MovingMNIST(DIGITS, "train", seed=1) for _ in range(2))
    batch = dataset.__getitems__([0, 1, 2])
    assert torch.equal(batch[1], again.__getitems__([1])[0])
    sample = again[1]
    assert sample.dtype == torch.float32 and torch.equal((sample * 255).round().byte(), batch[1])
    others = [MovingMNIST(DIGITS, "train", seed=2), again]
    again.set_epoch(1)
    assert all(not torch.equal(batch, other.__getitems__([0, 1, 2])) for other in others)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_fixed_sets_have_no_epoch_and_share_no_digit():
    sets = [MovingMNIST(DIGITS, split, num_sequences=3, seed=seed) for split, seed in (("validation", 1), ("test", 2))]
    before = [dataset.__getitems__(range(3)) for dataset in sets]
    for dataset, sequences in zip(sets, before, strict=True):
        dataset.set_epoch(1)
        assert torch.equal(dataset.__getitems__(range(3)), sequences)
    assert not torch.equal(*before)
    assert [dataset.name for dataset in sets] == [
        f"generated-{split} of other digits" for split in ("validation", "test")
    ]
    halves = [{image.tobytes() for image in dataset.digits} for dataset in sets]
    assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == len(IMAGES)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_recorded_checksum_of_the_built_in_digits(split):
    assert MovingMNIST(load_digits(None, train=False), split).check()


def test_another_set_has_no_checksum_and_a_changed_one_is_an_error(monkeypatch):
    monkeypatch.setitem(moving_mnist.NUM_SEQUENCES, "test", 4)
    assert not MovingMNIST(DIGITS, "test").check()
    monkeypatch.setitem(moving_mnist.FIXED_SHA256, ("other", "test"), MovingMNIST(DIGITS, "test").sha256())
    assert MovingMNIST(DIGITS, "test").check()
    assert not MovingMNIST(DIGITS, "test", num_sequences=3).check()
    assert not MovingMNIST(DIGITS, "test", Motion(speed=0.2)).check()
    changed = DigitImages(IMAGES[::-1], "other")
    with pytest.raises(UserError, match="generated-test .* differs from the recorded one"):
        MovingMNIST(changed, "test").check()


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST's files are not here")
def test_mnist_itself():
    train, held_out = load_digits(MNIST, train=True), load_digits(MNIST, train=False)
    assert (train.source, len(train.images), held_out.source, len(held_out.images)) == ("mnist", 60000, "mnist", 10000)
    dataset = MovingMNIST(held_out, "validation")
    assert dataset.name == "generated-validation" and dataset.check()


def test_built_in_training_digits_are_not_the_held_out_ones():
    train, held_out = ({image.tobytes() for image in load_digits(None, train).images} for train in (True, False))
    assert len(train) > 3900 and not train & held_out


def idx_bytes(images, kind=8):
    return b"\0\0" + bytes([kind, 3]) + np.array(images.shape, ">u4").tobytes() + images.tobytes()


@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files(tmp_path, compressed, folder):
    name = "t10k-images-idx3-ubyte" + (".gz" if compressed else "")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    content = idx_bytes(IMAGES)
    (tmp_path / folder / name).write_bytes(gzip.compress(content) if compressed else content)
    digits = load_digits(tmp_path, train=False)
    assert digits.source == "other" and np.array_equal(digits.images, IMAGES)
    with pytest.raises(UserError, match="no train-images-idx3-ubyte or train-images-idx3-ubyte.gz"):
        load_digits(tmp_path, train=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", idx_bytes(IMAGES)[:-1], "truncated or damaged: 23535 bytes, its header says 23536"),
        ("a", idx_bytes(IMAGES) + b"0", "truncated or damaged"),
        ("a", idx_bytes(IMAGES[:0]), "truncated or damaged"),
        ("a", idx_bytes(IMAGES, kind=13), "must start with 00000803, not 00000d03"),
        ("a", b"", "not an idx file of images"),
        ("a", idx_bytes(IMAGES)[:9], "not an idx file of images"),
        ("a.gz", gzip.compress(idx_bytes(IMAGES))[:-300], "cannot be read: EOFError"),
        ("a.gz", idx_bytes(IMAGES), "cannot be read: BadGzipFile"),
    ],
)
def test_bad_idx_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "needs frames and digits"),
        ({"num_digits": 0}, "needs frames and digits"),
        ({"speed": 1.5}, "speed must be between"),
        ({"speed": math.nan}, "speed must be between"),
        ({"size": (27, 64)}, "27x64 pixels are smaller than the digits, 28x28"),
    ],
)
def test_impossible_motion(options, message):
    with pytest.raises(UserError, match=message):
        MovingMNIST(DIGITS, "train", Motion(**options))


def test_empty_sets():
    with pytest.raises(UserError, match="no train set of 0 sequences from 30 digit images"):
        MovingMNIST(DIGITS, "train", num_sequences=0)
    with pytest.raises(UserError, match="no test set of 10000 sequences from 1 digit images"):
        MovingMNIST(DigitImages(IMAGES[:1], "other"), "test")


def test_motion_from_a_file_equals_the_default():
    assert Motion(size=[64, 64]) == Motion()


def official_file(folder, monkeypatch, shape=(20, 6, 64, 64), dtype=np.uint8):
    """A small file in the official layout: frames first."""
    monkeypatch.setattr(moving_mnist, "OFFICIAL_SHAPE", (20, 6, 64, 64))
    array = np.random.default_rng(1).integers(0, 255, shape).astype(dtype)
    np.save(folder / "mnist_test_seq.npy", array)
    return array


def test_official_test(tmp_path, monkeypatch):
    array = official_file(tmp_path, monkeypatch)
    dataset = open_moving_mnist("test", tmp_path)
    assert (dataset.name, len(dataset), dataset.shape) == ("official-test", 6, (20, 1, 64, 64))
    assert np.array_equal(dataset.__getitems__([4, 0])[:, :, 0].numpy(), array[:, [4, 0]].swapaxes(0, 1))
    expected = (array[:, 3, None] / 255.0).astype(np.float32)
    assert np.array_equal(dataset[3].numpy(), expected), "as the published data: divided by 255 in float64"
    shorter = open_moving_mnist("test", tmp_path, Motion(frames=12))
    assert len(shorter) == 6 and np.array_equal(shorter.__getitems__([2])[0, :, 0].numpy(), array[:12, 2])


def test_a_test_unlike_the_official_one_is_generated(tmp_path, monkeypatch):
    official_file(tmp_path, monkeypatch)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    for motion, count in ((Motion(frames=30), None), (Motion(speed=0.2), None), (None, 5)):
        assert open_moving_mnist("test", tmp_path, motion, count).name == "generated-test of other digits"
    assert open_moving_mnist("validation", tmp_path).name == "generated-validation of other digits"
    assert open_moving_mnist("train", None, num_sequences=5).name == "generated-train of built-in digits"


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((6, 20, 64, 64), np.uint8, r"must be uint8 .*, not uint8 \(6, 20, 64, 64\)"),
        ((20, 6, 64, 64), np.float32, "not float32"),
        ((20, 6, 64, 64), np.int64, "holds int64"),
    ],
)
def test_wrong_official_file(tmp_path, monkeypatch, shape, dtype, message):
    official_file(tmp_path, monkeypatch, shape, dtype)
    with pytest.raises(UserError, match=message):
        open_official_test(tmp_path / "mnist_test_seq.npy")


def test_damaged_official_file(tmp_path, monkeypatch):
    official_file(tmp_path, monkeypatch)
    path = tmp_path / "mnist_test_seq.npy"
    content = path.read_bytes()
    for damaged in (content[:-1], content[:50], b"", b"hello", b"PK\3\4 no zip"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="mnist_test_seq.npy' is truncated or not an array"):
            open_official_test(path)
