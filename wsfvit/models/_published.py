"""Files of the WSF-ViT release, and the cache in which `pretrained=True` looks for weights.

`wsfvit weights get NAME` (wsfvit/checkpoint/weights.py) fetches and checks NAME.pth or NAME.safetensors, and writes its
SHA-256 to NAME.pth.sha256; nothing here uses the network. Sizes and hashes of the release are not known.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch

from wsfvit.utils.errors import UserError


class PublishedFile(NamedTuple):
    """Google Drive id of a file, and the published figures of its model on ImageNet-1k, COCO or Moving MNIST."""

    drive_id: str
    params: float  # in millions
    macs: float  # in G
    figures: str

    @property
    def url(self) -> str:
        """Page of the file on Google Drive."""
        return f"https://drive.google.com/file/d/{self.drive_id}/view"


_FILES: dict[str, tuple[str, float, float, str]] = {
    "wsfvit_p1_224": ("1qy1fOaXMjIBR1brwZ39x26c7H9hWdKAl", 5.0, 1.04, "top-1 79.4"),
    "wsfvit_p2_224": ("1O11PYA3KVq-k9loP1DOGmZH0hta3bRdc", 6.0, 1.35, "top-1 80.8"),
    "wsfvit_n_224": ("12B2cATh5tiPz6Oh1Ww3ozv6Cf3ApDyCo", 10.6, 1.97, "top-1 82.2"),
    "wsfvit_t_224": ("1i5XdYL0hav53-Avq3pzkEyuuL3QwpcLm", 23.3, 4.6, "top-1 84.2"),
    "wsfvit_s_224": ("1H7jGSuBTLOiKPABwzq1VtEq_OPovnhYj", 41.7, 7.5, "top-1 84.7"),
    "wsfvit_m_224": ("1y9LDTL8anAEqVBqnZvFaJMtOw3z8LRpz", 69.7, 12.4, "top-1 85.3"),
    "wsfvit_b_224": ("1bhsWi7GpP1p7off83FOPFi8_492EbzT3", 100.0, 17.0, "top-1 85.5"),
    "wsfvit_b_256": ("1sGRFU1SAVIvcyCR0-7io1spqUQe5lUGq", 100.0, 22.2, "top-1 85.8"),
    "wsfvit_t_384": ("13uOPDiZBRvKQ8Wqtxv6x9o_Qq8usG4aN", 23.3, 14.1, "top-1 85.3"),
    "wsfvit_s_384": ("1nBiqod8RU3ru7XL4CYF-AVuW0Agjc3i5", 41.8, 22.9, "top-1 85.8"),
    "wsfvit_m_384": ("1XC7FJmMY4nNF-_4lu7CpG_WqHMPyqVGW", 69.7, 37.8, "top-1 86.2"),
    "wsfvit_b_384": ("1bZCufXSoQIChbCCo4W9ZAmfMOT3cx3z9", 100.0, 51.7, "top-1 86.3"),
    "mask_rcnn_wsfvit_t": ("1h0E4pVdz3QOiT_5eg46FPd5kc7Yr3NBt", 42.7, 254.6, "box AP 48.6, mask AP 43.7"),
    "cascade_wsfvit_t": ("1XS2FZre0QcdbC4teWoDZBt9IDOvBjJfu", 80.5, 733, "box AP 52.3, mask AP 45.2"),
    "cascade_wsfvit_s": ("1QvN5exdoPUH-aseNuf2oBudX5RbbKWrs", 98.9, 788, "box AP 53.2, mask AP 46.0"),
    "cascade_wsfvit_m": ("1521Uu4TtgDfMaVdH2cIEtya_8L0Xu0YS", 126.7, 885, "box AP 53.6, mask AP 46.4"),
    "simvp_wsfvit_200ep": ("1yAO4uUK1H9ir9BuR3GYb3roiuz2RZr54", 37.6, 14.0, "MSE 25.68, MAE 75.59, SSIM 0.9317"),
    "simvp_wsfvit_2000ep": ("1TZyKG5IfOzNArwJy6GJwdILiHZxSY0fW", 37.6, 14.0, "MSE 16.37, MAE 53.57, SSIM 0.9579"),
}
PUBLISHED = {name: PublishedFile(*row) for name, row in _FILES.items()}


def cache_dir() -> Path:
    """Folder of the cached files in torch.hub's, which `TORCH_HOME` moves; it may not exist."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "wsfvit"


def find_cached(name: str) -> Path | None:
    """The cached file of a name, or None."""
    return next(filter(Path.is_file, (cache_dir() / f"{name}{suffix}" for suffix in (".pth", ".safetensors"))), None)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_pretrained(name: str) -> Path:
    """The cached weights of a model; a UserError if there are none, or not those whose SHA-256 was recorded."""
    path = find_cached(name)
    if path is None:
        command = f"wsfvit weights get {'' if name in PUBLISHED else 'SOURCE --model '}{name}"
        raise UserError(f"no pretrained weights for {name} in the cache: fetch them with {command}")
    record = Path(f"{path}.sha256")
    if record.is_file() and record.read_text(errors="replace").split(" ")[0] != sha256_of(path):
        raise UserError(f"'{path}' has changed: its SHA-256 is not the recorded one; remove it and fetch it again")
    return path
