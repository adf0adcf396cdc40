"""``wsfvit weights``: list the files of the WSF-ViT release, fetch them into the cache, and check them."""

import argparse
import hashlib
import importlib
import os
import re
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import timm
from tqdm import tqdm

from wsfvit.checkpoint.io import load_checkpoint
from wsfvit.models._published import PUBLISHED, cache_dir, find_cached, find_pretrained, sha256_of
from wsfvit.utils.errors import UserError, did_you_mean, import_optional
from wsfvit.utils.files import make_folder, write_text_atomic
from wsfvit.utils.tables import markdown_table

_DRIVE = re.compile(r"https?://(?:drive|docs)\.google\.com/.*(?:/d/|[?&]id=)([\w-]+)")
_HUB = re.compile(r"hf://([^/]+/[^/]+)/(.+)")


def run_weights(args: argparse.Namespace) -> None:
    """Run ``wsfvit weights`` with its parsed arguments."""
    if args.action == "get":
        get_weights(args.source or "", args.model, args.force)
        return
    rows = []
    for name, file in PUBLISHED.items():
        path = find_cached(name)
        cached = "no" if path is None else "yes" if Path(f"{path}.sha256").is_file() else "unchecked"
        rows.append([name, str(file.params), str(file.macs), file.figures, file.drive_id, cached])
    print(markdown_table(["file", "params (M)", "MACs (G)", "published figures", "Google Drive id", "cached"], rows))
    print(f"wsfvit weights get NAME fetches a file into {cache_dir()}; other wsfvit models have none")


def get_weights(source: str, model: str | None = None, force: bool = False) -> Path:
    """Fetch weights into the cache unless they are there (or with ``force``), check them, and return their path.

    ``source`` is the name of a published file; with ``model``, such a name or a registered model of this package, also
    a URL, hf://OWNER/REPO/FILE or a path. An interrupted download is continued. An unknown name, a failed download, and
    a file that is damaged, changed or does not fit the model raise a ``UserError``.
    """
    name, source = _resolve(source, model)
    make_folder(cache_dir())
    cached = not force and find_cached(name) is not None
    print(f"{name} is in the cache (--force fetches it again)" if cached else f"fetching {source}", flush=True)
    path = part = find_pretrained(name) if cached else _fetch(name, source)
    try:
        checked = _check(name, part)
    except UserError as err:
        if not cached:
            part.unlink()  # else the next attempt would continue it
        raise UserError(f"{source} is refused: {err}") from err
    digest = sha256_of(part)
    if not cached:
        path = cache_dir() / f"{name}{part.suffix}"
        os.replace(part, path)
        for old in {*cache_dir().glob(f"{name}.*")} - {path}:  # in the other format, and records
            old.unlink()
    write_text_atomic(f"{path}.sha256", f"{digest}  {path.name}\n")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, SHA-256 {digest}, {checked}")
    return path


def _resolve(source: str, model: str | None) -> tuple[str, str]:
    """The name that weights are cached under, and where they are."""
    known = {*PUBLISHED, *(n for n in timm.list_models() if timm.model_entrypoint(n).__module__.startswith("wsfvit."))}
    name = model or source
    if source in PUBLISHED and name == source:
        return name, PUBLISHED[name].url
    if source and model in known:
        return name, source
    if model is None and (source in known or "/" in source or os.path.exists(source)):
        raise UserError(f"'{source}' is not in the list of published files: pass SOURCE --model NAME for others")
    raise UserError(f"unknown name '{name}'{did_you_mean(name, known, otherwise=': wsfvit weights lists the files')}")


def _check(name: str, path: Path) -> str:
    """Check a downloaded file and return a description of the check; a file that fails it raises a ``UserError``."""
    with open(path, "rb") as file:
        head = file.read(512).lstrip().lower()
    if not head or head.startswith((b"<!doctype", b"<html")):
        raise UserError("it is empty or a web page (log in, confirm?): fetch it with a browser, and pass that file")
    if name.startswith(("mask_rcnn_", "cascade_")):
        return "not loaded: the names of mmdet's parameters are not converted"
    if name.startswith("simvp_"):  # by name: imports run one way, and that package stands above this one
        importlib.import_module("wsfvit.video.checkpoint").load_model(path)
    else:
        load_checkpoint(timm.create_model(name), path, use_ema=True)  # the EMA, as timm
    return "loads strictly"


def _fetch(name: str, source: str) -> Path:
    """Download or copy a file beside the cached ones, continuing an earlier attempt; any failure is a ``UserError``."""
    suffix = ".safetensors" if ".safetensors" in source else ".pth"
    part = cache_dir() / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:8]}.part{suffix}"
    drive, hub = _DRIVE.match(source), _HUB.match(source)
    extra = "huggingface_hub" if hub else "gdown" if drive else ""
    client: Any = import_optional(extra, f"{source} needs {extra}: pip install 'wsfvit[hub]'") if extra else None
    try:
        if hub:
            shutil.copyfile(client.hf_hub_download(*hub.groups()), part)
        elif drive and not (part.exists() or client.download(id=drive[1], output=str(part), resume=True)):
            raise OSError("the reason is above")  # gdown has a partial file of its own: the part is complete
        elif source.startswith(("http://", "https://")) and not drive:
            _fetch_url(source, part)
        elif not drive:
            shutil.copyfile(source, part)
    except Exception as err:  # hub clients raise types of their own
        if getattr(err, "code", None) == 416:  # nothing follows the part: it is complete, or of another file
            part.unlink()
        reason = f"{type(err).__name__}: {' '.join(str(err).split())[:300]}"
        raise UserError(f"cannot fetch {source} ({reason}){'; repeat to continue' if part.exists() else ''}") from err
    return part


def _fetch_url(url: str, part: Path) -> None:
    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "wsfvit"} | ({"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        done = done if answer.status == 206 else 0  # a server may send all of it
        total = done + int(length) if (length := answer.headers["Content-Length"]) else None
        reader = tqdm.wrapattr(answer, "read", total, initial=done, disable=None)
        with reader as body, open(part, "ab" if done else "wb") as file:
            shutil.copyfileobj(body, file)
    if total not in (None, part.stat().st_size):
        raise ConnectionError(f"{part.stat().st_size} of {total} bytes arrived")
