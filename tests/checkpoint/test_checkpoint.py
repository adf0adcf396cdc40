"""The checkpoint loader: every kind of file, safe against hostile ones, clear about damaged and unfitting ones."""

import argparse
import os
import pickle
import sys
import zipfile

import pytest
import timm
import torch
from PIL import Image

import train
import validate
from tools.fuzz_checkpoints import write_safetensors
from wsfvit.checkpoint.io import load_checkpoint, load_state_dict_file, read_checkpoint, save_atomic, strip_prefixes
from wsfvit.cli.train import parse_train_args
from wsfvit.cli.validate import parse_validate_args
from wsfvit.eval.validate import run_validation
from wsfvit.train.classify import run_training
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import write_atomic


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10, in_chans=1)


class Hostile:
    """Unpickling it would create ``marker``."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def write_hostile(kind, folder):
    """Writes a hostile checkpoint of one kind; returns its path and the folder that loading it must not create."""
    marker = folder / "marker"
    name, protocol = ("hostile.safetensors", 2) if kind == "safetensors" else ("hostile.pth.tar", int(kind[-1]))
    path = folder / name
    content = {"state_dict": {"a": torch.zeros(1)}, "x": Hostile(marker)}
    if kind.startswith("zip"):
        torch.save(content, path, pickle_protocol=protocol)
    elif kind.startswith("legacy"):
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(Hostile(marker), protocol=protocol))
    return path, marker


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "net.", "module.net.", "_orig_mod.module.model."])
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", None])
def test_finds_the_weights_behind_keys_and_prefixes(tmp_path, model, wrapper, key):
    wrapped = {wrapper + name: value for name, value in model.state_dict().items()}
    torch.save(wrapped if key is None else {key: wrapped, "args": argparse.Namespace(lr=1)}, tmp_path / "x.pth")
    found, meta = load_state_dict_file(tmp_path / "x.pth")
    assert same(found, model.state_dict())
    assert meta["weights"] == "raw"


def test_prefixes_stay_where_only_some_keys_have_them():
    state = {"model.a": torch.zeros(1), "b": torch.zeros(1)}
    assert strip_prefixes(state).keys() == state.keys()


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
def test_ema_selection(tmp_path, key):
    torch.save({"state_dict": {"w": torch.zeros(1)}, key: {"module.w": torch.ones(1)}}, tmp_path / "x.pth")
    raw, raw_meta = load_state_dict_file(tmp_path / "x.pth")
    ema, ema_meta = load_state_dict_file(tmp_path / "x.pth", use_ema=True)
    assert (raw["w"].item(), raw_meta["weights"]) == (0, "raw")
    assert (ema["w"].item(), ema_meta["weights"]) == (1, "ema")


def test_use_ema_without_an_average_gives_raw_and_says_so(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "x.pth")
    assert load_state_dict_file(tmp_path / "x.pth", use_ema=True)[1]["weights"] == "raw"


def test_safetensors_pair_round_trip(tmp_path, model):
    path = tmp_path / "w.safetensors"
    config = {
        "arch": "test_resnet",
        "model_kwargs": {"num_classes": 10, "in_chans": 1},
        "data_config": {"crop_pct": 1.0},
    }
    write_safetensors(model.state_dict(), path, config)
    found, meta = load_state_dict_file(path)
    assert same(found, model.state_dict())
    assert {key: meta[key] for key in config} == config


def test_safetensors_flipped_bytes_are_noticed(tmp_path, model):
    path = tmp_path / "w.safetensors"
    write_safetensors(model.state_dict(), path, {"arch": "test_resnet"})
    blob = bytearray(path.read_bytes())
    blob[-100] ^= 255
    path.write_bytes(blob)
    with pytest.raises(UserError, match="damaged: its SHA-256"):
        load_state_dict_file(path)


KINDS = ["pickle2", "pickle4", "zip2", "zip4", "legacy2", "legacy4", "safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_file_is_refused_by_load_weights(tmp_path, model, kind):
    path, marker = write_hostile(kind, tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as refused:
        load_checkpoint(model, path)
    message = str(refused.value)
    if kind == "safetensors":
        assert "damaged or not a safetensors file" in message
    else:
        assert "posix.mkdir" in message or "nt.mkdir" in message
        assert "Nothing in it was executed" in message and "--trust-checkpoint" in message
    assert "\n" not in message
    assert not marker.exists()
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("kind", ["pickle2", "zip2", "safetensors"])
@pytest.mark.parametrize("command", ["train", "validate"])
def test_hostile_file_is_refused_by_the_commands(tmp_path, monkeypatch, error_of, kind, command):
    path, marker = write_hostile(kind, tmp_path)
    argv = ["x", "--dataset", "digits", "--model", "test_resnet", "--num-classes", "10", "--device", "cpu"]
    argv += ["--output", str(tmp_path), "--initial-checkpoint" if command == "train" else "--checkpoint", str(path)]
    if command == "validate":
        argv.remove("--output")
        argv.remove(str(tmp_path))
    monkeypatch.setattr(sys, "argv", argv)
    message = error_of({"train": train, "validate": validate}[command].main)
    assert message.startswith("error: checkpoint")
    assert not marker.exists()


def test_trust_is_the_only_way_to_unpickle(tmp_path):
    path, marker = write_hostile("zip2", tmp_path)
    found, _ = load_state_dict_file(path, trust=True)
    assert "a" in found
    assert marker.is_dir()


@pytest.mark.parametrize("keep", [0, 10, 1000, -200, -1])
def test_truncated_file(tmp_path, model, keep):
    path = tmp_path / "x.pth.tar"
    torch.save({"state_dict": model.state_dict()}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        load_checkpoint(model, path)


@pytest.mark.parametrize("at", [0.3, 0.5, 0.7])
def test_flipped_byte_is_noticed(tmp_path, model, at):
    path = tmp_path / "x.pth.tar"
    torch.save({"state_dict": model.state_dict()}, path)
    blob = bytearray(path.read_bytes())
    blob[int(len(blob) * at)] ^= 255
    path.write_bytes(blob)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(model, path)


def test_saved_file_carries_a_digest_that_other_readers_pass_over(tmp_path):
    path = tmp_path / "x.pth.tar"
    save_atomic({"a": torch.arange(5)}, path)
    assert zipfile.ZipFile(path).comment.startswith(b"wsfvit-sha256:")
    for mmap in (False, True):
        assert torch.load(path, weights_only=True, mmap=mmap)["a"].tolist() == [0, 1, 2, 3, 4]


def rewrite_archive(path, change=lambda name, data: data, compression=zipfile.ZIP_STORED, again=()):
    """Writes an archive again, every checksum in it right, and keeps its comment."""
    with zipfile.ZipFile(path) as archive:
        records, comment = {name: archive.read(name) for name in archive.namelist()}, archive.comment
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in [*records, *(name for name in records if name.endswith(again))]:
            archive.writestr(name, change(name, records[name]))
        archive.comment = comment


def test_digest_notices_what_the_checksums_of_the_archive_do_not(tmp_path):
    path = tmp_path / "x.pth.tar"
    save_atomic({"a": torch.zeros(5)}, path)
    rewrite_archive(path, lambda name, data: b"\1" * len(data) if name.endswith("data/0") else data)
    with pytest.raises(UserError, match="damaged: its SHA-256"):
        load_state_dict_file(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "how, message",
    [({"compression": zipfile.ZIP_DEFLATED}, "is compressed"), ({"again": ("data/0",)}, "two records of one name")],
)
def test_archive_unlike_any_that_torch_writes(tmp_path, how, message):
    torch.save({"a": torch.zeros(5)}, tmp_path / "x.pth")
    rewrite_archive(tmp_path / "x.pth", **how)
    with pytest.raises(UserError, match=f"damaged: .*{message}"):
        load_state_dict_file(tmp_path / "x.pth")


@pytest.mark.parametrize("trust", [False, True])
def test_broken_directory_of_an_archive_is_one_line(tmp_path, trust):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(5)}, path)
    path.write_bytes(path.read_bytes().replace(b"PK\1\2", b"PK\1\3", 1))
    with pytest.raises(UserError, match="is damaged or not a checkpoint") as refused:
        load_state_dict_file(path, trust=trust)
    assert "\n" not in str(refused.value)


def test_hostile_pickle_with_an_archive_inside_is_read_as_a_pickle(tmp_path):
    torch.save({"a": torch.zeros(5)}, tmp_path / "inner.pth")
    content = {"x": Hostile(tmp_path / "marker"), "inner": (tmp_path / "inner.pth").read_bytes()}
    (tmp_path / "x.pth").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"wants to call (posix|nt)\.mkdir"):
        load_state_dict_file(tmp_path / "x.pth")
    assert not (tmp_path / "marker").exists()


def test_whole_state_is_read(tmp_path):
    content = {"state_dict": {"a": torch.zeros(1)}, "epoch": 3, "args": {"betas": (0.9, 0.99)}, "rows": [{"top1": 1.0}]}
    save_atomic(content, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth") == content
    torch.save([1], tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds a list"):
        read_checkpoint(tmp_path / "x.pth")


def test_reading_a_state_runs_nothing_unless_trusted(tmp_path):
    path, marker = write_hostile("zip2", tmp_path)
    with pytest.raises(UserError, match="--trust-checkpoint"):
        read_checkpoint(path)
    assert not marker.exists()
    assert "x" in read_checkpoint(path, trust=True) and marker.is_dir()


def test_text_file_gets_no_advice_to_trust_it(tmp_path):
    (tmp_path / "notes.pth").write_text("Learning rates that worked.")
    with pytest.raises(UserError, match="damaged or not a checkpoint") as refused:
        load_state_dict_file(tmp_path / "notes.pth")
    assert "weights_only" not in str(refused.value)


def test_no_such_file_and_directory(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_state_dict_file(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a directory"):
        load_state_dict_file(tmp_path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, {"state_dict": {"a": 1}}, [1, 2]])
def test_no_weights_in_the_file(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds"):
        load_state_dict_file(tmp_path / "x.pth")


def test_file_may_not_steer_create_model(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "model_kwargs": {"checkpoint_path": "/x"}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="may not set checkpoint_path"):
        load_state_dict_file(tmp_path / "x.pth")


def test_class_count_is_said_in_words(tmp_path, model):
    other = timm.create_model("test_resnet", num_classes=1000, in_chans=1)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"it has 1000 classes, the model test_resnet has 10: .*--num-classes 1000"):
        load_checkpoint(model, tmp_path / "x.pth")


@pytest.mark.parametrize("classes, own, replaced", [(1000, 10, 1000), (10, 0, 10), (0, 10, 0), (10, 10, None)])
def test_classifier_of_other_classes_is_replaced(tmp_path, classes, own, replaced):
    source = timm.create_model("test_resnet", num_classes=classes, in_chans=1)
    model = timm.create_model("test_resnet", num_classes=own, in_chans=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save({"state_dict_ema": source.state_dict(), "state_dict": before}, tmp_path / "x.pth")
    meta = load_checkpoint(model, tmp_path / "x.pth", use_ema=True, replace_classifier=True)
    assert meta.get("replaced_classes") == replaced
    after = model.state_dict()
    heads = {key for key in before if key.startswith("fc.")}
    expected = source.state_dict() if replaced is None else {key: before[key] for key in heads}
    assert all(torch.equal(after[key], expected[key]) for key in heads)
    assert all(torch.equal(after[key], source.state_dict()[key]) for key in before.keys() - heads)


def test_both_classifiers_of_a_distilled_model_are_replaced(tmp_path):
    kwargs = {"embed_dim": 12, "depth": 1, "num_heads": 1}
    name = "deit_tiny_distilled_patch16_224"
    torch.save(timm.create_model(name, num_classes=7, **kwargs).state_dict(), tmp_path / "x.pth")
    model = timm.create_model(name, num_classes=3, **kwargs)
    assert load_checkpoint(model, tmp_path / "x.pth", replace_classifier=True)["replaced_classes"] == 7
    assert model.head.weight.shape == model.head_dist.weight.shape == (3, 12)


def without(key, **kwargs):
    state = timm.create_model("test_resnet", in_chans=1, **kwargs).state_dict()
    return {name: value for name, value in state.items() if name != key}


def test_classifier_without_a_bias_is_left_out_as_a_whole(tmp_path, model):
    torch.save(without("fc.bias", num_classes=7), tmp_path / "x.pth")
    before = model.fc.bias.clone()
    assert load_checkpoint(model, tmp_path / "x.pth", replace_classifier=True)["replaced_classes"] == 7
    assert torch.equal(model.fc.bias, before)


@pytest.mark.parametrize("key, classes", [("conv1.0.weight", 7), ("fc.bias", 10)])
def test_all_but_the_number_of_classes_stays_strict(tmp_path, model, key, classes):
    torch.save(without(key, num_classes=classes), tmp_path / "x.pth")
    with pytest.raises(UserError, match="1 missing"):
        load_checkpoint(model, tmp_path / "x.pth", replace_classifier=True)


def test_classifier_on_other_features_is_not_replaced(tmp_path, model):
    state = {**model.state_dict(), "fc.weight": torch.zeros(7, 5), "fc.bias": torch.zeros(7)}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match="does not fit|7 classes"):
        load_checkpoint(model, tmp_path / "x.pth", replace_classifier=True)


def test_another_model_is_summed_up(tmp_path, model):
    other = timm.create_model("test_vit", num_classes=10)
    torch.save(other.state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"does not fit test_resnet .*: \d+ missing \(.*, \.\.\.\); \d+ unexpected"):
        load_checkpoint(model, tmp_path / "x.pth")


def test_shapes_are_named(tmp_path, model):
    torch.save(timm.create_model("test_resnet", num_classes=10, in_chans=3).state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"1 of another shape \(\S+: \(\d+, 3, \d+, \d+\) for \(\d+, 1, \d+, \d+\)\)"):
        load_checkpoint(model, tmp_path / "x.pth")


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pth.tar"
    save_atomic({"a": torch.ones(1)}, path)

    def fail_halfway(file):
        file.write(b"half")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write_atomic(path, fail_halfway)
    with pytest.raises(Exception, match="pickle"):
        save_atomic({"a": lambda: None}, path)
    assert load_state_dict_file(path)[0]["a"].item() == 1
    assert os.listdir(tmp_path) == ["last.pth.tar"]


def test_unwritable_place_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        save_atomic({}, tmp_path / "none" / "x.pth")


@pytest.fixture
def timm_file(tmp_path):
    """A checkpoint as timm's train.py writes it, of a model with two classes at 64 pixels."""
    torch.manual_seed(0)
    weights = timm.create_model("test_vit", num_classes=2, img_size=64, in_chans=1).state_dict()
    args = argparse.Namespace(model="test_vit", num_classes=2, img_size=64, in_chans=1, input_size=None, opt="sgd")
    args.mean, args.std, args.gp, args.model_kwargs, args.crop_pct, args.input_img_mode = (
        [0.1],
        [0.2],
        None,
        {},
        1.0,
        "L",
    )
    content = {"epoch": 0, "arch": "test_vit", "state_dict": weights, "optimizer": {}, "version": 2, "args": args}
    torch.save(content | {"metric": 50.0}, tmp_path / "timm.pth.tar")
    return str(tmp_path / "timm.pth.tar")


@pytest.mark.parametrize("more", [[], ["--num-classes", "2"]])
def test_arguments_of_timm_are_taken_over(timm_file, more):
    argv = ["--dataset", "synthetic/2", "--num-samples", "4", "-j", "0"]
    [row] = run_validation(parse_validate_args([*argv, "--device", "cpu", "--checkpoint", timm_file, *more]))
    assert (row["model"], row["input_size"], row["mean"], row["std"]) == ("test_vit", [1, 64, 64], [0.1], [0.2])
    assert (row["crop_pct"], row["images"]) == (1.0, 4)


def test_arguments_of_timm_without_a_size_of_the_model(tmp_path, timm_file):
    content = read_checkpoint(timm_file)
    weights = timm.create_model("test_resnet", num_classes=2).state_dict()
    args = argparse.Namespace(**content["args"] | {"model": "test_resnet", "input_size": [3, 64, 48], "in_chans": None})
    args.input_img_mode = None
    torch.save(content | {"arch": "test_resnet", "state_dict": weights, "args": args}, timm_file)
    argv = ["--dataset", "synthetic/2", "--num-samples", "4", "-j", "0", "--device", "cpu", "--checkpoint", timm_file]
    assert run_validation(parse_validate_args(argv))[0]["input_size"] == [3, 64, 48]
    assert run_validation(parse_validate_args([*argv, "--img-size", "32"]))[0]["input_size"] == [3, 32, 32]


def test_arguments_of_nonsense_are_one_line(timm_file):
    content = read_checkpoint(timm_file)
    torch.save(content | {"args": argparse.Namespace(**content["args"] | {"img_size": "wide"})}, timm_file)
    with pytest.raises(UserError, match=r"its input_size is \(1, 'wide', 'wide'\), not three integers"):
        load_state_dict_file(timm_file)


def test_a_state_of_timm_is_not_resumed(timm_file, tmp_path, monkeypatch, error_of):
    argv = ["train.py", "--dataset", "synthetic/2", "--model", "test_vit", "--num-classes", "2", "--img-size", "64"]
    argv += ["--in-chans", "1", "--device", "cpu", "-j", "0", "-b", "4", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*argv, "--resume", timm_file])
    assert "no training state" in (line := error_of(train.main)) and "--initial-checkpoint" in line


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "wsfvit_p0_224"])
@pytest.mark.parametrize(("channels", "in_chans"), [(3, 1), (3, 4), (1, 3)])
def test_first_convolution_is_adapted_to_the_channels(tmp_path, name, channels, in_chans, caplog):
    kwargs = {"num_classes": 3, **({"img_size": 32, "embed_dims": (12,), "depths": (1,)} if "wsf" in name else {})}
    kwargs |= {"inter_heads": (2,), "stage_strides": (2,)} if "wsf" in name else {}
    source = timm.create_model(name, in_chans=channels, **kwargs)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    model = timm.create_model(name, in_chans=in_chans, **kwargs)
    with pytest.raises(UserError, match="of another shape"):
        load_checkpoint(model, tmp_path / "x.pth")
    load_checkpoint(model, tmp_path / "x.pth", replace_classifier=True)
    assert f"from {channels} to {in_chans} image channels" in caplog.text
    if (channels, in_chans, name) == (3, 1, "test_resnet"):
        assert torch.equal(model.conv1[0].weight, source.conv1[0].weight.sum(1, keepdim=True))


def test_the_image_mode_is_part_of_a_checkpoint(tmp_path):
    for split in ("train", "validation"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            for index in range(2):
                Image.new("RGBA", (32, 32), (9, 9, 9, 60 * index)).save(tmp_path / split / label / f"{index}.png")
    argv = [str(tmp_path), "--model", "test_resnet", "--num-classes", "2", "--img-size", "32", "-b", "2", "-j", "0"]
    argv += ["--epochs", "1", "--warmup-epochs", "0", "--device", "cpu", "--no-tensorboard", "--output", str(tmp_path)]
    run = run_training(parse_train_args([*argv, "--in-chans", "4", "--input-img-mode", "RGBA"]))
    last = str(run.run_dir / "last.pth.tar")
    [row] = run_validation(parse_validate_args([str(tmp_path), "--checkpoint", last, "--device", "cpu", "-j", "0"]))
    assert row["input_size"] == [4, 32, 32] and row["loss"] == pytest.approx(run.rows[-1]["val_loss"])
    with pytest.raises(UserError, match="--aa and --grayscale-prob take L or RGB"):
        run_training(parse_train_args([*argv, "--in-chans", "4", "--input-img-mode", "RGBA", "--aa", "original"]))
