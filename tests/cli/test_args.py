"""Parsers and the YAML files that change their defaults."""

import json
import re
from pathlib import Path

import pytest
import yaml

from wsfvit.cli.refused import REFUSED, REFUSED_VALIDATE, REFUSED_VALUES
from wsfvit.cli.run import parse_with_config
from wsfvit.cli.train import parse_train_args, train_parser
from wsfvit.cli.validate import parse_validate_args, validate_parser
from wsfvit.detection.args import train_parser as detection_train_parser
from wsfvit.factory.recipe import resolve_grad_accum_steps
from wsfvit.utils.errors import UserError, run_main
from wsfvit.video.args import train_parser as video_train_parser
from wsfvit_cli import add_import

ROOT = Path(__file__).parents[2]
# The command that reads the files of each folder of configs/.
CONFIG_PARSERS = {
    "cifar10": train_parser,
    "detection": detection_train_parser,
    "digits": train_parser,
    "imagenet": train_parser,
    "video": video_train_parser,
}


def config(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def test_import_beside_resume():
    parser = train_parser()
    add_import(parser)
    args = parse_with_config(parser, ["--import", "own.py", "--resume", "run"], lambda resume, given: {"epochs": 7})
    assert (args.imports, args.resume, args.epochs) == (["own.py"], "run", 7)


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
    parser = CONFIG_PARSERS.get(path.parent.name)
    if parser is None or path.stem.startswith("study"):
        pytest.skip("read by another command")
    args = parse_with_config(parser(), ["-c", str(path)])
    for key, value in yaml.safe_load(path.read_text()).items():
        assert getattr(args, key) == value, key


def test_imagenet_configs_keep_the_recipe_batch():
    for path in sorted((ROOT / "configs" / "imagenet").glob("*.yaml")):
        args = parse_train_args(["-c", str(path)])
        for processes in (1, 2, 4, 8):
            assert args.batch_size * processes * resolve_grad_accum_steps(args, processes) == 2048


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
        "Batch norm parameters",
        "Model exponential moving average parameters",
        "Miscellaneous parameters",
        "Checkpoint and log parameters",
    ]


# Where the default is ours: this project's model, and the CPU where there is no GPU.
OWN_DEFAULTS = ("model", "device")
TIMM_FLAGS = json.loads((ROOT / "tests" / "cli_flags.json").read_text())
COMMANDS = {
    "train": (train_parser, parse_train_args, REFUSED),
    "validate": (validate_parser, parse_validate_args, REFUSED_VALIDATE),
}
NUMBERS = {"int": "2", "float": "0.5"}


@pytest.mark.parametrize(
    ("command", "timm"),
    [pytest.param(name, flag, id=f"{name} {flag['flags'][-1]}") for name in COMMANDS for flag in TIMM_FLAGS[name]],
)
def test_timm_flags_keep_their_meaning_or_are_refused(command, timm):
    build_parser, parse, refused = COMMANDS[command]
    flag = timm["flags"][-1]
    if flag in refused:
        with pytest.raises(UserError, match=re.escape(f"{flag} is not supported: {refused[flag]}")):
            parse([flag, *([] if timm["nargs"] == 0 else ["1"])])
        return
    action = next(action for action in build_parser()._actions if action.dest == timm["dest"])
    assert set(timm["flags"]) - {"data"} <= set(action.option_strings)
    if timm["dest"] not in OWN_DEFAULTS:
        assert action.default == timm["default"]
    if timm["nargs"] == 0:
        assert getattr(parse([flag]), timm["dest"]) is True
    elif timm["type"] in NUMBERS:
        assert action.nargs == timm["nargs"]
        text = "2" if timm["dest"] in ("aug_repeats", "tta") else NUMBERS[timm["type"]]
        values = [text] * (timm["nargs"] if isinstance(timm["nargs"], int) else 1)
        found = getattr(parse([flag, *values]), timm["dest"])
        assert found == ([float(value) for value in values] if timm["nargs"] else float(text))


def test_refusals_say_what_to_do():
    for flag, reason in [*REFUSED.items(), *REFUSED_VALIDATE.items()]:
        assert any(word in reason for word in ("use ", "convert ", "start with ", "leave ", "serves ")), flag
    names = {command: {name for timm in flags for name in timm["flags"]} for command, flags in TIMM_FLAGS.items()}
    assert REFUSED.keys() | REFUSED_VALUES.keys() <= names["train"]
    assert REFUSED_VALIDATE.keys() <= names["validate"]


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, v in REFUSED_VALUES.items() for value in v])
def test_refused_values(flag, value, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_train_args([flag, value])
    assert ended.value.code == 2
    assert f"{value} is not supported: {REFUSED_VALUES[flag][value]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [["--epochs", "0"], ["--lr", "nan"], ["--lr", "-1"], ["--reprob", "2"], ["--scale", "a"], ["--opt-kwargs", "x"]]
    + [["-j", "-1"], ["--sched", "no-such"], ["--aug-repeats", "1.5"], ["--batch-size"], ["--input-size", "3", "2"]],
    ids=" ".join,
)
def test_bad_values_are_one_line(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: parse_train_args(argv))
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and argv[0] in lines[0]


def test_yaml_files_of_timm_may_hold_refused_flags_switched_off(tmp_path):
    off = "torchscript: false\nfuser: ''\naug_splits: 0\ndrop_connect: null\nlocal_rank: 0\nlr: 0.5\n"
    assert parse_train_args(["-c", config(tmp_path, off)]).lr == 0.5
    with pytest.raises(UserError, match="--jsd-loss is not supported"):
        parse_train_args(["-c", config(tmp_path, "jsd_loss: true\n")])


def test_help_states_each_default_once():
    text = " ".join(train_parser().format_help().split())
    assert "--img-size N image size (default: the model's) --in-chans" in text
    assert "--epochs N epochs to train (default: 300)" in text
    assert "--no-model-ema maintain an EMA of the weights and evaluate the EMA model (default: False)" in text
    assert not re.search(r"\(default: [^()]*\) \(default|default: (None|\[\]|\{\})?\)", text)
    detection = " ".join(detection_train_parser().format_help().split())
    assert "optimizer betas (default: [0.9, 0.999])" in detection
