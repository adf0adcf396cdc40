"""YAML files of default values for a parser."""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from wsfvit.cli.common import KeyValues
from wsfvit.utils.errors import UserError, did_you_mean
from wsfvit.utils.files import open_regular
from wsfvit.utils.limits import MAX_VALUES, check_model_kwargs

# What a file must not ask for: code to import or run, a compiler of its choice, a connection.
COMMAND_LINE_ONLY = (
    "dataset_download", "device_modules", "log_trackio", "log_wandb", "torchcompile_options", "trust_checkpoint"
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """A safe loader that counts each use of an anchor as all that it stands for."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._total, self._sizes = 0, dict[Any, int]()

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias, before = self.check_event(yaml.AliasEvent), self._total
        node = super().compose_node(parent, index)
        self._total += self._sizes.get(node, MAX_VALUES) if is_alias else 1  # unknown within itself
        self._sizes.setdefault(node, self._total - before)
        if self._total > MAX_VALUES:
            raise yaml.YAMLError(f"it unfolds to more than {MAX_VALUES} values, or without end")
        return node


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of ``key: value`` lines; raise a ``UserError`` if it cannot be read or holds something else."""
    try:
        with open_regular(path) as file:
            config = yaml.load(file.read().decode(), _Loader) or {}
    except OSError as err:
        raise UserError(f"config '{path}' cannot be read: {err.strerror}") from err
    except Exception as err:  # PyYAML lets all errors of its conversions through
        raise UserError(f"config '{path}' is not valid YAML: {' '.join(str(err).split())}") from err
    if not isinstance(config, dict):
        raise UserError(f"config '{path}' must be a list of 'key: value' lines")
    return config


def refuse_code(args: Mapping[str, Any], source: str, advice: str = "pass it on the command line") -> None:
    """Raise a ``UserError`` for arguments from the file ``source`` that would run code, start a process, open a
    connection or read files as a model."""
    for key in COMMAND_LINE_ONLY:
        if args.get(key):
            raise UserError(f"{source} sets {key}, which a file must not: {advice}")
    for key in ("data", "data_dir", "dataset", "train_split", "val_split", "class_map"):
        value = str(args.get(key) or "")
        if "pipe:" in value or "://" in value or re.search(r"(^|::)[A-Za-z][\w+.-]+:", value):
            raise UserError(f"{source} reads its data from '{value}': {advice}")
    kind, _, place = str(args.get("dataset")).partition("/")
    if kind.lower() == "tfds" or (kind.lower() in ("hfds", "hfids") and not Path(place).exists()):
        raise UserError(f"{source} reads the data set '{args.get('dataset')}': {advice}")
    for key in ("model_kwargs", "detector_kwargs"):
        check_model_kwargs(args.get(key) or {}, source)


def apply_saved(parser: argparse.ArgumentParser, saved: Mapping[str, Any], source: str) -> None:
    """``apply_config`` with the arguments of an earlier run, as far as ``parser`` has them."""
    known = {action.dest for action in parser._actions if action.default is not argparse.SUPPRESS}
    apply_config(parser, {key: saved[key] for key in saved.keys() & known}, source)


def apply_config(parser: argparse.ArgumentParser, config: dict[str, Any], source: str) -> None:
    """Use ``config`` as the defaults of ``parser``; what it does not take is a ``UserError`` that names ``source``."""
    config = dict(config)
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config", "imports")}
    for key, value in list(config.items()):
        if key not in actions:
            raise UserError(f"{source}: unknown key '{key}'{did_you_mean(key, actions)}")
        if actions[key].default is argparse.SUPPRESS:
            # A refused flag. Files that timm writes hold every flag; one that is off changes nothing.
            if config.pop(key):
                actions[key](parser, argparse.Namespace(), value)
            continue
        if value is None and actions[key].default is not None and actions[key].type is not float:
            del config[key]  # there is no such thing as no epochs; no colour jitter is
            continue
        try:
            config[key] = _config_value(actions[key], value)
        except (argparse.ArgumentTypeError, TypeError, ValueError) as err:
            raise UserError(f"{source}: {key}: {value!r} does not fit ({err})") from err
    parser.set_defaults(**config)


def _config_value(action: argparse.Action, value: Any) -> Any:
    """Check and convert a YAML value as the command line would convert its text."""
    convert: Callable[[str], Any] = action.type if callable(action.type) else str
    if value is None:
        return None
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError("true or false expected")
        return value
    if isinstance(action, KeyValues):
        if not isinstance(value, dict):
            raise ValueError("a mapping expected")
        return value
    if action.nargs == "+" or isinstance(action.nargs, int):
        values = value if isinstance(value, list) else [value]
        if isinstance(action.nargs, int) and len(values) != action.nargs:
            raise ValueError(f"{action.nargs} values expected")
        return [convert(str(item)) for item in values]
    if isinstance(value, (dict, list, bool)):
        raise ValueError("a single value expected")
    converted = convert(str(value))
    if action.choices is not None and converted not in action.choices:
        raise ValueError(f"one of {', '.join(map(str, action.choices))} expected")
    return converted
