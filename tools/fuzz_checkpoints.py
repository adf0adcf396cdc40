"""Fuzz the checkpoint loader with damaged and malicious files.

    python -m tools.fuzz_checkpoints --count 1000 --out results/robustness/checkpoints.json

Each file must load bit-equal content or end in one line, within 1 GB and 10 seconds (``tools.sandbox``), and must never
run code: malicious ones would create a file if they did, and small ones claim large models, images and weights. Damaged
files have formats with a checksum (a sealed checkpoint, a plain ``torch.save`` archive, a .safetensors with its .json);
raw and legacy pickles have none and are malicious only.

Prints the counts by kind, format and outcome, --out writes them as JSON; exit code 1 if a file did not end so. Takes
two minutes for 1000 files.
"""

import argparse
import hashlib
import importlib
import io
import itertools
import json
import operator
import os
import pickle
import random
import shutil
import subprocess
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image

from benchmarks.common import add_out, build_parser, write_run
from tools.kill_resume import first_difference
from tools.sandbox import CANARY, Sandbox
from wsfvit.checkpoint.io import load_state_dict_file, save_atomic
from wsfvit.utils.errors import run_main
from wsfvit.utils.tables import markdown_table
from wsfvit_cli import dispatch

GOOD = ("intact", "refused")
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One file that was tried. ``outcome``: intact, refused, altered, or one of `tools.sandbox.Ending`."""

    kind: str
    base: str
    outcome: str
    message: str


class Gadget:
    """Unpickling it calls ``function``."""

    def __init__(self, function: Any, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.call


def gadgets(canary: Path) -> dict[str, Gadget]:
    """Objects that create ``canary`` when they are unpickled without restrictions."""
    code, name = f"open({str(canary)!r}, 'w')", str(canary)
    inner = Gadget(os.mkdir, name)
    load = partial(torch.load, weights_only=False)
    return {
        "os.system": Gadget(os.system, f"touch '{canary}'"),
        "os.mkdir": inner,
        "eval": Gadget(eval, code),
        "exec": Gadget(exec, code),
        "subprocess": Gadget(subprocess.call, ["touch", name]),
        "getattr": _apply(Gadget(getattr, Gadget(importlib.import_module, "os"), "mkdir"), name),
        "methodcaller": _apply(operator.methodcaller("mkdir"), canary),
        "partial": _apply(partial(os.mkdir), name),
        "pickle.loads": Gadget(pickle.loads, pickle.dumps(inner)),
        "torch.load": _apply(load, io.BytesIO(_saved(inner))),
    }


def _apply(function: object, argument: object) -> Gadget:
    """Call a function that is known only while unpickling."""
    return Gadget(list, Gadget(map, function, [argument]))


def _saved(content: object, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def make_weights(seed: int) -> Weights:
    """A small state dict of several dtypes and shapes, tied weights and an empty tensor among them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {f"blocks.{i}.weight": torch.randn(8, 4 + i, generator=generator) for i in range(6)}
    weights |= {f"blocks.{i}.half": torch.randn(64, generator=generator).bfloat16() for i in range(3)}
    weights["head.weight"] = weights["blocks.0.weight"]
    return weights | {"norm.num_batches_tracked": torch.tensor(7), "none": torch.empty(0, 3)}


def make_bases(folder: Path, weights: Weights) -> dict[str, Path]:
    """One good file of each format that carries a checksum."""
    state = {"state_dict": weights, "epoch": 3, "metric": 71.5, "args": {"lr": 1e-3, "opt": "adamw"}}
    paths = {
        "sealed": folder / "sealed.pth.tar",
        "plain": folder / "plain.pth.tar",
        "safetensors": folder / "w.safetensors",
    }
    save_atomic(state, paths["sealed"])
    paths["plain"].write_bytes(_saved(state))
    distinct = {key: value.clone() for key, value in weights.items()}  # safetensors refuses shared memory
    write_safetensors(distinct, paths["safetensors"], {"arch": "test_vit"})
    return paths


def write_safetensors(weights: Mapping[str, torch.Tensor], path: Path, config: dict[str, object]) -> None:
    """Write released weights: a .safetensors file, and beside it a .json with ``config`` and the weights' SHA-256."""
    blob = safetensors.torch.save({key: value.contiguous() for key, value in weights.items()})
    path.write_bytes(blob)
    described = {**config, "sha256": hashlib.sha256(blob).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(described))


def flip_bits(blob: bytes, rng: random.Random, most: int = 8) -> bytes:
    """One to ``most`` bits flipped."""
    changed = bytearray(blob)
    for _ in range(rng.randint(1, most)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(blob: bytes, rng: random.Random) -> bytes:
    """The beginning of the file."""
    return blob[: rng.randrange(len(blob))]


def splice(blob: bytes, rng: random.Random) -> bytes:
    """A piece of the file over, or into, another place of it; or a piece left out."""
    length = rng.randint(1, min(400, len(blob) // 4))
    source, target = rng.randrange(len(blob) - length), rng.randrange(len(blob) - length)
    piece = blob[source : source + length] if rng.random() < 0.8 else b""
    skipped = length if rng.random() < 0.7 or not piece else 0
    return blob[:target] + piece + blob[target + skipped :]


def exchange_records(blob: bytes, rng: random.Random) -> bytes:
    """Two equally long records of an archive exchanged: with right CRCs in a sealed file, with wrong ones elsewhere."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        infos = [info for info in archive.infolist() if "/data/" in info.filename and info.file_size]
        first = rng.choice([a for a in infos if any(a is not b and a.file_size == b.file_size for b in infos)])
        second = rng.choice([b for b in infos if b is not first and b.file_size == first.file_size])
        content = {info.filename: archive.read(info) for info in archive.infolist()}
        comment = archive.comment
    one, other = content[first.filename], content[second.filename]
    if not comment:
        return blob.replace(one, b"\0" * len(one)).replace(other, one)
    content[first.filename], content[second.filename] = other, one
    rebuilt = io.BytesIO()
    with zipfile.ZipFile(rebuilt, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.comment = comment
    return rebuilt.getvalue()


def write_hostile(path: Path, weights: Weights, gadget: Gadget, rng: random.Random) -> str:
    """Writes a checkpoint with ``gadget`` somewhere in it; returns the format."""
    where = rng.choice(["beside", "among the weights", "alone"])
    content: Any = {"state_dict": weights, "extra": gadget}
    if where == "among the weights":
        content = {"state_dict": {**weights, "head.bias": gadget}}
    elif where == "alone":
        content = gadget
    kind = rng.choice(["zip", "legacy", "pickle", "sealed"])
    protocol = rng.choice([2, 3, 4])
    if kind == "sealed":  # the digest proves that a file is intact, not that it is harmless
        save_atomic(content, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        path.write_bytes(_saved(content, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "zip"))
    return kind


MUTATIONS = {"flipped bits": flip_bits, "truncated": truncate, "spliced": splice, "exchanged records": exchange_records}


def fuzz_claims(count: int, seed: int, folder: Path) -> list[Case]:
    """Classifies an image with ``count`` small checkpoints that claim to be large."""
    claims: dict[str, dict[str, Any]] = {
        "depth": {"model_kwargs": {"depths": [10**7, 1, 1, 1]}},
        "width": {"model_kwargs": {"embed_dims": [10**6] * 4}},
        "classes": {"model_kwargs": {"num_classes": 10**9}},
        "image": {"data_config": {"input_size": [3, 10**6, 10**6]}},
        "weights without memory": {"state_dict": {"head.weight": torch.zeros(1).expand(10**9)}},
        "compressed weights": {},
    }
    weights, sandbox, cases = make_weights(seed), Sandbox(folder), []
    path, image = folder / "claim.pth.tar", folder / "image.png"
    Image.new("RGB", (32, 32)).save(image)
    for _, claim in zip(range(count), itertools.cycle(claims), strict=False):
        save_atomic({"arch": "wsfvit_p0_224", "state_dict": weights, **claims[claim]}, path)
        if claim == "compressed weights":
            path.write_bytes(inflate(path.read_bytes()))
        command = ["predict", str(image), "--device", "cpu", "--checkpoint", str(path)]
        ending = sandbox.run(partial(dispatch, command))
        cases.append(Case(f"claim: {claim}", "sealed", ending.outcome, ending.message))
    return cases


@cache
def inflate(blob: bytes, size: int = 5 << 28) -> bytes:
    """A sealed checkpoint, compressed and sealed again after a record has grown by ``size`` zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in old.namelist():
            with archive.open(name, "w", force_zip64=True) as record:
                record.write(old.read(name))
                if name.endswith("/data/0"):
                    record.write(bytes(size))
    unsealed = buffer.getvalue()
    comment = b"wsfvit-sha256:" + hashlib.sha256(unsealed).hexdigest().encode()
    return unsealed[:-2] + len(comment).to_bytes(2, "little") + comment


def try_file(path: Path, weights: Weights, sandbox: Sandbox) -> tuple[str, str]:
    """Loads one file; returns the outcome and the message of the refusal."""

    def load() -> None:
        found, _ = load_state_dict_file(path)
        if first_difference(found, weights) is not None:
            raise ValueError("altered")

    ending = sandbox.run(load)
    outcome = "altered" if ending.message == "ValueError: altered" else ending.outcome
    return ("intact" if outcome == "ok" else outcome), ending.message


def fuzz(count: int, seed: int, folder: Path) -> list[Case]:
    """Tries ``count`` files, one in five of them hostile; the same seed gives the same files."""
    rng, weights, sandbox = random.Random(seed), make_weights(seed), Sandbox(folder)
    bases = make_bases(folder, weights)
    tried = folder / "tried"
    cases = []
    for index in range(count):
        shutil.rmtree(tried, ignore_errors=True)
        tried.mkdir()
        path = tried / "hostile.pth.tar"
        if index % 5 == 0:
            kind, gadget = rng.choice(list(gadgets(folder / CANARY).items()))
            base, kind = write_hostile(path, weights, gadget, rng), f"hostile: {kind}"
        else:
            kind = list(MUTATIONS)[index % 5 - 1]
            base = rng.choice([name for name in bases if kind != "exchanged records" or name != "safetensors"])
            path = tried / bases[base].name
            path.write_bytes(MUTATIONS[kind](bases[base].read_bytes(), rng))
            if base == "safetensors":
                shutil.copy(bases[base].with_suffix(".json"), path.with_suffix(".json"))
        cases.append(Case(kind, base, *try_file(path, weights, sandbox)))
    return cases


def report(args: argparse.Namespace, cases: Sequence[Mapping[str, str]], bad: Sequence[str]) -> None:
    """Print the number of ``cases`` of each kind, write it to ``--out``, and exit with 1 if any is bad.

    Args:
        args: The program's arguments.
        cases: The kind of each case, e.g. its format and outcome.
        bad: A line about each case that did not end as it should.
    """
    counts = Counter(tuple(case.items()) for case in cases)
    results = [dict(kind) | {"files": files} for kind, files in sorted(counts.items())]
    print(markdown_table(list(results[0]), [[str(value) for value in row.values()] for row in results]))
    print(*bad, f"{len(cases)} files, {len(bad)} of them did not end as they should", sep="\n")
    write_run(args, bad=len(bad), results=results)
    if bad:
        raise SystemExit(1)


def main(argv: list[str] | None = None) -> None:
    parser = build_parser("tools.fuzz_checkpoints", __doc__)
    parser.add_argument("--count", type=int, default=1000, help="files to try")
    parser.add_argument("--seed", type=int, default=0)
    add_out(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # threads do not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        cases = fuzz(args.count, args.seed, Path(folder)) + fuzz_claims(args.count // 50, args.seed, Path(folder))
    bad = [f"{case.outcome}: {case.kind}, {case.base}: {case.message}" for case in cases if case.outcome not in GOOD]
    kinds = [{"kind": case.kind, "format": case.base, "outcome": case.outcome} for case in cases]
    report(args, kinds, bad)


if __name__ == "__main__":
    run_main(main)
