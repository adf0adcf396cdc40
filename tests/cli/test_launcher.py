"""The ``wsfvit`` command: its table, its help, its suggestions, and what starting it imports."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import wsfvit_cli
from wsfvit.analysis.info import VARIABLES
from wsfvit.cli.common import SPELLINGS, build_parser
from wsfvit_cli import GROUPS, dispatch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in GROUPS for name in GROUPS[group]])
def test_every_command_has_its_functions(group: str, name: str) -> None:
    _, *functions = GROUPS[group][name]
    assert len(functions) == 2 and all(callable(wsfvit_cli._load(function)) for function in functions)
    assert f"  {group} {name}".replace("   ", "  ") in wsfvit_cli.format_help()


def test_help_starts_without_torch() -> None:
    """As the installed console command starts: from the module that pyproject.toml names."""
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["wsfvit"]
    module, _, function = entry.partition(":")
    assert callable(getattr(wsfvit_cli, function)) and module == wsfvit_cli.__name__
    code = (
        f"import sys, {module} as m\ntry:\n m.{function}(['--help'])\nfinally:\n print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("usage: wsfvit COMMAND")
    assert not {"torch", "timm", "numpy", "wsfvit"} & set(done.stderr.split())


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian"], "unknown command 'trian', did you mean 'train'?"),
        (["vidoe", "train"], "did you mean 'video'?"),
        (["detection", "shape"], "did you mean 'shapes'?"),
        (["xyz"], "wsfvit --help lists the commands"),
        (["train", "--bath-size", "8"], "unrecognized arguments: --bath-size, did you mean '--batch-size'?"),
        (["plot", "RUN", "--oot=x"], "unrecognized arguments: --oot=x, did you mean '--out'?"),
        (["train", "--fusr"], "did you mean '--lr'?"),  # --fuser is refused
    ],
)
def test_a_misspelled_name_is_suggested(argv: list[str], expected: str, error_of: Callable[..., str]) -> None:
    assert expected in error_of(lambda: dispatch(argv))


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_both_spellings_are_one_flag(one: str, other: str) -> None:
    for flag in (one, other):
        parser = build_parser("")
        parser.add_argument(flag, dest="value")
        assert parser.parse_args([one, "1"]) == parser.parse_args([other, "1"])


def test_every_environment_variable_that_is_read_is_in_the_table() -> None:
    found = set()
    for path in (
        p for folder in ("wsfvit", "benchmarks", "experiments", "tools") for p in (ROOT / folder).rglob("*.py")
    ):
        found |= set(
            re.findall(r"environ(?:ment)?(?:\.get)?[\[(]\s*\"([A-Z_]+)\"|\"(WSFVIT_[A-Z_0-9]+)\"", path.read_text())
        )
    assert {name for pair in found for name in pair if name} <= VARIABLES.keys()
    scripts = "".join(path.read_text() for path in (ROOT / "scripts").rglob("*") if path.is_file())
    assert set(re.findall(r"\$\{([A-Z_]+):-", scripts)) <= VARIABLES.keys()
    table = (ROOT / "docs" / "faq.md").read_text().partition("## Environment variables")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([A-Z_0-9]+)`", row)} == VARIABLES.keys()


def test_key_values_are_literals_or_text() -> None:
    from wsfvit.cli.train import train_parser

    parsed = train_parser().parse_args(["--model-kwargs", "a=1", "b=(2, 3)", "c=x=y", "d=1x", "e="]).model_kwargs
    assert parsed == {"a": 1, "b": (2, 3), "c": "x=y", "d": "1x", "e": ""}


OWN_MODEL = """
import timm
from timm.models import register_model
@register_model
def my_own_net(pretrained=False, **kwargs):
    return timm.create_model("test_vit", **kwargs)
"""


def test_a_model_of_your_own_is_imported_by_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my_own_net_file.py").write_text(OWN_MODEL)
    dispatch(["flops", "--import", str(tmp_path / "my_own_net_file.py"), "--model", "my_own_net"])
    assert "my_own_net" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, "there is no such .py file"), ("import none_such", "ModuleNotFoundError: No module named 'none_such'")],
)
def test_an_import_that_fails_is_one_line(
    text: str | None, expected: str, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    if text is not None:
        (tmp_path / "broken_net.py").write_text(text)
    assert expected in error_of(lambda: dispatch(["flops", "--import", str(tmp_path / "broken_net.py")]))


def test_a_file_cannot_name_code_to_import(tmp_path: Path, error_of: Callable[..., str]) -> None:
    (tmp_path / "c.yaml").write_text("imports: [evil.py]\n")
    assert "unknown key 'imports'" in error_of(lambda: dispatch(["train", "-c", str(tmp_path / "c.yaml")]))
