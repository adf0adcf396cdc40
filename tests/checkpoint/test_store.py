"""The checkpoint store: what it keeps, what it survives, and what it does not let through."""

import errno
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from wsfvit.checkpoint import store as store_module
from wsfvit.checkpoint.io import load_state_dict_file
from wsfvit.checkpoint.store import CheckpointStore
from wsfvit.utils.errors import UserError


def state(value: float, size: int = 300) -> dict:
    """A training state all of whose tensors hold ``value``."""
    weights = {"a": torch.full((size,), float(value)), "b": torch.full((3, 5), float(value))}
    moments = {0: {"step": torch.tensor(float(value)), "exp_avg": torch.full((size,), float(value))}}
    return {
        "state_dict": weights,
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99)}]},
    }


def saved(folder: Path, metrics: list[float], **how) -> CheckpointStore:
    """A store that has saved one epoch for each metric."""
    store = CheckpointStore(folder, **how)
    for epoch, metric in enumerate(metrics):
        store.save(state(epoch), epoch=epoch, metric=metric)
    store.wait()
    return store


def value_in(path: Path) -> float:
    return load_state_dict_file(path)[0]["a"][0].item()


def epochs_in(folder: Path) -> set[int]:
    return {int(path.name[len("checkpoint-") : -len(".pth.tar")]) for path in folder.glob("checkpoint-*")}


@pytest.mark.parametrize(
    "metrics, how, best, kept",
    [
        ([1, 3, 2, 0], {"keep": 2}, 1, {1, 2}),
        ([1, 3, 2, 0], {"keep": 2, "lower_is_better": True}, 3, {0, 3}),
        ([2, 2, 2], {"keep": 2}, 0, {0, 1}),
        ([float("nan"), 1, float("nan")], {"keep": 2}, 1, {0, 1}),
        ([float("nan"), 1, float("nan")], {"keep": 1, "lower_is_better": True}, 1, {1}),
        ([1, 2], {"keep": 0}, 1, set()),
        ([1, 2, 3], {}, 2, {0, 1, 2}),
    ],
)
def test_keeps_the_best_epochs(tmp_path, metrics, how, best, kept):
    store = saved(tmp_path, metrics, **how)
    assert (store.best_epoch, store.best_metric) == (best, metrics[best])
    assert epochs_in(tmp_path) == kept
    assert value_in(tmp_path / "model_best.pth.tar") == best
    assert value_in(tmp_path / "last.pth.tar") == len(metrics) - 1
    assert value_in(tmp_path / "last-previous.pth.tar") == len(metrics) - 2
    assert all(value_in(tmp_path / f"checkpoint-{epoch}.pth.tar") == epoch for epoch in kept)


def test_one_file_under_several_names(tmp_path):
    saved(tmp_path, [1, 2])
    names = ("last", "model_best", "checkpoint-1")
    assert len({(tmp_path / f"{name}.pth.tar").stat().st_ino for name in names}) == 1


def test_copies_where_there_are_no_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    saved(tmp_path, [1, 2])
    assert value_in(tmp_path / "model_best.pth.tar") == value_in(tmp_path / "checkpoint-1.pth.tar") == 1


def test_state_within_an_epoch_goes_to_last_only(tmp_path):
    store = saved(tmp_path, [5])
    store.save(state(7), epoch=1, batch=40)
    store.wait()
    content, path = CheckpointStore(tmp_path).load_newest()
    assert (path.name, content["epoch"], content["batch"], content["metric"]) == ("last.pth.tar", 1, 40, None)
    assert epochs_in(tmp_path) == {0} and value_in(tmp_path / "model_best.pth.tar") == 0


def test_content_comes_back_bit_equal(tmp_path):
    tied = torch.randn(4, 6)
    content = {
        "state_dict": {
            "half": torch.randn(5).half(),
            "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        },
        "keys": {0: torch.zeros(3), "0": torch.ones(3)},
        "tied": [tied, tied, tied[1]],
        "args": {"lr": np.float64(0.5), "opt": "adamw", "sizes": (1, [2, None, True])},
    }
    store = CheckpointStore(tmp_path, background=False)
    store.save(content, epoch=0)
    found, _ = store.load_newest()
    assert found["args"] == content["args"] and type(found["args"]["lr"]) is float
    for key, value in content["state_dict"].items():
        assert torch.equal(found["state_dict"][key], value) and found["state_dict"][key].stride() == value.stride()
    assert (found["keys"][0][0], found["keys"]["0"][0]) == (0, 1)
    assert found["tied"][0].data_ptr() == found["tied"][1].data_ptr()
    assert torch.equal(found["tied"][2], tied[1])


def test_a_view_does_not_drag_its_whole_memory_along(tmp_path):
    CheckpointStore(tmp_path, background=False).save({"state_dict": {"a": torch.zeros(1_000_000)[:10]}}, epoch=0)
    assert (tmp_path / "last.pth.tar").stat().st_size < 10_000


def test_memory_is_kept_and_follows_the_shapes(tmp_path):
    store = CheckpointStore(tmp_path, background=False)
    for size in (10, 10, 4):
        content = {"state_dict": {"a": torch.randn(size)}}
        store.save(content, epoch=0)
        assert torch.equal(store.load_newest()[0]["state_dict"]["a"], content["state_dict"]["a"])


@pytest.mark.parametrize("value, name", [(Path("x"), "PosixPath"), (torch.float16, "dtype"), ({1}, "set")])
def test_what_could_not_be_read_again_is_refused_at_once(tmp_path, value, name):
    with pytest.raises(TypeError, match=rf"args\.0\.x is a {name}"):
        CheckpointStore(tmp_path).save({"args": [{"x": value}]}, epoch=0)


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing waits until the event is set."""
    event, write = threading.Event(), store_module.write_sealed

    def wait_and_write(content, file):
        assert event.wait(20)
        write(content, file)

    monkeypatch.setattr(store_module, "write_sealed", wait_and_write)
    yield event
    event.set()


def test_save_returns_before_it_is_written_and_later_changes_do_not_matter(tmp_path, slow_disk):
    store, content = CheckpointStore(tmp_path), state(1)
    store.save(content, epoch=0)
    content["state_dict"]["a"].fill_(9)
    content["optimizer"]["state"][0]["exp_avg"].fill_(9)
    content["optimizer"]["param_groups"][0]["lr"] = 9
    assert not (tmp_path / "last.pth.tar").exists()
    slow_disk.set()
    store.wait()
    found, _ = store.load_newest()
    assert found["state_dict"]["a"].eq(1).all() and found["optimizer"]["state"][0]["exp_avg"].eq(1).all()
    assert found["optimizer"]["param_groups"][0]["lr"] == 1e-3


def test_next_save_waits_for_the_pending_write(tmp_path, slow_disk):
    store = CheckpointStore(tmp_path)
    store.save(state(1), epoch=1)
    threading.Timer(0.2, slow_disk.set).start()
    store.save(state(2), epoch=2)
    assert slow_disk.is_set()
    store.wait()
    assert value_in(tmp_path / "last-previous.pth.tar") == 1 and value_in(tmp_path / "last.pth.tar") == 2


# --- resuming


def test_resumed_run_goes_on_ranking(tmp_path):
    saved(tmp_path, [1, 5, 3], keep=2)
    store = CheckpointStore(tmp_path, keep=2)
    store.load_newest()
    assert (store.best_metric, store.best_epoch) == (5, 1)
    store.save(state(3), epoch=3, metric=4)  # timm would take the first epoch after a resume for the best
    store.wait()
    assert value_in(tmp_path / "model_best.pth.tar") == 1 and epochs_in(tmp_path) == {1, 3}


def test_ranking_does_not_speak_of_files_that_are_elsewhere(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir(), new.mkdir()
    content, _ = saved(old, [1, 5, 3]).load_newest()
    store = CheckpointStore(new)
    store.restore(content)
    store.save(state(3), epoch=3, metric=4)
    store.wait()
    assert value_in(new / "model_best.pth.tar") == 3 and epochs_in(new) == {3}


def test_ranking_is_of_what_the_files_hold(tmp_path):
    """Files of another run have the same names."""
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir(), other.mkdir()
    saved(here, [10, 50, 30])
    content, _ = saved(other, [10, 5, 3]).load_newest()
    store = CheckpointStore(here, background=False)
    store.restore(content)
    assert store._top == [(10, 0)]


@pytest.mark.parametrize("intact", [True, False])
def test_a_damaged_best_checkpoint_is_named_and_restored(tmp_path, capsys, intact):
    store = saved(tmp_path, [1, 5, 3])
    store.check_best()
    assert not capsys.readouterr().out
    best = tmp_path / "model_best.pth.tar"
    blob = best.read_bytes()
    if intact:
        best.unlink()  # otherwise one file under two names
    best.write_bytes(blob[:1200] + bytes([blob[1200] ^ 255]) + blob[1201:])
    store.check_best()
    ending = "restored from checkpoint-1.pth.tar" if intact else "and checkpoint-1.pth.tar is no copy of it"
    assert capsys.readouterr().out == f"warning: '{best}' is damaged or not of epoch 1: {ending}\n"
    assert best.read_bytes() == blob or not intact


def test_empty_folder_has_no_newest(tmp_path):
    assert CheckpointStore(tmp_path).load_newest() is None


DAMAGE = {
    "truncated": lambda blob, at: blob[:at],
    "flipped": lambda blob, at: blob[:at] + bytes([blob[at] ^ 255]) + blob[at + 1 :],
    "empty": lambda blob, at: b"",
    "zeroed end": lambda blob, at: blob[:at] + bytes(len(blob) - at),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("seed", range(6))
def test_damaged_newest_gives_the_one_before(tmp_path, capsys, damage, seed):
    saved(tmp_path, [1, 2, 3])
    last = tmp_path / "last.pth.tar"
    blob = last.read_bytes()
    at = random.Random(seed).randrange(len(blob) - 100)  # the digest itself is the one part that may be lost
    os.replace(last, tmp_path / "aside")  # its other names are the same file and keep the content
    last.write_bytes(DAMAGE[damage](blob, at))
    content, path = CheckpointStore(tmp_path).load_newest()
    assert path.name == "last-previous.pth.tar" and content["state_dict"]["a"].eq(1).all()
    out = capsys.readouterr().out
    assert out.startswith(f"warning: checkpoint '{last}' is damaged") and out.count("\n") == 1


def test_damaged_newest_does_not_replace_the_good_previous(tmp_path, monkeypatch):
    saved(tmp_path, [1, 2])
    (tmp_path / "last.pth.tar").write_bytes(b"torn")
    store = CheckpointStore(tmp_path, background=False)
    store.load_newest()
    store.save(state(5), epoch=1, batch=3)
    assert value_in(tmp_path / "last-previous.pth.tar") == 0 and value_in(tmp_path / "last.pth.tar") == 5
    store.save(state(6), epoch=1, batch=4)
    assert value_in(tmp_path / "last-previous.pth.tar") == 5


@pytest.mark.parametrize(
    "missing, newest",
    [
        (["last"], "last-previous"),
        (["last", "last-previous"], "checkpoint-10"),
        (["last", "last-previous", "checkpoint-10", "checkpoint-9"], "model_best"),
    ],
)
def test_missing_files(tmp_path, missing, newest):
    store = CheckpointStore(tmp_path)
    for epoch in (9, 10):
        store.save(state(epoch), epoch=epoch, metric=epoch)
    store.wait()
    for name in missing:
        (tmp_path / f"{name}.pth.tar").unlink()
    assert CheckpointStore(tmp_path).load_newest()[1].name == f"{newest}.pth.tar"


def test_nothing_readable_is_an_error(tmp_path, capsys):
    saved(tmp_path, [1, 2])
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(
        UserError, match=r"no checkpoint in .* can be read \(last.pth.tar, last-previous.pth.tar, .*again"
    ):
        CheckpointStore(tmp_path).load_newest()


# --- a system that refuses


class FullDisk:
    """A binary file that takes ``room`` bytes and refuses the rest."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 100, 3000, "all but one"])
@pytest.mark.parametrize("background", [True, False])
def test_full_disk(tmp_path, monkeypatch, room, background):
    store = saved(tmp_path, [1, 2], background=background)
    names = sorted(os.listdir(tmp_path))
    bytes_of_one = (tmp_path / "last.pth.tar").stat().st_size
    left = bytes_of_one - 1 if room == "all but one" else room
    write = store_module.write_sealed
    monkeypatch.setattr(store_module, "write_sealed", lambda content, file: write(content, FullDisk(file, left)))
    with pytest.raises(UserError, match="No space left on device; earlier checkpoints are unchanged") as full:
        store.save(state(2), epoch=2, metric=9)
        store.save(state(3), epoch=3, metric=9)
    assert "\n" not in str(full.value)
    assert sorted(os.listdir(tmp_path)) == names
    assert value_in(tmp_path / "last.pth.tar") == value_in(tmp_path / "model_best.pth.tar") == 1
    store.wait()  # an error is told once


def test_full_disk_while_copying(tmp_path, monkeypatch):
    store = saved(tmp_path, [1])
    names = sorted(os.listdir(tmp_path))

    def refuse(source, target):
        Path(target).touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module, name in ((os, "link"), (store_module.shutil, "copyfile")):
        monkeypatch.setattr(module, name, refuse)
    with pytest.raises(UserError, match="No space left"):
        store.save(state(1), epoch=1, metric=2)
        store.wait()
    assert sorted(os.listdir(tmp_path)) == names and value_in(tmp_path / "last.pth.tar") == 0


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits")
def test_file_size_limit_of_the_system(tmp_path):
    import resource

    store = saved(tmp_path, [1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write .*File too large"):
            store.save(state(2, size=100_000), epoch=1)
            store.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert CheckpointStore(tmp_path).load_newest()[0]["epoch"] == 0


def test_folder_that_is_gone(tmp_path):
    with pytest.raises(UserError, match="cannot write .*No such file or directory$"):
        CheckpointStore(tmp_path / "gone", background=False).save(state(1), epoch=0)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_read_only_folder():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = saved(folder, [1])
        folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:  # root may write everywhere; nobody may not
            os.seteuid(65534)
        try:
            with pytest.raises(UserError, match="cannot write .*Permission denied; earlier checkpoints"):
                store.save(state(2), epoch=1)
                store.wait()
        finally:
            os.seteuid(user)
            folder.chmod(0o755)
        assert value_in(folder / "last.pth.tar") == 0


# --- killed while saving


KILLED = Path(__file__).parents[1] / "killed_runs.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_runs_lose_nothing_that_was_saved():
    # What a killed process leaves does not depend on the disk, so memory does where there is such a folder.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        done = subprocess.run([sys.executable, KILLED, folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for kills in json.loads(done.stdout.splitlines()[-1]).values():
        assert kills["killed"] >= 10 and kills["saved"] > kills["killed"]
