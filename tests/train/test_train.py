"""train.py end to end on the built-in digits with a tiny network."""

import csv
import sys

import pytest
import timm
import torch
import yaml
from PIL import Image
from tiny_data import CLASSES, TINY_RUN, write_folder
from tiny_run import TINY

import get_flops
import train
import validate
from wsfvit.cli.train import parse_train_args
from wsfvit.factory.recipe import build_loss, build_scheduler, resolve_lr
from wsfvit.train.classify import Classification, run_training
from wsfvit.train.setup import build_state, check_agreement
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError


def test_run_folder_is_complete(trained):
    folder = trained.run_dir
    assert {".run.lock", "args.yaml", "summary.csv", "last.pth.tar", "model_best.pth.tar", "checkpoint-0.pth.tar"} == {
        path.name for path in folder.iterdir()
    }
    with open(folder / "summary.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    assert list(rows[0]) == ["epoch", "train_loss", "val_loss", "top1", "top5", "lr", "seconds", "images_per_s"]
    assert yaml.safe_load((folder / "args.yaml").read_text())["model"] == "test_resnet"
    content = torch.load(folder / "last.pth.tar", weights_only=True)
    assert content["class_names"] == [str(digit) for digit in range(10)]
    assert {"arch", "model_kwargs", "data_config", "args", "state_dict_ema", "optimizer", "epoch"} <= content.keys()


@pytest.mark.usefixtures("tiny_images")
def test_train_starts_from_a_checkpoint_and_accumulates(tmp_path, monkeypatch, capsys):
    source = tiny(tmp_path / "a", "--epochs", "1", "--model-ema").run_dir / "last.pth.tar"
    more = ["--initial-checkpoint", str(source), "--output", str(tmp_path / "b"), "--grad-accum-steps", "4"]
    more += ["--mixup", "0.2", "--reprob", "0.2", "--amp", "--amp-dtype", "bfloat16", "--channels-last"]
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY_RUN, *more, "--clip-grad", "1", "--sched-on-updates"])
    train.main()
    out = capsys.readouterr().out
    assert "starting from the ema weights" in out
    assert "best top1" in out


@pytest.mark.usefixtures("tiny_images")
def test_same_seed_same_run(tmp_path):
    first, again, other = (tiny(tmp_path / str(i), "--mixup", "0.3", "--seed", str(i // 2)) for i in range(3))
    losses = [[(row["train_loss"], row["val_loss"]) for row in result.rows] for result in (first, again, other)]
    assert losses[0] == losses[1] != losses[2]


def test_a_run_is_not_overwritten(trained, monkeypatch, error_of):
    output = trained.run_dir.parent
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, "--output", str(output), "--experiment", "tiny"])
    assert "already holds a run" in error_of(train.main)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--model", "wsfvitt"], "unknown model 'wsfvitt'"),
        (["--dataset", ""], "no data given"),
        (["--dataset", "", "--data-dir", "nowhere"], "'nowhere' does not exist"),
        (["--train-split", "no-such"], "no split 'no-such'"),
        (["--num-classes", "5"], "the data has 10 classes, the model 5: pass --num-classes 10"),
        (["--model-kwargs", "no_such=1"], "cannot be built with"),
        (["--opt", "no-such"], "optimizer 'no-such'"),
        (["-b", "4001"], "is more than the 4000 training images"),
        (["-b", "33", "--mixup", "0.5"], "must be even"),
        (["--mean", "0.1", "0.2"], "--mean takes 1 or 1 values"),
        (["--interpolation", "no-such"], "'no-such'"),
        (["--aa", "nosuch"], "Unknown AA policy nosuch"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used here"),
        (["--initial-checkpoint", "none.pth"], "does not exist"),
        (["--initial-checkpoint", "none.pth", "--pretrained"], "pass one"),
        (["--model", "wsfvit_p0_224", "--pretrained"], "no pretrained weights for wsfvit_p0_224"),
        (["--model", "test_convnext", "--grad-checkpointing", "--bce-sum"], "--bce-sum"),
        (["--bce-sum"], "--bce-sum is an option of --bce-loss"),
        (["--sched", "plateau", "--eval-interval", "2"], "leave --eval-interval at 1"),
        (["--torchcompile", "no-such"], "--torchcompile no-such"),
        (["--torchcompile-mode", "default"], "is an option of --torchcompile"),
        (["--torchcompile-options", "max_autotune=true"], "is an option of --torchcompile"),
        (["--torchcompile", "--torchcompile-options", "max_autotune"], "'max_autotune' is not NAME=VALUE"),
        (["--torchcompile", "--torchcompile-options", "no_such=1"], "has no 'no_such'"),
        (["--torchcompile", "--torchcompile-options", "max_autotune=[1]"], "--torchcompile inductor"),
        (["--torchcompile", "--torchcompile-mode", "no-such"], "inductor has default,"),
        (["--torchcompile-memory-budget", "0.5"], "--torchcompile-memory-budget is an option of --torchcompile"),
        (["--torchcompile", "aot_eager", "--torchcompile-memory-budget", "0.5"], "are inductor's, not aot_eager's"),
        (["--amp", "--model-dtype", "bfloat16"], "leave out --model-dtype bfloat16"),
        (["--device-modules", "no_such_module"], "--device-modules no_such_module: No module named"),
        (["--cutmix-minmax", "0.2"], "--cutmix-minmax takes two values"),
        (["--epoch-repeats", "2"], "--epoch-repeats is for streaming datasets"),
        (["--log-wandb"], "pip install wandb"),
        (["--log-trackio"], "pip install trackio"),
        (["--torchscript"], "--torchscript is not supported: TorchScript is deprecated"),
        (["--resume", "auto"], "pass --experiment NAME"),
        (["-c", "none.yaml"], "cannot be read"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, monkeypatch, error_of, more, expected):
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, "--output", str(tmp_path), *more])
    assert expected in error_of(train.main)


def test_splits_must_not_overlap(tmp_path, monkeypatch, error_of, capsys):
    datasets = pytest.importorskip("datasets", reason="hfds/ needs the extra [data]")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()
    table = {"image": [Image.new("RGB", (32, 32))] * 8, "label": [0, 1] * 4}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    (tmp_path / "pets").mkdir()
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "pets" / "train.parquet"))
    argv = ["--dataset", f"hfds/{tmp_path}/pets", "--data-dir", str(tmp_path / "cache"), "--num-classes", "2"]
    argv += ["--model", "test_resnet", "--img-size", "32", "-b", "4", "-j", "0", "--device", "cpu", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["train.py", *argv, "--val-split", "train[:25%]"])
    assert "--train-split train and --val-split train[:25%] have images in common" in error_of(train.main)
    monkeypatch.setattr(sys, "argv", ["train.py", *argv, "--val-split", "train"])
    train.main()
    assert "validation runs on the training images" in capsys.readouterr().out


def test_forgotten_settings_are_noted(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path)
    more = ["--model", "test_resnet", "--img-size", "32", "--device", "cpu", "-j", "0", "-b", "4", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "train"), *more, "--epochs", "5"])
    train.main()
    out = capsys.readouterr().out
    assert "the data has 4 classes, the model 1000: pass --num-classes 4" in out
    assert "validation runs on the training images" in out
    assert "still warming up when the run ends" in out
    meant = ["--num-classes", "4", "--epochs", "6"]
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path), *more, *meant])
    train.main()
    assert "note:" not in capsys.readouterr().out


def test_one_class_cannot_be_learnt(tmp_path, monkeypatch, error_of):
    write_folder(tmp_path, count=1)
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path), *TINY_RUN, "-b", "1", "--output", str(tmp_path)])
    assert "one class, so there is nothing to classify" in error_of(train.main)


def test_learning_rate_scales_with_the_batch_of_an_update():
    args = parse_train_args(["-b", "64", "--grad-accum-steps", "8", "--lr-base", "0.1"])
    assert resolve_lr(args) == pytest.approx(0.2)
    args.opt = "adamw"
    assert resolve_lr(args) == pytest.approx(0.1 * 2**0.5)
    assert resolve_lr(args, world_size=4) == pytest.approx(0.1 * 8**0.5)
    args.lr = 0.3
    assert resolve_lr(args) == 0.3


def test_contradictory_schedule_is_a_user_error():
    args = parse_train_args(["--sched", "wsd", "--epochs", "5", "--warmup-epochs", "5", "--lr", "1"])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    with pytest.raises(UserError, match="schedule 'wsd'"):
        build_scheduler(args, optimizer, 10)


def test_entry_points_are_thin():
    for module in (train, validate, get_flops):
        with open(module.__file__) as file:
            assert len(file.readlines()) <= 40


def tiny(output, *more):
    return run_training(parse_train_args([*TINY_RUN, "--output", str(output), *more]))


@pytest.mark.usefixtures("tiny_images")
def test_dry_run_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = run_training(parse_train_args([*TINY_RUN, "--dry-run", "--grad-accum-steps", "3", "--model-ema"]))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("dry run: one update") and last.endswith(", ok")
    assert len(result.rows) == 1 and not list(tmp_path.iterdir()) and not result.run_dir.exists()


@pytest.mark.usefixtures("tiny_images")
def test_fine_tuning_replaces_the_classifier(tmp_path, capsys):
    source = tiny(tmp_path / "a", "--epochs", "1").run_dir / "last.pth.tar"
    start = ["--initial-checkpoint", str(source), "--num-classes", "7", "--lr", "1e-12"]
    result = tiny(tmp_path / "b", *start, "--epochs", "1", "--head-init-bias", "-3", "--head-init-scale", "0")
    assert f"its classifier of {CLASSES} classes is replaced by a new one of 7" in capsys.readouterr().out
    old, new = (torch.load(path, weights_only=True)["state_dict"] for path in (source, result.run_dir / source.name))
    torch.testing.assert_close(new["conv1.0.weight"], old["conv1.0.weight"], atol=1e-6, rtol=0)
    torch.testing.assert_close(new["fc.bias"], torch.full((7,), -3.0), atol=1e-6, rtol=0)
    assert new["fc.weight"].abs().max() < 1e-6


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.parametrize(
    "more",
    [
        ["--model-dtype", "bfloat16", "--model-ema", "--lr-noise", "0.1", "0.9", "--layer-decay", "0.8"],
        ["--torchcompile", "eager", "--model-ema", "--model-ema-force-cpu", "--synchronize-step"],
        ["--grad-checkpointing", "--clip-grad", "0.02", "--clip-mode", "agc", "--tta", "2", "--no-prefetcher"],
        [
            "--bce-loss",
            "--bce-sum",
            "--bce-target-thresh",
            "0.2",
            "--mixup",
            "0.2",
            "--aug-repeats",
            "3",
            "--gp",
            "max",
        ],
        ["--bn-momentum", "0.3", "--bn-eps", "0.01", "--save-images", "--sched", "plateau", "--checkpoint-hist", "1"],
        ["--crop-padding", "4", "--aa", "rand-m5-n1", "--reprob", "0.5"],
        ["--grayscale-prob", "0.5", "--gaussian-blur-prob", "0.5", "--color-jitter-prob", "0.5", "--start-epoch", "1"],
        ["--drop-block", "0.1", "--train-crop-mode", "rkrc", "--sched", "none", "--eval-metric", "top5"],
    ],
    ids=lambda more: more[0],
)
def test_flags_work_together(tmp_path, more):
    result = tiny(tmp_path, *more, "--experiment", "run")
    assert result.finished and result.rows[-1]["epoch"] == 1
    state = torch.load(tmp_path / "run" / "last.pth.tar", weights_only=True)
    weights = state["state_dict"]
    assert weights["conv1.0.weight"].dtype == (torch.bfloat16 if "--model-dtype" in more else torch.float32)
    assert all(not key.startswith(("_orig_mod", "module")) for key in weights)
    assert ("state_dict_ema" in state) == ("--model-ema" in more)
    if "--save-images" in more:
        assert (tmp_path / "run" / "train-0-6.png").stat().st_size > 0
        assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1


@pytest.mark.usefixtures("tiny_images")
def test_a_padded_crop_and_another_one_are_refused(tmp_path):
    with pytest.raises(UserError, match="--crop-padding .*: leave --scale, --ratio out"):
        tiny(tmp_path, "--crop-padding", "4", "--scale", "0.5", "1", "--ratio", "1", "1")


@pytest.mark.usefixtures("tiny_images")
def test_tensorboard_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = [flag for flag in TINY_RUN if flag != "--no-tensorboard"]
    argv += ["--epochs", "1", "--log-interval", "3"]
    result = run_training(parse_train_args([*argv, "--output", str(tmp_path)]))
    events = EventAccumulator(str(result.run_dir))
    events.Reload()
    names = ("train/loss", "train/lr", "train/grad_norm", "train/images_per_s", "train/data_wait", "train/peak_gib")
    assert {*names, "epoch/val_loss", "epoch/top1"} <= set(events.Tags()["scalars"])
    assert 0 < events.Scalars("train/data_wait")[0].value < 1
    assert 0.1 < events.Scalars("train/peak_gib")[0].value < 100
    assert [event.step for event in events.Scalars("train/loss")] == [3, 6]
    assert events.Scalars("epoch/val_loss")[0].value == pytest.approx(result.rows[0]["val_loss"])


@pytest.mark.usefixtures("tiny_images")
def test_deterministic_asks_torch_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the user's choice stays
    try:
        tiny(tmp_path, "--deterministic", "--dry-run")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("tiny_images")
def test_deterministic_runs_are_bit_equal_for_any_number_of_workers(tmp_path):
    try:
        more = ["--deterministic", "--mixup", "0.4", "--reprob", "0.5", "--aa", "rand-m9-mstd0.5", "--drop-path", "0.2"]
        folders = [tiny(tmp_path / count, *more, "-j", count).run_dir for count in ("0", "2")]
    finally:
        torch.use_deterministic_algorithms(False)
    one, two = (torch.load(folder / "last.pth.tar", weights_only=True) for folder in folders)
    assert one["loss_sums"] == two["loss_sums"] and one["num_updates"] == 12
    assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())
    moments = ("exp_avg", "exp_avg_sq")
    pairs = zip(one["optimizer"]["state"].values(), two["optimizer"]["state"].values(), strict=True)
    assert all(torch.equal(a[key], b[key]) for a, b in pairs for key in moments)


@pytest.mark.usefixtures("tiny_images")
def test_trackers_get_the_figures(tmp_path, monkeypatch):
    """A stand-in for the two packages, which talk to servers."""
    calls = []

    class Tracker:
        def init(self, **options):
            calls.append(("init", options))
            return self

        def log(self, figures, step):
            calls.append((step, figures))

        def finish(self):
            calls.append(("finish", None))

    monkeypatch.setitem(sys.modules, "trackio", Tracker())
    monkeypatch.setitem(sys.modules, "wandb", Tracker())
    more = ["--log-trackio", "--trackio-project", "p", "--log-wandb", "--wandb-project", "q", "--experiment", "e"]
    tiny(tmp_path, *more, "--epochs", "1")
    projects = [options["project"] for kind, options in calls if kind == "init"]
    assert projects == ["q", "p"] and [options["name"] for kind, options in calls if kind == "init"] == ["e", "e"]
    figures = [(step, sorted(logged)) for step, logged in calls if isinstance(step, int)]
    assert len(figures) == 4 and all(step == 6 for step, _ in figures)  # one log point and one epoch each
    assert "train/loss" in figures[0][1] and "epoch/top1" in figures[-1][1]
    assert [kind for kind, _ in calls].count("finish") == 2


@pytest.mark.parametrize(
    ("differing", "expected"),
    [
        ({}, None),
        ({"--lr": 2.0}, "rank 0 has --lr 1.0, rank 1 2.0"),
        ({"classes": 9}, "rank 0 has classes 10, rank 1 9"),
    ],
)
def test_processes_that_differ_are_named(differing, expected):
    class Two(World):
        def gather(self, value):
            return [value, value | differing]

    args, world = parse_train_args(["--lr", "1"]), Two(torch.device("cpu"), size=2)
    if expected is None:
        check_agreement(args, world, {"classes": 10})
        return
    with pytest.raises(UserError, match=expected):
        check_agreement(args, world, {"classes": 10})


def test_synchronised_batch_norm_needs_cuda():
    task = Classification(parse_train_args(["--sync-bn", "--lr", "1"]), World(torch.device("cpu"), size=2))
    with pytest.raises(UserError, match="--sync-bn needs CUDA devices, not cpu"):
        build_state(task, torch.nn.Linear(1, 1), 1)


@pytest.mark.usefixtures("tiny_images")
def test_fast_norm(tmp_path):
    try:
        tiny(tmp_path, "--fast-norm", "--dry-run")
        assert timm.layers.is_fast_norm()
    finally:
        timm.layers.set_fast_norm(False)


def test_binary_cross_entropy_by_hand():
    logits, labels = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0])
    args = parse_train_args(["--bce-loss", "--bce-sum", "--smoothing", "0.3", "--bce-pos-weight", "2"])
    target = torch.tensor([[0.8, 0.1, 0.1]])
    expected = -(2 * target * torch.sigmoid(logits).log() + (1 - target) * torch.sigmoid(-logits).log()).sum()
    torch.testing.assert_close(build_loss(args, mixed=False)(logits, labels), expected)
    torch.testing.assert_close(build_loss(args, mixed=True)(logits, target), expected)


def test_top5_among_few_classes_is_not_printed(tmp_path, tiny_images, capsys):
    argv = [*TINY_RUN, "--output", str(tmp_path), "--experiment", "run", "--epochs", "1"]
    result = run_training(parse_train_args(argv))
    assert result.rows[0]["top5"] == 100
    said = capsys.readouterr().out
    assert ", top1 " in said and ", top5 " not in said
