"""Parsers and the YAML files that change their defaults."""

from pathlib import Path

import pytest
import yaml

from wsfvit.engine.args import parse_train_args, parse_validate_args, train_parser
from wsfvit.errors import UserError

ROOT = Path(__file__).parents[2]


def config(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def test_yaml_changes_defaults_and_the_command_line_wins(tmp_path):
    path = config(tmp_path, "lr: 1e-3\nbatch_size: 8\nmodel_ema: true\nscale: [0.5, 1]\nmodel_kwargs: {depth: 2}\n")
    args = parse_train_args(["-c", path, "--batch-size", "16", "--no-model-ema"])
    assert (args.lr, args.batch_size, args.model_ema, args.scale) == (1e-3, 16, False, [0.5, 1.0])
    assert args.model_kwargs == {"depth": 2}
    assert args.epochs == 300


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batchsize: 8\n", "unknown key 'batchsize', did you mean 'batch_size'"),
        ("config: other.yaml\n", "unknown key 'config'"),
        ("epochs: many\n", "epochs: 'many' does not fit"),
        ("epochs: 1.5\n", "epochs"),
        ("epochs: 0\n", "1 or more"),
        ("epochs: [1, 2]\n", "a single value expected"),
        ("amp: 1\n", "true or false"),
        ("clip_mode: hard\n", "norm, value, agc"),
        ("input_size: [3, 32]\n", "3 values"),
        ("- 1\n", "key: value"),
        ("a: [1\n", "not valid YAML"),
    ],
)
def test_bad_yaml_is_one_clear_error(tmp_path, text, expected):
    with pytest.raises(UserError, match=expected.replace("[", r"\[")):
        parse_train_args(["-c", config(tmp_path, text)])


def test_missing_yaml(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        parse_train_args(["-c", str(tmp_path / "none.yaml")])


@pytest.mark.parametrize("flag", ["--no-such-flag", "--batch"])
def test_unknown_and_abbreviated_flags_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_train_args([flag, "1"])
    assert ended.value.code == 2
    assert flag in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_hold_known_keys(path):
    if path.parent.name not in ("cifar10", "digits", "imagenet"):
        pytest.skip("read by another command")
    args = parse_train_args(["-c", str(path)])
    for key, value in yaml.safe_load(path.read_text()).items():
        assert getattr(args, key) == value, key


def test_imagenet_configs_keep_the_recipe_batch():
    for path in (ROOT / "configs" / "imagenet").glob("wsfvit_*_224.yaml"):
        args = parse_train_args(["-c", str(path)])
        assert args.batch_size * args.grad_accum_steps == 2048, path


def test_parsed_arguments_survive_yaml(tmp_path):
    args = parse_train_args(["--scale", "0.5", "1", "--model-kwargs", "a=1", "b=x", "--aa", "rand-m7", "--amp"])
    values = {key: value for key, value in vars(args).items() if key != "config"}
    again = parse_train_args(["-c", config(tmp_path, yaml.safe_dump(values))])
    assert {key: value for key, value in vars(again).items() if key != "config"} == values


def test_help_keeps_timm_groups_in_order():
    titles = [group.title for group in train_parser()._action_groups[2:]]
    assert titles == [
        "Dataset parameters",
        "Model parameters",
        "Device parameters",
        "Optimizer parameters",
        "Learning rate schedule parameters",
        "Augmentation and regularization parameters",
        "Model exponential moving average parameters",
        "Miscellaneous parameters",
    ]


def test_validate_needs_a_checkpoint(capsys):
    with pytest.raises(SystemExit):
        parse_validate_args(["--dataset", "digits"])
    assert "--checkpoint" in capsys.readouterr().err
