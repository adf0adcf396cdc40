"""Sequences of frames, and datasets that cut them from arrays, folders of images and video files."""

import os
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from wsfvit.data.image_files import EXTENSIONS, read_image
from wsfvit.data.images import describe
from wsfvit.utils.errors import UserError
from wsfvit.video.data.video_files import VIDEO_EXTENSIONS, VideoClip

# The authors' test of Moving MNIST, (20, 10000, 64, 64): frames first.
OFFICIAL_FILE = "mnist_test_seq.npy"


def to_unit_range(frames: Tensor) -> Tensor:
    """float32 frames in [0, 1] from uint8 frames in 0..255; float32 frames are returned unchanged."""
    if frames.dtype != torch.uint8:
        return frames
    # By a tensor: CUDA multiplies by the rounded reciprocal of a Python number, and one value in three would differ.
    return frames.float().div_(torch.tensor(255.0, device=frames.device))


class SequenceDataset(Dataset[Tensor], ABC):
    """Sequences of equal length and size.

    Attributes:
        name: Name of the data, for reports.
        shape: (T, C, H, W) of each sequence.
        notes: One line for each thing that was left out, assumed or changed, for the log.
        sources: Real paths of the user's files and folders that the sequences come from.
    """

    name: str
    shape: tuple[int, int, int, int]
    notes: Sequence[str] = ()
    sources: frozenset[str] = frozenset()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """A whole batch as stored: (B, T, C, H, W), uint8 in 0..255 or float32 in [0, 1].

        Raises:
            UserError: a sequence cannot be read, or its values are out of range.
        """

    def __getitem__(self, index: int) -> Tensor:
        """One sequence: float32 (T, C, H, W) in [0, 1]."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        return to_unit_range(self.__getitems__([index])[0])

    def set_epoch(self, epoch: int) -> None:  # noqa: B027
        """Select the epoch, for data that differs between epochs; not during a pass over the data."""


class ArrayClip:
    """One sequence of an array: (T, H, W, C), uint8 in 0..255 or floating in [0, 1]; may be memory-mapped.

    It has the attributes of every clip: ``name``, for messages, ``num_frames``, and ``shape``, (C, H, W) of each frame.
    """

    def __init__(self, name: str, frames: np.ndarray) -> None:
        self.name, self._frames, self.num_frames = name, frames, len(frames)
        height, width, channels = frames.shape[1:]
        self.shape = (channels, height, width)

    def read(self, times: range) -> Tensor:
        """The frames with these indices: (len(times), C, H, W), uint8 or float32.

        Raises:
            UserError: floats outside [0, 1].
        """
        frames = self._frames[times.start : times.stop : times.step]
        if frames.dtype != np.uint8:
            frames = frames.astype(np.float32)
            if not ((frames >= 0) & (frames <= 1)).all():  # false for NaN too
                found = f"{frames.min():g} to {frames.max():g}"
                raise UserError(f"'{self.name}': floats must lie in 0..1, found {found}; scale them, or store uint8")
        return torch.tensor(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))


class ImageClip:
    """The images of a folder as one clip, in the order of the numbers in their names (2 before 10).

    1 channel reads them grey, 3 in colour. ``gap`` names the first two images that follow each other although their
    numbers do not, or is "".

    Raises:
        UserError: the first one cannot be read, or is animated.
    """

    def __init__(self, files: Sequence[Path], channels: int) -> None:
        self.name, self.num_frames = str(files[0].parent), len(files)
        self._files, self._channels = sorted(files, key=_natural_order), channels
        self.gap = _find_gap(self._files)
        height, width = self._read_file(self._files[0]).shape[1:]
        with Image.open(self._files[0]) as image:
            if image.format in ("GIF", "PNG", "TIFF", "WEBP") and getattr(image, "n_frames", 1) > 1:
                raise UserError(f"'{self._files[0]}' is animated: make it a video file, or one image per frame")
        self.shape = (channels, height, width)

    def read(self, times: range) -> Tensor:
        """See ``ArrayClip``; uint8. Images of several sizes are a UserError."""
        images = []
        for time in times:
            images.append(self._read_file(self._files[time]))
            if images[-1].shape != self.shape:
                sizes = f"{_side(self.shape)} and {_side(images[-1].shape)}"
                raise UserError(f"'{self._files[time]}': the images of a folder must have one size, found {sizes}")
        return torch.stack(images)

    def _read_file(self, file: Path) -> Tensor:
        image = read_image(file)
        return pil_to_tensor(image.convert("L") if self._channels == 1 else image).contiguous()


Clip = ArrayClip | ImageClip | VideoClip


@dataclass(frozen=True)
class Cut:
    """How clips become sequences."""

    frames: int = 20  # frames of a sequence
    step: int = 1  # frames of the clip from one frame of the sequence to the next
    # Frames of the clip from the start of one sequence to that of the next (default: no overlap).
    stride: int | None = None
    size: tuple[int, int] | None = None  # (height, width) to resize frames to; None keeps their size
    from_end: bool = False  # take only one sequence of each clip, its last frames

    def __post_init__(self) -> None:
        for name in ("frames", "step", "stride"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} of a sequence must be at least 1, not {value}")
        if self.size is not None and min(self.size) < 1:
            raise UserError(f"frames cannot be resized to {self.size[0]}x{self.size[1]}")

    @property
    def span(self) -> int:
        """Frames of the clip that one sequence spans."""
        return (self.frames - 1) * self.step + 1

    def windows(self, num_frames: int) -> list[range]:
        """Frame indices of each sequence of a clip."""
        if self.from_end:
            return [range(num_frames - self.span, num_frames, self.step)]
        stride = self.stride or self.span
        return [range(start, start + self.span, self.step) for start in range(0, num_frames - self.span + 1, stride)]


class ClipSequences(SequenceDataset):
    """Sequences cut from clips.

    Args:
        name, notes: See ``SequenceDataset``; notes on gaps in frame numbers and changed aspect ratios are added.
        clips: The clips.
        cut: How they become sequences.

    Raises:
        UserError: a clip is too short, or clips differ in size and the cut does not resize them.
    """

    def __init__(self, name: str, clips: Sequence[Clip], cut: Cut, notes: Sequence[str] = ()) -> None:
        self.name, self.clips, self.cut = name, clips, cut
        short = [clip for clip in clips if clip.num_frames < cut.span]
        if short:
            more = f", and {len(short) - 1} more clips are too short" if len(short) > 1 else ""
            raise UserError(
                f"'{short[0].name}' has {short[0].num_frames} frames, a sequence needs {cut.span}{more}: "
                f"remove them, or use fewer frames{', or check --layout' * isinstance(short[0], ArrayClip)}"
            )
        shapes = {(clip.shape[0], *(cut.size or clip.shape[1:])): clip for clip in clips}
        if len(shapes) > 1:
            (one, first), (other, second) = list(shapes.items())[:2]
            raise UserError(
                f"'{first.name}' has {_side(one)} frames of {one[0]} channels, '{second.name}' {_side(other)} of "
                f"{other[0]}: choose one size to resize them to, and one number of channels"
            )
        self.shape = (cut.frames, *next(iter(shapes)))
        self._windows = [(clip, times) for clip in clips for times in cut.windows(clip.num_frames)]
        self.notes = [*notes]
        if gaps := [clip for clip in clips if isinstance(clip, ImageClip) and clip.gap]:
            self.notes.append(
                f"{len(gaps)} of {len(clips)} folders in '{name}' are not one series of evenly numbered frames, but "
                f"one clip each, e.g. {gaps[0].gap} in '{gaps[0].name}'"
            )
        height, width = self.shape[2:]
        if squeezed := [clip for clip in clips if abs(clip.shape[2] * height / clip.shape[1] - width) > 1]:
            self.notes.append(
                f"{len(squeezed)} of {len(clips)} clips of '{name}' change their aspect ratio (height x width), e.g. "
                f"{_side(squeezed[0].shape)} to {_side(self.shape)} in '{squeezed[0].name}': choose another --size to "
                "keep it"
            )

    def __len__(self) -> int:
        return len(self._windows)

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """See ``SequenceDataset``."""
        return torch.stack([self._read(*self._windows[index]) for index in indices])

    def _read(self, clip: Clip, times: range) -> Tensor:
        frames = clip.read(times)
        if frames.shape[2:] != self.shape[2:]:
            from torchvision.transforms.v2.functional import resize

            frames = resize(frames, list(self.shape[2:]), antialias=True)
        return frames


def open_sequences(path: str | Path, cut: Cut, channels: int | None = None, layout: str | None = None) -> ClipSequences:
    """Open a user's own data.

    Args:
        path: A .npy or .npz file, a video file, a folder of videos, or a folder of images. The images in one folder, at
            any depth below ``path``, are one clip.
        cut: How clips become sequences.
        channels: 1 reads images and videos grey, 3 (the default) in colour; an array must have as many.
        layout: The axes of an array in order: T, H and W, optionally N (sequences) and C (channels); default NTHW for
            four axes and NTHWC for five, unless the array is recognised as another one (see ``notes`` of the result).

    Raises:
        UserError: nothing can be read, a folder holds both videos and images, or clips do not fit each other.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    clips: Sequence[Clip]
    notes: list[str] = []
    if not path.exists():
        raise UserError(f"'{path}' does not exist")
    if channels not in (None, 1, 3):
        raise UserError(f"'{path}': frames are read with 1 or 3 channels, not {channels}")
    if suffix in (".npy", ".npz"):
        array = read_array(path)
        if not layout and array.ndim in (4, 5) and array.size:
            layout, note = _guess_layout(path, array)
            notes.append(note)
        clips = _array_clips(path, array, layout)
        if channels not in (None, clips[0].shape[0]):
            raise UserError(f"'{path}' has {clips[0].shape[0]} channels, not {channels}")
        clips[0].read(range(1))  # floats out of range show now, not in the first epoch
    elif layout:
        raise UserError(f"only .npy and .npz files have a layout, not '{path}'")
    elif path.is_dir():
        clips = _folder_clips(path, channels or 3, notes)
    elif suffix in VIDEO_EXTENSIONS:
        clips = [VideoClip(path, channels or 3)]
    else:
        raise UserError(f"'{path}': give a folder, .npy, .npz or a video ({', '.join(sorted(VIDEO_EXTENSIONS))})")
    sequences = ClipSequences(path.name, clips, cut, notes)
    files = [str(path)] if isinstance(clips[0], ArrayClip) else [clip.name for clip in clips]
    sequences.sources = frozenset(map(os.path.realpath, files))
    return sequences


def read_array(path: Path) -> np.ndarray:
    """Open the array of a .npy file, memory-mapped, or read that of a .npz file.

    Raises:
        UserError: the file is damaged or truncated, or does not hold one array of uint8 or floats.
    """
    try:
        content: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(content, np.ndarray):
            with content:
                if len(content.files) != 1:
                    raise UserError(f"'{path}' must hold one array, found {', '.join(content.files) or 'none'}")
                content = content[content.files[0]]
    except (OSError, ValueError, EOFError, SyntaxError, zipfile.BadZipFile, zlib.error) as err:
        raise UserError(f"'{path}' is truncated or not an array of numbers ({describe(err)})") from err
    if content.dtype != np.uint8 and not np.issubdtype(content.dtype, np.floating):
        raise UserError(f"'{path}' holds {content.dtype}: store frames as uint8 (0..255) or floats (0..1)")
    array: np.ndarray = content
    return array.view(np.ndarray)


def _array_clips(path: Path, array: np.ndarray, layout: str | None) -> list[ArrayClip]:
    layout = (layout or {4: "NTHW", 5: "NTHWC"}.get(array.ndim, "")).upper()
    if not set("THW") <= set(layout) <= set("NTCHW") or len(set(layout)) != len(layout) or len(layout) != array.ndim:
        raise UserError(
            f"'{path}' has shape {array.shape}: give the layout of its {array.ndim} axes, e.g. NTHW or TNHW; "
            f"'{layout}' does not fit"
        )
    array = array.transpose([layout.index(axis) for axis in "NTHWC" if axis in layout])
    array = array if "N" in layout else array[None]
    array = array if "C" in layout else array[..., None]
    if not array.size:
        raise UserError(f"'{path}' has shape {array.shape}: it is empty")
    if array.shape[-1] not in (1, 3):
        raise UserError(f"'{path}' has {array.shape[-1]} channels as {layout}, not 1 or 3: check the layout")
    return [ArrayClip(f"{path}, sequence {index}", frames) for index, frames in enumerate(array)]


def _guess_layout(path: Path, array: np.ndarray) -> tuple[str, str]:
    """Layout of an array of four or five axes, and a line that names it and the other one.

    Frames that follow each other differ less than frames of two sequences: that tells T from N. Where it does not, the
    name of the official test decides, then the default.
    """
    first, other = array.shape[-1] in (1, 3), array.shape[-3] in (1, 3)  # C is the last axis, or before H and W
    if array.ndim == 4 and first:
        return "THWC", f"'{path}' {array.shape} is read as THWC, one sequence: --layout chooses other axes"
    rest = "HW" if array.ndim == 4 else "CHW" if other and not first else "HWC"
    height, width = (max(1, array.shape[2 + rest.index(axis)] // 64) for axis in "HW")
    steps = {"H": height, "W": width, "C": 1}
    part = array[(slice(8), slice(8), *(slice(None, None, steps[axis]) for axis in rest))].astype(np.float32)
    along = [float(np.abs(np.diff(part, axis=axis)).mean()) if part.shape[axis] > 1 else np.inf for axis in (0, 1)]
    swapped = along[0] < 0.8 * along[1] or (path.name == OFFICIAL_FILE and along[0] * 0.8 <= along[1])
    taken, left = ("TN", "NT") if swapped and array.shape[0] <= array.shape[1] else ("NT", "TN")
    count, frames = array.shape[taken.index("N")], array.shape[taken.index("T")]
    return taken + rest, (
        f"'{path}' {array.shape} is read as {taken}{rest}, {count} sequences of {frames} frames: pass --layout "
        f"{left}{rest} if it is the other way round"
    )


def _folder_clips(path: Path, channels: int, notes: list[str]) -> list[Clip]:
    """Clips of a folder; what is left out is added to ``notes``."""
    images, videos, others = list[Path](), list[Path](), list[Path]()
    for file in sorted(_scan(path)):
        suffix = file.suffix.lower()
        readable = (suffix in EXTENSIONS or suffix in VIDEO_EXTENSIONS) and file.is_file()
        (others if not readable else images if suffix in EXTENSIONS else videos).append(file)
    if not images and not videos:
        found = f"; found {len(others)} other files, e.g. '{others[0]}'" if others else ""
        raise UserError(f"the folder '{path}' holds no images ({', '.join(sorted(EXTENSIONS))}) and no videos{found}")
    if images and videos:
        raise UserError(
            f"the folder '{path}' holds {len(videos)} videos, e.g. '{videos[0]}', and {len(images)} images, e.g. "
            f"'{images[0]}': keep only one kind in it"
        )
    if others:
        notes.append(f"{len(others)} files in '{path}' are not readable as images or videos, e.g. '{others[0]}'")
    folders: dict[Path, list[Path]] = {}
    for file in images:
        folders.setdefault(file.parent, []).append(file)
    clips: list[Clip] = [ImageClip(files, channels) for files in folders.values()]
    return clips or [VideoClip(file, channels) for file in videos]


def _scan(path: Path) -> Iterator[Path]:
    """Files at any depth; links are followed, no folder is visited twice, names that begin with a dot are left out."""

    def refuse(err: OSError) -> None:
        raise UserError(f"'{err.filename}' cannot be read: {err.strerror}")

    seen = set()
    for folder, folders, names in os.walk(path, onerror=refuse, followlinks=True):
        again = (real := os.path.realpath(folder)) in seen
        seen.add(real)
        folders[:] = [] if again else sorted(name for name in folders if not name.startswith("."))
        yield from () if again else (Path(folder, name) for name in names if not name.startswith("."))


def _find_gap(files: Sequence[Path]) -> str:
    """The first two of ordered images whose numbers do not differ by the smallest step between others, or ""."""
    names = [re.split(r"(\d+)", file.stem) for file in files]  # text and numbers in turn
    if all(len(name) == 1 for name in names):
        return ""  # names without numbers have no gaps
    steps = [_step(*pair) for pair in pairwise(names)]
    usual = min((step for step in steps if step), default=())
    index = next((index for index, step in enumerate(steps) if step != usual), None)
    return "" if index is None else f"'{files[index].name}' before '{files[index + 1].name}'"


def _step(one: Sequence[str], other: Sequence[str]) -> tuple[int, int] | None:
    """Difference and place of the only number in which two names differ; None if more differs."""
    differ = [place for place, (a, b) in enumerate(zip_longest(one, other)) if a != b]
    if len(differ) != 1 or differ[0] % 2 == 0:
        return None
    return int(other[differ[0]]) - int(one[differ[0]]), differ[0]


def _natural_order(file: Path) -> list[tuple[int, str]]:
    """Sort key of a name that compares runs of digits as numbers."""
    return [(int(part or 0), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", file.name)]


def _side(shape: Sequence[int]) -> str:
    return f"{shape[-2]}x{shape[-1]}"
