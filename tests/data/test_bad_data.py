"""Data that is not as it should be, through the commands: named, counted, left out or refused, never mislabelled."""

import shutil
import sys

import pytest
import torch
from tiny_data import TINY_RUN, write_folder

import train
import validate
from wsfvit.cli.train import parse_train_args
from wsfvit.cli.validate import parse_validate_args
from wsfvit.eval.validate import run_validation
from wsfvit.train.classify import run_training


@pytest.fixture
def data(tmp_path):
    return write_folder(tmp_path / "data")


def train_argv(data, *more):
    return [*TINY_RUN, "--data-dir", str(data), "--output", str(data.parent), "--experiment", "run", *more]


def validate_argv(data, *more):
    argv = ["--data-dir", str(data), "--checkpoint", str(data.parent / "run" / "last.pth.tar"), "--device", "cpu"]
    return [*argv, "-j", "0", "-b", "8", *more]


def refused(monkeypatch, error_of, command, argv):
    monkeypatch.setattr(sys, "argv", ["x", *argv])
    return error_of(command.main)


def test_unreadable_images_end_or_are_counted(data, monkeypatch, capsys, error_of):
    (data / "train" / "1" / "5.png").write_bytes(b"broken")
    (data / "validation" / "2" / "6.png").write_bytes(b"broken")
    said = refused(monkeypatch, error_of, train, train_argv(data))
    assert "5.png" in said and "pass --on-bad-image skip" in said
    shutil.rmtree(data.parent / "run")

    run_training(parse_train_args(train_argv(data, "--on-bad-image", "skip", "--epochs", "2")))
    out, err = capsys.readouterr()
    counts = "skipped so far: 1 unreadable training images, 1 unreadable validation images"
    assert out.count(counts) == 2  # each once, however often it was met

    assert "6.png" in refused(monkeypatch, error_of, validate, validate_argv(data))
    (row,) = run_validation(parse_validate_args(validate_argv(data, "--on-bad-image", "skip")))
    assert (row["images"], row["left_out"]) == (15, 1)
    assert "15 images (1 more were unreadable and skipped): top-1" in capsys.readouterr().out
    labels = data.parent / "labels.json"
    more = ["--on-bad-image", "skip", "--real-labels", str(labels)]
    assert "--real-labels needs every image" in refused(monkeypatch, error_of, validate, validate_argv(data, *more))


def test_an_empty_class_folder_is_named(data, monkeypatch, error_of):
    (data / "train" / "0b").mkdir()
    said = refused(monkeypatch, error_of, train, train_argv(data))
    assert "1 class folders" in said and "(0b)" in said and "--class-map" in said


def test_a_class_more_in_one_split_is_refused(data, monkeypatch, error_of):
    (data / "validation" / "0b").mkdir()
    shutil.copy(data / "validation" / "0" / "0.png", data / "validation" / "0b")
    said = refused(monkeypatch, error_of, train, train_argv(data, "--num-classes", "5"))
    assert "class '1' has label 2 in this data and 1 in the training data (5 and 4 classes)" in said
    assert "5 classes, the model 4" in refused(monkeypatch, error_of, train, train_argv(data))


def test_classes_in_another_order_than_the_checkpoint_are_refused(data, monkeypatch, error_of):
    run_training(parse_train_args(train_argv(data, "--epochs", "1")))
    path = data.parent / "run" / "last.pth.tar"
    assert torch.load(path, weights_only=True)["class_names"] == ["0", "1", "2", "3"]
    shutil.rmtree(data / "validation" / "1")
    said = refused(monkeypatch, error_of, validate, validate_argv(data))
    assert f"class '2' has label 1 in this data and 2 in checkpoint '{path}'" in said
    chosen = data.parent / "chosen.txt"
    chosen.write_text("0\n2\n3\n")
    (row,) = run_validation(parse_validate_args(validate_argv(data, "--valid-labels", str(chosen))))
    assert row["images"] == 12
