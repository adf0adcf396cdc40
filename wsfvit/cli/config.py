"""YAML files that change the defaults of a parser."""

import argparse
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from timm.utils import ParseKwargs

from wsfvit.utils.errors import UserError


def apply_config(parser: argparse.ArgumentParser, path: str) -> None:
    """Makes the values of a YAML file the defaults of ``parser``.

    Raises:
        UserError: the file cannot be read, or a key or value is not one that ``parser`` takes.
    """
    try:
        config = yaml.safe_load(Path(path).read_text()) or {}
    except OSError as err:
        raise UserError(f"config '{path}' cannot be read: {err.strerror}") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise UserError(f"config '{path}' is not valid YAML: {' '.join(str(err).split())}") from err
    if not isinstance(config, dict):
        raise UserError(f"config '{path}' must be a list of 'key: value' lines")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    for key, value in list(config.items()):
        if key not in actions:
            near = difflib.get_close_matches(str(key), actions, n=1)
            raise UserError(f"config '{path}': unknown key '{key}'" + (f", did you mean '{near[0]}'?" if near else ""))
        if actions[key].default is argparse.SUPPRESS:
            # A refused flag. The files that timm writes hold every flag; switched off it is no reason to stop.
            if config.pop(key):
                actions[key](parser, argparse.Namespace(), value)
            continue
        try:
            config[key] = _config_value(actions[key], value)
        except (argparse.ArgumentTypeError, TypeError, ValueError) as err:
            raise UserError(f"config '{path}': {key}: {value!r} does not fit ({err})") from err
    parser.set_defaults(**config)


def _config_value(action: argparse.Action, value: Any) -> Any:
    """Checks and converts a YAML value as the command line would its text."""
    convert: Callable[[str], Any] = action.type if callable(action.type) else str
    if value is None:
        return None
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError("true or false expected")
        return value
    if isinstance(action, ParseKwargs):
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
