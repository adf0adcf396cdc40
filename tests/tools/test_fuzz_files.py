"""The fuzzer of files: a small run, the same files for the same seed, and planted defects are found."""

import json
import os
import pickle
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from tools import fuzz_files
from tools.fuzz_checkpoints import Gadget
from tools.sandbox import Sandbox
from wsfvit.utils.errors import UserError

ROOT = Path(__file__).parents[2]
TREE = {"images": [{"id": 1, "height": 20}], "names": ["a", "b"], "dataset": "digits", "trust_checkpoint": False}


@pytest.mark.slow
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    """A program of its own, because it forks and trains."""
    out = tmp_path / "files.json"
    command = [sys.executable, "-m", "tools.fuzz_files", "--count", "6", "--seed", "2", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())["results"]
    assert sum(row["files"] for row in results) == 24
    assert {row["kind"].partition(":")[0] for row in results} == set(fuzz_files.KINDS)
    assert {row["outcome"] for row in results} == {"ok", "refused"}


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_the_same_seed_gives_the_same_damage(tmp_path, suffix):
    target = fuzz_files.Target("settings", [], tmp_path / f"file{suffix}", TREE)
    hostile = fuzz_files.hostile_content(tmp_path)
    one, other = ([fuzz_files.damage(target, random.Random(seed), *hostile) for seed in range(60)] for _ in range(2))
    assert one == other and len(set(one)) > 50
    assert {kind for kind, _ in one} == {"values", "text", "keys", *fuzz_files.BYTES}


def trust_content(argv):
    """Reads YAML safely, but trusts another file where the content says so, and expects a mapping."""
    try:
        content = yaml.safe_load(Path(argv[-1]).read_bytes())
    except Exception as err:
        raise UserError("not YAML") from err
    if content.get("trust_checkpoint"):
        pickle.loads(Path(argv[0], "evil.pkl").read_bytes())


def test_planted_defects_are_found(tmp_path, monkeypatch):
    path = tmp_path / "file.yaml"
    target = fuzz_files.Target("settings", [str(tmp_path), str(path)], path, TREE)
    monkeypatch.setattr(fuzz_files, "make_targets", lambda folder, kinds: [target])
    monkeypatch.setattr(fuzz_files, "IMPORTED", ())
    monkeypatch.setattr(fuzz_files, "dispatch", trust_content)
    cases = fuzz_files.fuzz(["settings"], 60, 0, tmp_path)
    assert {case.outcome for case in cases} == {"ok", "refused", "traceback", "executed"}
    assert {case.kind for case in cases if case.outcome == "executed"} >= {"settings: keys"}


def test_tags_act_where_they_are_obeyed(tmp_path):
    tag = next(text for text in fuzz_files.TEXTS if "apply:os.system" in text)
    sandbox = Sandbox(tmp_path)
    assert sandbox.run(partial(yaml.unsafe_load, tag)).outcome == "executed"
    assert sandbox.run(partial(pickle.loads, pickle.dumps(Gadget(os.mkdir, "x")))).outcome == "executed"
