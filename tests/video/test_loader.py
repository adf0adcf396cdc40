"""Loaders of sequences: exact order for any number of workers, any cut and any number of processes."""

from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from wsfvit.data import LoaderOptions
from wsfvit.utils.errors import UserError
from wsfvit.video.data.loader import build_eval_loader, build_train_loader, open_split, refuse_shared
from wsfvit.video.data.moving_mnist import DigitImages, Motion, MovingMNIST
from wsfvit.video.data.sequences import SequenceDataset

DIGITS = DigitImages(np.random.default_rng(0).integers(0, 256, (9, 4, 4), dtype=np.uint8), "other")
MOTION = Motion(frames=5, size=(9, 8))
OPTIONS = LoaderOptions(batch_size=2, num_workers=0)


def train_loader(**options):
    dataset = MovingMNIST(DIGITS, "train", MOTION, num_sequences=11, seed=3)
    return build_train_loader(dataset, 3, replace(OPTIONS, **options), seed=3)


def train_batches(epoch=0, first_batch=0, **options):
    loader = train_loader(**options)
    loader.set_position(epoch, first_batch)
    return list(loader)


def assert_equal(batches, expected):
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(batch, other, strict=True))


def test_train_batches():
    loader = train_loader()
    loader.set_position(2)
    batches = list(loader)
    assert len(loader) == len(batches) == 5 and loader.frames_out == 2
    frames, future = batches[1]
    assert (frames.shape, future.shape) == ((2, 3, 1, 9, 8), (2, 2, 1, 9, 8))
    assert frames.dtype == future.dtype == torch.float32 and 0.5 < frames.max() <= 1
    expected = torch.stack([loader.dataset[index] for index in loader.batch_indices(1)])
    assert torch.equal(torch.cat([frames, future], 1), expected)
    assert len({index for batch in range(5) for index in loader.batch_indices(batch)}) == 10


def test_workers_do_not_change_the_sequences():
    loader = train_loader(num_workers=2)
    # The same workers live through all passes, one of them abandoned.
    next(iter(loader))
    loader.set_position(3)
    assert_equal(list(loader), train_batches(3))
    loader.set_position(3, 2)
    assert_equal(list(loader), train_batches(3)[2:])


@pytest.mark.parametrize("first_batch", [1, 4])
def test_a_cut_epoch_goes_on_bit_for_bit(first_batch):
    assert_equal(train_batches(2, first_batch), train_batches(2)[first_batch:])


def test_position_beyond_the_epoch():
    assert train_batches(1, 5) == []
    with pytest.raises(ValueError, match="batch 6 of an epoch of 5"):
        train_batches(1, 6)


def test_a_sequence_is_new_in_each_epoch():
    loader, drawn = train_loader(batch_size=11), []
    for epoch in (0, 1):
        loader.set_position(epoch)
        (frames, _), indices = next(iter(loader)), loader.batch_indices(0)
        drawn.append(dict(zip(indices, frames, strict=True)))
    assert sorted(drawn[0]) == sorted(drawn[1]) == list(range(11)) and list(drawn[0]) != list(drawn[1])
    assert all(not torch.equal(drawn[0][index], drawn[1][index]) for index in range(11))


def test_world_size_does_not_change_a_global_batch():
    expected = train_batches(1, batch_size=4)
    ranks = [train_batches(1, world_size=2, rank=rank) for rank in range(2)]
    for rank in range(2):
        assert_equal(ranks[rank], [(frames[rank::2], future[rank::2]) for frames, future in expected])


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_evaluation_sees_seven_sequences_once(world_size):
    dataset = MovingMNIST(DIGITS, "test", MOTION, num_sequences=7)
    seen = []
    for rank in range(world_size):
        loader = build_eval_loader(dataset, 3, replace(OPTIONS, world_size=world_size, rank=rank))
        batches = list(loader)
        assert len(batches) == len(loader)
        seen += [torch.cat(pair) for batch in batches for pair in zip(*batch, strict=True)]
    assert sorted(s.numpy().tobytes() for s in seen) == sorted(dataset[i].numpy().tobytes() for i in range(7))


def test_input_without_a_truth():
    dataset = MovingMNIST(DIGITS, "test", MOTION, num_sequences=3)
    frames, future = next(iter(build_eval_loader(dataset, 5, OPTIONS)))
    assert frames.shape == (2, 5, 1, 9, 8) and future.shape == (2, 0, 1, 9, 8)
    with pytest.raises(UserError, match="sequences of 5 frames cannot give 6"):
        build_eval_loader(dataset, 6, OPTIONS)
    with pytest.raises(UserError, match="of sequences of 5 frames, 1 to 4 can be input"):
        build_train_loader(dataset, 5, OPTIONS)
    with pytest.raises(UserError, match="--batch-size 4 .* more than the 3 training sequences"):
        build_train_loader(dataset, 3, replace(OPTIONS, batch_size=4))


class Damaged(SequenceDataset):
    """Its second batch cannot be read."""

    name, shape = "damaged", (5, 1, 9, 8)

    def __len__(self):
        return 4

    def __getitems__(self, indices):
        if 3 in indices:
            raise UserError("'clip.mp4' is damaged")
        return torch.zeros(len(indices), *self.shape)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_sequence_is_one_line(num_workers):
    batches = iter(build_eval_loader(Damaged(), 3, replace(OPTIONS, num_workers=num_workers)))
    next(batches)
    with pytest.raises(UserError) as err:
        next(batches)
    assert str(err.value) == "'clip.mp4' is damaged"


def clips(folder, *names):
    for seed, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            array = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(array).save(folder / name / f"{number}.png")
    return Namespace(data=str(folder), size=None, frame_step=1, stride=None, layout=None)


@pytest.mark.parametrize("names", [("Train", "val", "TEST"), ("train", "Validation", "test")])
def test_split_folders_match_in_any_case(tmp_path, names):
    args = clips(tmp_path, f"{names[0]}/a", f"{names[0]}/b", f"{names[1]}/c", f"{names[2]}/d")
    sets = {split: open_split(args, split, 3, 1) for split in ("train", "validation", "test")}
    assert [len(data) for data in sets.values()] == [2, 1, 1]
    refuse_shared(sets)


def test_splits_that_do_not_exist_or_overlap(tmp_path):
    args = clips(tmp_path / "flat", "a", "b")
    assert len(open_split(args, "train", 3, 1)) == 2 and open_split(args, "validation", 3, 1) is None
    held_out = open_split(args, "validation", 3, 1, given=str(tmp_path / "flat" / "b"))
    with pytest.raises(UserError, match="1 of 1 clips of validation are part of training too, e.g. .*flat/b'"):
        refuse_shared({"training": open_split(args, "train", 3, 1), "validation": held_out, "test": None})
    args = clips(tmp_path / "typo", "trian/a", "val/b")
    with pytest.raises(UserError, match="typo' has no folder train, only val"):
        open_split(args, "train", 3, 1)
    args = clips(tmp_path / "two", "train/a", "val/b", "validation/c")
    with pytest.raises(UserError, match="two folders of one split, val and validation: keep one"):
        open_split(args, "validation", 3, 1)
    for option in ({"given": "held_out"}, {}):
        mnist = Namespace(data="moving-mnist", layout=None if option else "TNHW", stride=None)
        with pytest.raises(UserError, match="go with --data PATH, not with Moving MNIST"):
            open_split(mnist, "validation", 5, 1, **option)
