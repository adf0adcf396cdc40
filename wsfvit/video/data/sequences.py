"""Sequences of frames, and datasets that cut them from arrays, folders of images and video files."""

import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from wsfvit.data.image_files import EXTENSIONS, find_images, read_image
from wsfvit.data.images import describe
from wsfvit.utils.errors import UserError
from wsfvit.video.data.video_files import VIDEO_EXTENSIONS, VideoClip


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
    """

    name: str
    shape: tuple[int, int, int, int]

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
    """One sequence of an array, with the attributes of every clip.

    Args:
        name: For messages.
        frames: (T, H, W, C), uint8 in 0..255 or floating in [0, 1]; may be memory-mapped.

    Attributes:
        name: For messages.
        num_frames: Number of frames.
        shape: (C, H, W) of each frame.
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

    Args:
        files: The images.
        channels: 1 reads them grey, 3 in colour.
    """

    def __init__(self, files: Sequence[Path], channels: int) -> None:
        self.name, self.num_frames = str(files[0].parent), len(files)
        self._files, self._channels = sorted(files, key=_natural_order), channels
        height, width = self._read_file(self._files[0]).shape[1:]
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
    """How clips become sequences.

    Attributes:
        frames: Frames of a sequence.
        step: Frames of the clip from one frame of the sequence to the next.
        stride: Frames of the clip from the start of one sequence to that of the next (default: no overlap).
        size: (height, width) to resize frames to; None keeps their size.
        from_end: Take only one sequence of each clip, its last frames.
    """

    frames: int = 20
    step: int = 1
    stride: int | None = None
    size: tuple[int, int] | None = None
    from_end: bool = False

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
        name: Name of the data, for reports.
        clips: The clips.
        cut: How they become sequences.

    Raises:
        UserError: a clip is too short, or clips differ in size and the cut does not resize them.
    """

    def __init__(self, name: str, clips: Sequence[Clip], cut: Cut) -> None:
        self.name, self.clips, self.cut = name, clips, cut
        short = [clip for clip in clips if clip.num_frames < cut.span]
        if short:
            more = f", and {len(short) - 1} more clips are too short" if len(short) > 1 else ""
            raise UserError(
                f"'{short[0].name}' has {short[0].num_frames} frames, a sequence needs {cut.span}{more}: "
                "remove them, or use fewer frames"
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
            four axes and NTHWC for five.

    Raises:
        UserError: nothing can be read, or clips do not fit each other.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    clips: Sequence[Clip]
    if not path.exists():
        raise UserError(f"'{path}' does not exist")
    if channels not in (None, 1, 3):
        raise UserError(f"'{path}': frames are read with 1 or 3 channels, not {channels}")
    if suffix in (".npy", ".npz"):
        clips = _array_clips(path, read_array(path), layout)
        if channels not in (None, clips[0].shape[0]):
            raise UserError(f"'{path}' has {clips[0].shape[0]} channels, not {channels}")
        clips[0].read(range(1))  # floats out of range show now, not in the first epoch
    elif layout:
        raise UserError(f"only .npy and .npz files have a layout, not '{path}'")
    elif path.is_dir():
        clips = _folder_clips(path, channels or 3)
    elif suffix in VIDEO_EXTENSIONS:
        clips = [VideoClip(path, channels or 3)]
    else:
        raise UserError(f"'{path}': give a folder, .npy, .npz or a video ({', '.join(sorted(VIDEO_EXTENSIONS))})")
    return ClipSequences(path.name, clips, cut)


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


def _folder_clips(path: Path, channels: int) -> list[Clip]:
    videos = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in VIDEO_EXTENSIONS - EXTENSIONS]
    if videos:
        return [VideoClip(file, channels) for file in videos]
    folders: dict[Path, list[Path]] = {}
    for file in find_images([path]):
        folders.setdefault(file.parent, []).append(file)
    return [ImageClip(files, channels) for files in folders.values()]


def _natural_order(file: Path) -> list[tuple[int, str]]:
    """Sort key of a name that compares runs of digits as numbers."""
    return [(int(part or 0), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", file.name)]


def _side(shape: Sequence[int]) -> str:
    return f"{shape[-2]}x{shape[-1]}"
