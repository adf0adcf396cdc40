"""Video files, read and written with the optional package PyAV."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsfvit.data.images import describe
from wsfvit.utils.errors import UserError, import_optional
from wsfvit.utils.files import write_atomic
from wsfvit.utils.limits import check_pixels

VIDEO_EXTENSIONS = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


# Names of FFmpeg's readers of them.
FORMATS = "avi,gif,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegts,mpegvideo"


class VideoClip:
    """The frames of a video file, decoded on access and not rotated by a rotation tag.

    The attributes are those of ``ArrayClip``; 1 channel reads it grey, 3 in colour.

    Raises:
        UserError: PyAV is not installed, or the file cannot be read as a video.
    """

    def __init__(self, path: Path, channels: int) -> None:
        self.name, self._path, self._channels = str(path), path, channels
        av = import_av()
        try:
            with self._open() as container:
                stream = container.streams.video[0]
                check_pixels((stream.height, stream.width), 1, f"'{path}' has frames of")
                self.shape = (channels, stream.height, stream.width)
                # Each frame's time stamp from the packets alone: nothing is decoded. Packets come in decoding order.
                stamps = [packet.pts for packet in container.demux(stream) if packet.size]
        except (av.error.FFmpegError, AttributeError, IndexError) as err:  # a stream of no known codec has no size
            raise UserError(f"'{path}' cannot be read as a video ({describe(err)})") from err
        if None in stamps or len(set(stamps)) != len(stamps):
            raise UserError(f"'{path}': its frames have no unique time stamps: convert it, e.g. to .mp4")
        self._stamps: list[int] = sorted(stamps)
        self.num_frames = len(stamps)

    def _open(self) -> Any:
        """The container, of the formats of a video alone: a playlist would open other files or addresses."""
        allowed = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        return import_av().open(f"file:{self._path}", options=allowed)

    def read(self, times: range) -> Tensor:
        """The frames with these indices, uint8 (len(times), C, H, W).

        Raises:
            UserError: the file is damaged there.
        """
        av = import_av()
        wanted = {self._stamps[time] for time in times}
        found: dict[int, np.ndarray] = {}
        try:
            with self._open() as container:
                stream = container.streams.video[0]
                container.seek(min(wanted), stream=stream)  # to the key frame before it
                for frame in container.decode(stream):
                    if frame.pts in wanted:
                        found[frame.pts] = frame.to_ndarray(format="gray" if self._channels == 1 else "rgb24")
                    if len(found) == len(wanted):
                        break
        except av.error.FFmpegError as err:
            raise UserError(f"'{self.name}' is damaged: {describe(err)}") from err
        if len(found) < len(wanted):
            raise UserError(f"'{self.name}' is damaged: {len(wanted) - len(found)} frames cannot be decoded")
        pixels = np.stack([found[stamp] for stamp in sorted(found)])
        return torch.from_numpy(pixels.reshape(len(pixels), *self.shape[1:], self.shape[0])).permute(0, 3, 1, 2)


def write_mp4(path: Path, images: Sequence[np.ndarray], fps: float) -> None:
    """Write an H.264 video, atomically.

    Args:
        path: The file.
        images: Frames (H, W, 3) uint8 of one size; H.264 has even sides only: an odd one loses its last row or column.
        fps: Frames per second.

    Raises:
        UserError: PyAV is not installed, or the file cannot be written.
    """
    av = import_av()
    height, width = (side - side % 2 for side in images[0].shape[:2])

    def write(file: Any) -> None:
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=round(fps), options={"crf": "16"})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for image in images:
                pixels = np.ascontiguousarray(image[:height, :width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())

    write_atomic(path, write)


def import_av() -> Any:
    """Import PyAV, or raise a ``UserError`` that says how to install it."""
    return import_optional("av", "video files need PyAV: pip install av")
