"""Image files: find them, read them, and write two sample photographs for a first try."""

import importlib.resources
import os
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageFile, ImageOps

from wsfvit.data.decoders import convert_image
from wsfvit.utils.errors import UserError


def _openable_extensions() -> frozenset[str]:
    """Suffixes of the formats whose pixels Pillow reads."""
    Image.preinit()  # its formats stay the first that Image.open tries
    Image.init()
    formats = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if name != "MPEG" and not (isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile))
    }
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


EXTENSIONS = _openable_extensions()


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files among ``paths``, and for each folder every image file below it, sorted by path.

    In folders, names that begin with a dot are left out. A path that does not exist and a folder without images raise a
    ``UserError``.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in EXTENSIONS
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
                and file.is_file()
            )
            if not inside:
                raise UserError(f"the folder '{path}' holds no images that Pillow opens (.jpg, .png, .tif, .webp, ...)")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"'{path}' does not exist")
    return found


def read_image(path: str | os.PathLike[str], mode: str = "RGB") -> Image.Image:
    """Read an image in a PIL mode (``convert_image``), its EXIF orientation applied, or raise a ``UserError``."""
    try:
        with Image.open(path) as image:
            return convert_image(ImageOps.exif_transpose(image), mode, getattr(image, "tag_v2", None))
    # A damaged image raises any of these, depending on its format and on where the damage is.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as err:
        reason = (getattr(err, "strerror", None) or str(err) or type(err).__name__).splitlines()[0]
        # Pillow's message repeats the path.
        reason = "not a readable image" if "cannot identify" in reason else reason
        raise UserError(f"'{path}': {reason}") from err


def write_sample_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Write scikit-learn's two photographs (Creative Commons) and credits to ``folder``, or raise a ``UserError``."""
    folder = Path(folder)
    try:
        source = importlib.resources.files("sklearn.datasets.images")
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("china.jpg", "flower.jpg", "README.txt"):
            (folder / name).write_bytes((source / name).read_bytes())
    except ModuleNotFoundError as err:
        raise UserError("the sample photographs ship with scikit-learn: pip install scikit-learn") from err
    except OSError as err:
        raise UserError(f"the sample photographs cannot be written to '{folder}': {err.strerror or err}") from err
    return find_images([folder])
