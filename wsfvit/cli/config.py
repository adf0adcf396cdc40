"""YAML files of default values for a parser."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from wsfvit.cli.common import KeyValues
from wsfvit.utils.errors import UserError, did_you_mean


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of ``key: value`` lines; raise a ``UserError`` if it cannot be read or holds something else."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as err:
        raise UserError(f"config '{path}' cannot be read: {err.strerror}") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise UserError(f"config '{path}' is not valid YAML: {' '.join(str(err).split())}") from err
    if not isinstance(config, dict):
        raise UserError(f"config '{path}' must be a list of 'key: value' lines")
    return config


def apply_config(parser: argparse.ArgumentParser, config: dict[str, Any], source: str) -> None:
    """Use ``config`` as the defaults of ``parser``; ``source`` names it in errors.

    Raises:
        UserError: ``parser`` does not take one of the keys or values.
    """
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
