"""Moving MNIST: digits that move in straight lines and bounce off the walls (Srivastava et al., 2015, "Unsupervised
Learning of Video Representations using LSTMs"), drawn during training as in the published WSF-ViT and SimVP.

Each digit has a uniform position in the unit square and a uniform direction. In each frame it first moves by ``speed``,
then is drawn with its top-left corner at ``int(free range * position)``; the free range is the side of the frame minus
that of the digit. A coordinate that reaches 0 or 1 stays on that wall for the frame and reverses. Where digits overlap,
the brighter pixel shows.

Three fixed sets that must not be confused:

- ``official-test``: the authors' file mnist_test_seq.npy, if available. Published metrics are on this one.
- ``generated-test`` and ``generated-validation``: drawn here from MNIST's 10,000 test images with fixed seeds, each
  from its own half of the images (odd and even indices), so that model selection on one does not leak into the other.
"""

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wsfvit.data.digits import Digits
from wsfvit.data.images import describe
from wsfvit.data.seeding import derive_seed
from wsfvit.utils.errors import UserError
from wsfvit.video.data.sequences import OFFICIAL_FILE, ClipSequences, Cut, SequenceDataset, open_sequences, read_array

Split = Literal["train", "validation", "test"]
OFFICIAL_SHAPE = (20, 10_000, 64, 64)
NUM_SEQUENCES = {"train": 10_000, "validation": 2_000, "test": 10_000}
# Not the user's seed: the fixed sets are the same in every run.
FIXED_SEED = 20_151_112
FIXED_SPLITS = ("validation", "test")
BLOCK = 256
# SHA-256 of MNIST's training and test images, without headers.
MNIST_SHA256 = {
    True: "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    False: "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
}
# SHA-256 of all sequences of a fixed set, by source of the digits and split.
FIXED_SHA256 = {
    ("mnist", "validation"): "a6ebc3c2266ba907ab9d3468924c09fff5841cce580085aea2790adf2bd509ec",
    ("mnist", "test"): "75e1156f2f28742c18d724283442707775c195ef85371df3f1b1e1a0a23a9122",
    ("built-in", "validation"): "515a2979a871b20baecbb85c0186789468a0a130b9f3671e21e530e5f736e4b6",
    ("built-in", "test"): "0920c95706718d018eed6656398061d319c9a4abacc2eab51a16b0d91e7815fe",
}


@dataclass(frozen=True)
class Motion:
    """What is drawn; the defaults are the published setting."""

    frames: int = 20  # frames of a sequence
    size: tuple[int, int] = (64, 64)  # (height, width) of a frame
    num_digits: int = 2  # digits in a sequence
    speed: float = 0.1  # distance per frame as a share of the free range

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))  # a list, from a file, would equal no tuple
        if self.frames < 1 or self.num_digits < 1:
            raise UserError(f"Moving MNIST needs frames and digits, not {self.frames} and {self.num_digits}")
        if not 0 <= self.speed <= 1:
            raise UserError(f"the digits' speed must be between 0 and 1 per frame, not {self.speed}")


@dataclass(frozen=True)
class DigitImages:
    """Images (N, h, w) uint8 of digits, and their source: ``mnist``, ``built-in`` or ``other``."""

    images: np.ndarray
    source: str


def read_idx(path: Path) -> np.ndarray:
    """Read images (N, h, w) uint8 from a file in MNIST's idx format, compressed or not.

    Raises:
        UserError: the file cannot be read, is truncated, or has another format.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as err:
        raise UserError(f"'{path}' cannot be read: {describe(err)}") from err
    # Two zero bytes, type 8 (unsigned byte), 3 axes; then the length of each axis.
    if content[:4] != b"\0\0\x08\x03" or len(content) < 16:
        raise UserError(f"'{path}' is not an idx file of images: it must start with 00000803, not {content[:4].hex()}")
    shape = tuple(np.frombuffer(content, ">u4", 3, offset=4).tolist())
    expected = 16 + shape[0] * shape[1] * shape[2]
    if len(content) != expected or expected == 16:
        raise UserError(f"'{path}' is truncated or damaged: {len(content)} bytes, its header says {expected}")
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape)


def load_digits(folder: str | Path | None, train: bool) -> DigitImages:
    """Load the training digits (``train-images-idx3-ubyte``) or the held-out ones (``t10k-images-idx3-ubyte``).

    ``folder`` has MNIST's files, .gz or not, or is torchvision's download folder; None selects the built-in digits,
    4,000 and 1,000 of MNIST's training images.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    if folder is None:
        return DigitImages(Digits("train" if train else "validation", in_chans=1).images, "built-in")
    name = "train-images-idx3-ubyte" if train else "t10k-images-idx3-ubyte"
    paths = [Path(folder) / inner / (name + end) for inner in ("", "raw", "MNIST/raw") for end in ("", ".gz")]
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        raise UserError(f"the folder '{folder}' has no {name} or {name}.gz: put MNIST's files there, or name no folder")
    images = read_idx(path)
    known = hashlib.sha256(images.tobytes()).hexdigest() == MNIST_SHA256[train]
    return DigitImages(images, "mnist" if known else "other")


def draw_uniform(keys: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 (B, count); row b depends only on ``keys[b]``, uint64 (B,).

    SplitMix64 (Steele et al., 2014, "Fast Splittable Pseudorandom Number Generators"): number n of a key is a hash of
    key + n * gamma, so that all rows are drawn at once. One NumPy generator per row takes 50 times as long.
    """
    gamma = np.uint64(0x9E3779B97F4A7C15)
    z = keys[:, None] + gamma * np.arange(1, count + 1, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    uniform: np.ndarray = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return uniform


def move(position: np.ndarray, angle: np.ndarray, frames: int, speed: float) -> np.ndarray:
    """Positions (frames, ..., 2) in [0, 1] of digits in the frames of a sequence, the first one after one step.

    They start at ``position`` (..., 2) in the unit square and move in the direction ``angle`` (...), in radians, by
    ``speed`` in each step.
    """
    velocity = np.stack([np.sin(angle), np.cos(angle)], -1)
    path = np.empty((frames, *position.shape))
    for place in path:
        position = (position + velocity * speed).clip(0, 1)
        velocity = np.where((position <= 0) | (position >= 1), -velocity, velocity)
        place[:] = position
    return path


class MovingMNIST(SequenceDataset):
    """Sequences (T, 1, H, W) of moving digits, drawn on access.

    A sequence depends only on (seed, epoch, index), or only on its index for a fixed split: not on its batch. So the
    fixed sets take no memory, and their bytes have a checksum (``check``).

    Args:
        digits: From ``load_digits``.
        split: ``train``: new sequences in each epoch; ``validation`` and ``test``: fixed ones.
        motion: What is drawn (default: the published setting).
        num_sequences: Number of sequences, per epoch for training (default: ``NUM_SEQUENCES``).
        seed: Seed of the training sequences.

    Raises:
        UserError: frames smaller than a digit, or no sequences.
    """

    def __init__(
        self,
        digits: DigitImages,
        split: Split,
        motion: Motion | None = None,
        num_sequences: int | None = None,
        seed: int = 42,
    ) -> None:
        self.motion, self.split, self.seed = motion or Motion(), split, seed
        self._num_sequences = NUM_SEQUENCES[split] if num_sequences is None else num_sequences
        self.source, self.digits, epoch = digits.source, digits.images, 0
        if split in FIXED_SPLITS:
            self.seed, epoch = FIXED_SEED, FIXED_SPLITS.index(split)
            self.digits = self.digits[epoch :: len(FIXED_SPLITS)]
        self.name = f"generated-{split}" + ("" if self.source == "mnist" else f" of {self.source} digits")
        self.shape = (self.motion.frames, 1, *self.motion.size)
        if self._num_sequences < 1 or not len(self.digits):
            raise UserError(f"no {split} set of {self._num_sequences} sequences from {len(digits.images)} digit images")
        if min(side - digit for side, digit in zip(self.motion.size, self.digits.shape[1:], strict=True)) < 0:
            sides = "x".join(map(str, self.motion.size)), "x".join(map(str, self.digits.shape[1:]))
            raise UserError(f"frames of {sides[0]} pixels are smaller than the digits, {sides[1]}")
        # Shared memory: persistent workers see what the main process writes.
        self._epoch = torch.tensor(epoch).share_memory_()

    def __len__(self) -> int:
        return self._num_sequences

    def set_epoch(self, epoch: int) -> None:
        """See ``SequenceDataset``; the fixed splits do not change."""
        if self.split not in FIXED_SPLITS:
            self._epoch.fill_(epoch)

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Draw a batch, uint8 (B, T, 1, H, W)."""
        epoch = int(self._epoch)
        keys = np.array([derive_seed(self.seed, epoch, index) for index in indices], np.uint64)
        return torch.from_numpy(self._draw(keys)[:, :, None])

    def _draw(self, keys: np.ndarray) -> np.ndarray:
        motion, batch, digits = self.motion, len(keys), self.motion.num_digits
        # Of each digit: its image, y, x and direction.
        chosen, y, x, angle = np.moveaxis(draw_uniform(keys, 4 * digits).reshape(batch, digits, 4), -1, 0)
        path = move(np.stack([y, x], -1), 2 * np.pi * angle, motion.frames, motion.speed)
        free = np.subtract(motion.size, self.digits.shape[1:])
        # (digits, 2, B * T), the frames of a sequence in a row.
        corners = (path * free).astype(np.int64).transpose(2, 3, 1, 0).reshape(digits, 2, -1)
        images = self.digits[(chosen * len(self.digits)).astype(np.int64)]
        frames = np.zeros((batch * motion.frames, *motion.size), np.uint8)
        # All positions of a digit, as a view: one assignment draws a digit into every frame.
        places = np.lib.stride_tricks.sliding_window_view(frames, images.shape[2:], (1, 2), writeable=True)
        every = np.arange(len(frames))
        for digit, (top, left) in enumerate(corners):
            image = np.repeat(images[:, digit], motion.frames, axis=0)
            places[every, top, left] = np.maximum(places[every, top, left], image) if digit else image
        return frames.reshape(batch, motion.frames, *motion.size)

    def sha256(self) -> str:
        """Checksum of all sequences, frame after frame."""
        digest = hashlib.sha256()
        for start in range(0, len(self), BLOCK):
            digest.update(self.__getitems__(range(start, min(start + BLOCK, len(self)))).numpy().data)
        return digest.hexdigest()

    def check(self) -> bool:
        """Compare a fixed set with its recorded checksum, which takes seconds.

        Returns whether one is recorded: not for other digits, another motion or another number of sequences.

        Raises:
            UserError: the sequences are not the recorded ones.
        """
        expected = FIXED_SHA256.get((self.source, self.split))
        if expected is None or self.motion != Motion() or len(self) != NUM_SEQUENCES[self.split]:
            return False
        if (found := self.sha256()) != expected:
            raise UserError(f"the {self.name} set differs from the recorded one (SHA-256 {found}, not {expected})")
        return True


def open_official_test(path: str | Path, frames: int = 20) -> ClipSequences:
    """Open the first ``frames`` frames of the official test sequences, memory-mapped.

    The file is ``mnist_test_seq.npy``: uint8 (20, 10000, 64, 64), frames first.

    Raises:
        UserError: the file is truncated or another one.
    """
    array = read_array(Path(path))
    if array.shape != OFFICIAL_SHAPE or array.dtype != np.uint8:
        raise UserError(
            f"'{path}' is not the official test: it must be uint8 {OFFICIAL_SHAPE}, not {array.dtype} {array.shape}"
        )
    sequences = open_sequences(path, Cut(frames, stride=OFFICIAL_SHAPE[0]), layout="TNHW")
    sequences.name = "official-test"
    return sequences


def open_moving_mnist(
    split: Split,
    folder: str | Path | None = None,
    motion: Motion | None = None,
    num_sequences: int | None = None,
    seed: int = 42,
    official: str | Path | None = None,
) -> SequenceDataset:
    """Open a split of Moving MNIST; its ``name`` says which one it is.

    Args:
        split: ``train``, ``validation`` or ``test``. The test is the official one where ``folder`` has its file and
            ``motion`` and ``num_sequences`` are the official ones, otherwise a generated one.
        folder: See ``load_digits``.
        motion, num_sequences, seed: See ``MovingMNIST``.
        official: File of the official test, which must then fit.

    Raises:
        UserError: the files are missing or damaged, the motion is impossible, or ``official`` has another one.
    """
    motion = motion or Motion()
    if split == "test" and (official is not None or folder is not None):
        path = Path(folder or "") / OFFICIAL_FILE if official is None else Path(official)
        fits = motion == Motion(min(motion.frames, Motion.frames)) and num_sequences is None
        if official is not None and not fits:
            raise UserError(
                f"--official-test has {Motion.frames} frames of 64x64 pixels, with two digits at speed {Motion.speed}: "
                "leave out the options that change the test"
            )
        if fits and (official is not None or path.is_file()):
            return open_official_test(path, motion.frames)
    dataset = MovingMNIST(load_digits(folder, train=split == "train"), split, motion, num_sequences, seed)
    dataset.check()
    return dataset
