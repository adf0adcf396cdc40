"""Image folders and .tar files: find the split, scan it once, and report or refuse what is not used."""

import io
import os
import tarfile
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from timm.utils import natural_key

from wsfvit.data.digits import TEST_SPLITS, TRAIN_SPLITS
from wsfvit.data.image_files import EXTENSIONS
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import open_regular

VALIDATION_SPLITS = tuple(name for name in TEST_SPLITS if name != "test")  # synonyms, as in timm
# Readers of other data, by file suffix.
OTHER_READERS = {".parquet": "hfds/{}", ".arrow": "hfds/{}", ".tar": "wds/", ".tfrecord": "tfds/NAME"}


class FolderReader:
    """Reader of an image folder: items (open file, label), in timm's order; a class is named by the innermost folder.

    Names that begin with a dot are left out; see ``select_images`` for the arguments and errors. Without a class map,
    labels are in the natural order of the classes.
    """

    def __init__(self, root: str, class_map: Mapping[str, int] | None, types: Collection[str] = EXTENSIONS) -> None:
        self.root = root
        found = {os.path.relpath(path, root): files for path, _, files in os.walk(root, followlinks=True)}
        files, self.class_to_idx, self.notes = select_images(root, found, class_map, types)
        self.samples: list[Any] = [
            (os.path.join(root, folder, name), self.class_to_idx[os.path.basename(folder)])
            for folder, names in sorted(files.items())
            for name in sorted(names)  # file systems differ in order, and natural_key has ties
        ]
        self.samples.sort(key=lambda sample: natural_key(sample[0]))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        return open_regular(path), label

    def filename(self, index: int, absolute: bool = True) -> str:
        """The file's path."""
        return self.samples[index][0]


class TarReader(FolderReader):
    """Reader of the images inside a .tar file, which may hold .tar files of its own; see ``FolderReader``.

    They are read by their offset: timm's reader keeps the tar file open, so that workers forked after the first read
    share one file position, and opening the archive again for each image costs 0.2 ms, ten times as much.
    """

    def __init__(self, root: str, class_map: Mapping[str, int] | None, types: Collection[str] = EXTENSIONS) -> None:
        self.root = root
        with tarfile.open(root, "r:") as archive:
            members = list(_list_members(archive, "", 0))
        found: dict[str, list[str]] = {}
        for folder, name, *_ in members:
            found.setdefault(folder, []).extend([name] if name else [])
        files, self.class_to_idx, self.notes = select_images(root, found, class_map, types)
        used = {folder: set(names) for folder, names in files.items()}
        self.samples = [
            (path, self.class_to_idx[os.path.basename(folder)], offset, size)
            for folder, name, path, offset, size in members
            if name and name in used.get(folder, ())
        ]
        self.samples.sort(key=lambda sample: natural_key(sample[0]))

    def __getitem__(self, index: int) -> tuple[Any, int]:
        _, label, offset, size = self.samples[index]
        with open(self.root, "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size)), label

    def filename(self, index: int, absolute: bool = True) -> str:
        """The tar file and the member's name."""
        return f"{self.root}:{self.samples[index][0]}"


def _list_members(archive: tarfile.TarFile, prefix: str, start: int) -> Iterable[tuple[str, str, str, int, int]]:
    """(folder, file name or "" for the folder itself, path, offset, size) of a tar file's members, inner ones first."""
    own = []
    for member in archive:
        path = os.path.normpath(os.path.join(prefix, member.name))
        offset = start + member.offset_data
        if member.isdir():
            own.append((path, "", "", 0, 0))
        elif member.isfile() and path.lower().endswith(".tar"):
            with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
                yield from _list_members(inner, os.path.splitext(path)[0], offset)
        elif member.isfile():
            folder, name = os.path.split(path)
            own.append((folder or ".", name, member.name, offset, member.size))
    yield from own


def find_split(root: str, split: str) -> str:
    """The folder or .tar file of a split below ``root``, whatever the case of its name and by timm's synonyms.

    Data without any split is one for both default names, ``train`` and ``validation``. A missing split raises a
    ``UserError``.
    """
    names = (split, *next((names for names in (TRAIN_SPLITS, VALIDATION_SPLITS) if split.lower() in names), ()))
    entries = {}
    if os.path.isdir(root):
        for item in sorted(os.scandir(root), key=lambda item: item.name):
            if item.name.endswith(".tar") or (item.is_dir() and not item.name.startswith(".")):
                entries[item.name] = item.path
        below = os.path.normpath(os.path.join(root, split))
        if os.path.isdir(below) and below.startswith(os.path.join(os.path.normpath(root), "")):
            entries[split] = os.path.join(root, split)
    folded = {name.casefold(): path for name, path in entries.items()}
    wanted = (*(f"{name}.tar" for name in names), *names)
    paths = [path for name in wanted if (path := entries.get(name) or folded.get(name.casefold()))]
    same = {os.path.basename(path).removesuffix(".tar").casefold() for path in paths}
    if len(same) > 1 and split.casefold() not in same:
        raise UserError(f"the data folder '{root}' has {' and '.join(sorted(same))} for split '{split}': name one")
    if paths:
        return paths[0]
    stems = [name.removesuffix(".tar").casefold() for name in entries]
    is_divided = not {*TRAIN_SPLITS, *TEST_SPLITS}.isdisjoint(stems)
    own_name = os.path.basename(os.path.normpath(root)).removesuffix(".tar").casefold()
    if own_name in names or (split in ("train", "validation") and not is_divided):
        return root
    if os.path.isfile(root):
        raise UserError(f"'{root}' is a single split, not '{split}': pass its folder, or leave the split out")
    raise UserError(
        f"the data folder '{root}' has no folder for split '{split}', only {_shorten(entries) or 'files'}: add it, or "
        "name another split"
    )


def select_images(
    root: str, found: Mapping[str, list[str]], class_map: Mapping[str, int] | None, types: Collection[str]
) -> tuple[dict[str, list[str]], dict[str, int], list[str]]:
    """Select the images among files.

    ``found`` has every folder below ``root``, a folder or .tar file, ("." is the root) and the names of its files,
    ``types`` are file suffixes of images, and ``class_map``, class name to label, names every folder of images, and
    only folders that exist. Returns the names of the images in each folder that holds any; class name, the last part of
    a folder's path, to label; and one line per difference between the folder and what is used of it.

    Raises:
        UserError: There are no images; some are in no class folder, or in a folder of class folders; a class folder is
            empty; the folders are splits; or the class map names other classes.
    """
    files: dict[str, list[str]] = {}
    left_out: dict[str, list[str]] = {}
    folders = {folder for folder in found if folder[0] != "." and f"{os.sep}." not in folder}
    for folder, names in found.items():
        visible = folder in folders or folder == "."
        # The fast path of a million files.
        images = [name for name in names if name[name.rfind(".") :].lower() in types and name[0] != "."]
        if images and visible:
            files[folder] = images
        for name in set(names).difference(images if visible else ()):
            suffix = os.path.splitext(name)[1].lower()
            hidden = name[0] == "." or not visible
            if suffix in types or not hidden:  # other hidden files are the system's, such as .DS_Store
                left_out.setdefault("hidden" if hidden else suffix or "without suffix", []).append(f"{folder}/{name}")
    counts = [f"{len(each)} {reason} (e.g. {os.path.normpath(min(each))})" for reason, each in sorted(left_out.items())]
    if not files:
        readers = {name.format(os.path.abspath(root)) for suffix, name in OTHER_READERS.items() if suffix in left_out}
        known = f"pass --dataset {' or '.join(sorted(readers))}"
        advice = known if readers else "it needs one folder of images per class"
        raise UserError(f"'{root}' holds no images{', only ' if counts else ''}{', '.join(counts)}: {advice}")
    _check_tree(root, files)
    classes = {os.path.basename(path) for path in files}
    if class_map is None:
        tops = {path.partition(os.sep)[0] for path in files}
        if empty := sorted({path.partition(os.sep)[0] for path in folders} - tops):
            raise UserError(
                f"{len(empty)} class folders in '{root}' hold no readable type of images ({_shorten(empty)}), which "
                "would shift the labels: fill or remove them, or name the classes with --class-map"
            )
        # Sorted twice, since natural_key does not tell all names apart ("Cat" and "cat", "01" and "1").
        class_map = {name: label for label, name in enumerate(sorted(sorted(classes), key=natural_key))}
    elif (extra := classes - class_map.keys()) | (missing := class_map.keys() - {*map(os.path.basename, folders)}):
        parts = [f"it does not name the folders {_shorten(sorted(extra))}"] if extra else []
        parts += [f"there are no folders {_shorten(sorted(map(str, missing)))}"] if missing else []
        raise UserError(
            f"--class-map and the folders in '{root}' differ: {', and '.join(parts)}; correct the names (an empty "
            "folder stands for a class without images)"
        )
    notes = []
    if counts:
        notes.append(f"'{root}': {sum(map(len, files.values()))} images are used, left out: {', '.join(counts)}")
    if len(classes) < len(files):
        notes.append(f"'{root}': {len(files)} folders are joined to {len(classes)} classes by their last name")
    return files, dict(class_map), notes


def _check_tree(root: str, files: Mapping[str, list[str]]) -> None:
    """Refuse folders of images that are not clearly class folders."""
    if "." in files:
        raise UserError(
            f"{len(files['.'])} images in '{root}' are in no class folder (e.g. {min(files['.'])}): move them into one "
            "folder per class"
        )
    parents = {path[:place] for path in files for place, letter in enumerate(path) if letter == os.sep}
    if both := sorted(parents & files.keys()):
        raise UserError(
            f"'{os.path.join(root, both[0])}' holds both images and folders of images, so their class is not clear: "
            "move the images into one folder per class"
        )
    outer = {os.path.basename(path).casefold() for path in parents}
    if not outer.isdisjoint(TRAIN_SPLITS) and not outer.isdisjoint(TEST_SPLITS):
        raise UserError(f"'{root}' holds several splits ({_shorten(sorted(parents))}): pass the folder that holds them")


def _shorten(names: Collection[str]) -> str:
    names = list(names)
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
