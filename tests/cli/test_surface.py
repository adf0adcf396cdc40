"""No command loses a flag: what every parser takes, compared with the record in surface.json.

After an addition, ``python tests/cli/test_surface.py`` writes the record again (it refuses to drop anything).
"""

import argparse
import json
import runpy
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RECORD = HERE / "surface.json"
SCRIPTS = {"train": "train.py", "validate": "validate.py", "flops": "get_flops.py", "cam": "cam_image.py"}
COMMANDS = [*SCRIPTS, "predict", "export", "replay", "weights", "info", "plot"]
COMMANDS += [f"detection {name}" for name in ("train", "validate", "predict", "export", "shapes", "flops")]
COMMANDS += [f"video {name}" for name in ("train", "validate", "predict", "flops")]

Surface = dict[str, dict[str, str]]


class Shown(Exception):
    """Carries the parser whose help was asked for."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that ``command --help`` prints, reached as a user reaches it."""

    def show(self: argparse.ArgumentParser, file: object = None) -> None:
        raise Shown(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "print_help", show)
        package, _, name = command.partition(" ")
        patch.setattr(sys, "argv", [command, *([name] if name else []), "--help"])
        with pytest.raises(Shown) as shown:
            if command in SCRIPTS:
                runpy.run_path(SCRIPTS[command], run_name="__main__")
            elif name or command == "plot":
                runpy.run_module(f"wsfvit.{package}", run_name="__main__")
            else:
                sys.argv.insert(1, command)
                runpy.run_module("wsfvit", run_name="__main__")
    return shown.value.args[0]


def spec(action: argparse.Action) -> str:
    """What a flag takes, without its wording, on one line."""
    kind = type(action).__name__
    facts = {
        "dest": action.dest,
        "action": None if kind == "_StoreAction" else kind,
        "type": action.type and getattr(action.type, "__name__", str(action.type)),
        "choices": action.choices and list(action.choices),
        "default": action.default,
        "const": None if kind == "Refuse" else action.const,
        "nargs": action.nargs,
        "required": action.required or None,
    }
    return " ".join(f"{name}={value}" for name, value in facts.items() if value is not None)


def surface() -> Surface:
    """Flag (or name of a positional argument) -> what it takes -> the commands that have it so, comma-separated."""
    found: dict[str, dict[str, list[str]]] = {}
    for command in COMMANDS:
        for action in parser_of(command)._actions:
            for flag in action.option_strings or [action.dest]:
                found.setdefault(flag, {}).setdefault(spec(action), []).append(command)
    return {flag: {taken: ", ".join(names) for taken, names in specs.items()} for flag, specs in found.items()}


def entries(surface: Surface) -> set[tuple[str, str, str]]:
    return {
        (command, flag, taken)
        for flag, specs in surface.items()
        for taken, names in specs.items()
        for command in names.split(", ")
    }


def test_every_command_takes_what_it_took() -> None:
    recorded, present = entries(json.loads(RECORD.read_text())), entries(surface())
    assert not recorded - present, "flags that are gone or take something else"
    assert not present - recorded, f"new flags: record them with python {Path(__file__).relative_to(ROOT)}"


if __name__ == "__main__":
    sys.path.insert(0, "")  # the tree that one stands in
    new = surface()
    if RECORD.exists() and (lost := entries(json.loads(RECORD.read_text())) - entries(new)):
        sys.exit(f"not written, these would be lost: {sorted(lost)}")
    RECORD.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n")
