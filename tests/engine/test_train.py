"""train.py and validate.py end to end on the built-in digits with a tiny network."""

import csv
import json
import sys

import pytest
import torch
import yaml
from engine.tiny_run import TINY, TWO_STEPS

import get_flops
import train
import validate
from wsfvit.engine.args import parse_train_args, parse_validate_args
from wsfvit.engine.build import build_scheduler, resolve_lr
from wsfvit.engine.evaluate import run_validation
from wsfvit.engine.train import StepConfig, TrainState, run_training, train_one_epoch, update
from wsfvit.errors import UserError


def validate_args(checkpoint, *more):
    return parse_validate_args(
        ["--dataset", "digits", "--device", "cpu", "-j", "0", "--checkpoint", str(checkpoint), *more]
    )


def test_run_folder_is_complete(trained):
    folder = trained["run_folder"]
    assert {"args.yaml", "summary.csv", "last.pth.tar", "model_best.pth.tar"} == {
        path.name for path in folder.iterdir()
    }
    with open(folder / "summary.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    assert list(rows[0]) == ["epoch", "train_loss", "val_loss", "top1", "top5", "lr", "seconds", "images_per_s"]
    assert yaml.safe_load((folder / "args.yaml").read_text())["model"] == "test_resnet"
    content = torch.load(folder / "last.pth.tar", weights_only=True)
    assert {"arch", "model_kwargs", "data_config", "args", "state_dict_ema", "optimizer", "epoch"} <= content.keys()


def test_validate_repeats_the_last_validation(trained, tmp_path, capsys):
    last, row = trained["run_folder"] / "last.pth.tar", trained["rows"][-1]
    result = run_validation(validate_args(last, "--use-ema", "--results-file", str(tmp_path / "r.json")))
    assert (result["images"], result["weights"]) == (1000, "ema")
    assert result["top1"] == row["top1"]
    assert result["loss"] == pytest.approx(row["val_loss"], rel=1e-5)
    assert (result["input_size"], result["mean"]) == ([1, 32, 32], [0.13])
    assert json.loads((tmp_path / "r.json").read_text()) == result
    assert "1x32x32" in capsys.readouterr().out


def test_validate_is_exact_for_any_batch_size_and_loader(trained):
    last = trained["run_folder"] / "last.pth.tar"
    whole = run_validation(validate_args(last, "-b", "1000"))
    odd = run_validation(validate_args(last, "-b", "333", "--no-prefetcher"))
    assert odd["images"] == whole["images"] == 1000
    assert odd["top1"] == whole["top1"]
    assert odd["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_command_line_overrules_what_the_checkpoint_says(trained):
    last = trained["run_folder"] / "last.pth.tar"
    result = run_validation(validate_args(last, "--img-size", "48", "--mean", "0.5"))
    assert (result["input_size"], result["mean"], result["std"]) == ([1, 48, 48], [0.5], [0.31])
    with pytest.raises(UserError, match="it has 10 classes, the model test_resnet has 12: pass num_classes=10"):
        run_validation(validate_args(last, "--num-classes", "12"))


def test_train_starts_from_a_checkpoint_and_accumulates(trained, tmp_path, monkeypatch, capsys):
    more = ["--initial-checkpoint", str(trained["run_folder"] / "last.pth.tar"), "--output", str(tmp_path)]
    more += [
        "-b",
        "1200",
        "--grad-accum-steps",
        "2",
        "--mixup",
        "0.2",
        "--amp",
        "--amp-dtype",
        "bfloat16",
        "--channels-last",
    ]
    more += ["--clip-grad", "1", "--sched-on-updates", "--reprob", "0.2"]
    monkeypatch.setattr(sys, "argv", ["train.py", *TWO_STEPS, *more])
    train.main()
    out = capsys.readouterr().out
    assert "starting from the ema weights" in out
    assert "best top-1" in out


def test_same_seed_same_run(trained, tmp_path):
    argv = [*TWO_STEPS, "--model-ema", "--model-ema-decay", "0.5", "--output", str(tmp_path)]
    again = run_training(parse_train_args(argv))
    assert again["rows"][0]["train_loss"] == trained["rows"][0]["train_loss"]
    assert again["best_top1"] == trained["best_top1"]


def test_a_run_is_not_overwritten(trained, monkeypatch, error_of):
    output = trained["run_folder"].parent
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
        (["-b", "4001"], "more than the 4000 training images"),
        (["-b", "33", "--mixup", "0.5"], "must be even"),
        (["--mean", "0.1", "0.2"], "--mean takes 1 or 1 values"),
        (["--interpolation", "no-such"], "'no-such'"),
        (["--aa", "nosuch"], "Unknown AA policy nosuch"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used here"),
        (["--initial-checkpoint", "none.pth"], "does not exist"),
        (["-c", "none.yaml"], "cannot be read"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, monkeypatch, error_of, more, expected):
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, "--output", str(tmp_path), *more])
    assert expected in error_of(train.main)


def test_validate_mistakes_end_in_one_line(trained, tmp_path, monkeypatch, error_of):
    weights = tmp_path / "bare.pth"
    torch.save({"a": torch.zeros(1)}, weights)
    monkeypatch.setattr(sys, "argv", ["validate.py", "--dataset", "digits", "--checkpoint", str(weights)])
    assert "pass --model" in error_of(validate.main)


class Scripted(torch.nn.Module):
    """A classifier whose output is scaled by the next number of a list."""

    def __init__(self, factors):
        super().__init__()
        self.head = torch.nn.Linear(4, 3, bias=False)
        self.factors = iter(factors)

    def forward(self, x):
        return self.head(x.flatten(1)) * next(self.factors)


def small_state(factors, lr=1.0, **changed):
    model = Scripted(factors)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    state = TrainState(model, optimizer, None, torch.amp.GradScaler("cpu", enabled=False), None)
    fixed = dict(
        device=torch.device("cpu"),
        layout=torch.contiguous_format,
        dtype=None,
        loss=torch.nn.CrossEntropyLoss(),
        mixup=None,
        mixup_off_epoch=0,
        epochs=1,
        grad_accum_steps=1,
        clip_grad=None,
        clip_mode="norm",
        log_interval=10,
    )
    return state, StepConfig(**(fixed | changed))


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, 1, 2, 2, generator=generator), torch.arange(6) % 3) for _ in range(count)]


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_non_finite_loss_stops_before_the_update(factor):
    state, cfg = small_state([1.0, factor, 1.0])
    with pytest.raises(UserError, match=r"loss became (nan|inf) in epoch 0, batch 1"):
        train_one_epoch(state, batches(3), cfg)
    assert state.num_updates == 1
    assert torch.isfinite(state.model.head.weight).all()


def test_accumulated_gradient_is_that_of_the_joined_batch():
    """Five batches in groups of two: two full updates and one of a single batch."""
    data = batches(5)
    torch.manual_seed(0)
    state, cfg = small_state([1.0] * 5, lr=0.1, grad_accum_steps=2)
    torch.manual_seed(0)
    joined, plain = small_state([1.0] * 3, lr=0.1)
    train_one_epoch(state, data, cfg)
    groups = [data[0:2], data[2:4], data[4:5]]
    train_one_epoch(joined, [tuple(map(torch.cat, zip(*group, strict=True))) for group in groups], plain)
    assert state.num_updates == joined.num_updates == 3
    torch.testing.assert_close(state.model.head.weight, joined.model.head.weight)


def test_clipping_bounds_the_update():
    state, cfg = small_state([1.0], clip_grad=0.01)
    before = state.model.head.weight.detach().clone()
    cfg.loss(state.model(batches(1)[0][0] * 100), batches(1)[0][1]).backward()
    update(state, cfg)
    assert (state.model.head.weight - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_learning_rate_scales_with_the_batch_of_an_update():
    args = parse_train_args(["-b", "64", "--grad-accum-steps", "8", "--lr-base", "0.1"])
    assert resolve_lr(args) == pytest.approx(0.2)
    args.opt = "adamw"
    assert resolve_lr(args) == pytest.approx(0.1 * 2**0.5)
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
