"""The models that a validation evaluates."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.utils import natural_key

import wsfvit  # noqa: F401  importing the package registers its models with timm
from wsfvit.utils.errors import UserError

CHECKPOINT_SUFFIXES = (".pth.tar", ".pth", ".pt", ".safetensors")


class Job(NamedTuple):
    """One model to evaluate: its name ("": the checkpoint's) and its checkpoint ("": pretrained weights)."""

    model: str
    checkpoint: str


def list_jobs(name: str, checkpoint: str, log: Callable[[str], None] = print) -> tuple[bool, list[Job]]:
    """Whether ``--model`` and ``--checkpoint`` ("" if not given) name several models, and the models.

    ``log`` receives a line for each file of a folder that is skipped as a copy. Names of nothing that can be evaluated
    raise a ``UserError``.
    """
    if checkpoint and Path(checkpoint).is_dir():
        return True, [Job(name, str(path)) for path in _list_checkpoints(Path(checkpoint), log)]
    names = _list_models(name)
    if names is None:
        if not name and not checkpoint:
            raise UserError("nothing to evaluate: pass --checkpoint PATH, or --model NAME for its pretrained weights")
        return False, [Job(name, checkpoint)]
    if checkpoint:
        raise UserError(f"--model {name} names several models, --checkpoint {checkpoint} holds the weights of one")
    return True, [Job(model, "") for model in names]


def _list_models(name: str) -> list[str] | None:
    """The models that a pattern, a file or "all" stands for; None for a single name."""
    if timm.is_model(name):
        return None
    if Path(name).is_file():
        try:
            names = [line.strip() for line in Path(name).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as err:
            raise UserError(f"--model {name} is not a text file of model names; weights go to --checkpoint") from err
        if not names:
            raise UserError(f"--model {name}: the file names no model")
        return names
    if name != "all" and not set("*?[") & set(name):
        return None
    names = timm.list_models("" if name == "all" else name, pretrained=True)
    if not names:
        raise UserError(f"--model {name}: no model of that pattern has pretrained weights; pass --checkpoint FOLDER")
    return names


def _list_checkpoints(folder: Path, log: Callable[[str], None]) -> list[Path]:
    """The checkpoints of a folder in natural order, each content once."""
    paths = [path for path in folder.iterdir() if path.name.endswith(CHECKPOINT_SUFFIXES) and path.is_file()]
    paths = sorted((path for path in paths if not path.name.startswith(".")), key=lambda path: natural_key(path.name))
    if not paths:
        raise UserError(f"--checkpoint {folder} holds no file that ends in {', '.join(CHECKPOINT_SUFFIXES)}")
    sizes = Counter(path.stat().st_size for path in paths)
    first: dict[Any, Path] = {}
    for path in paths:
        stat = path.stat()
        # A run folder has several names for one file; copies of the same size are told apart by their content.
        if (stat.st_dev, stat.st_ino) in first:
            key: Any = (stat.st_dev, stat.st_ino)
        elif sizes[stat.st_size] > 1:
            with open(path, "rb") as file:
                key = hashlib.file_digest(file, "sha256").digest()
        else:
            key = path
        twin = first.setdefault(key, path)
        first.setdefault((stat.st_dev, stat.st_ino), twin)
        if twin != path:
            log(f"{path.name} is the same as {twin.name}")
    return list(dict.fromkeys(first.values()))
