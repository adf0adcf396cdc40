"""README and docs: links lead somewhere, Python blocks run, command lines parse, the table of variables is complete.

A Python block whose first line begins with "# fails without" or "# slow" is only compiled.
"""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import wsfvit_cli
from wsfvit.cli.run import parse_with_config
from wsfvit_cli import GROUPS

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {"train.py": "train", "validate.py": "validate", "get_flops.py": "flops", "cam_image.py": "cam"}
per_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@per_page
def test_links(page: Path) -> None:
    for target, _, anchor in re.findall(r"\]\(([^)#\s]*)(#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            path = (page.parent / target).resolve() if target else page
            assert path.exists(), f"{page.name}: no file {target}"
            assert not anchor or anchor in anchors(path), f"{page.name}: no heading #{anchor} in {path.name}"


@per_page
def test_python_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other and share their names."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks(page, "python"):
        code = compile(block, str(page), "exec")
        if not block.startswith(("# fails without", "# slow")):
            exec(code, names)


def command_lines(page: Path) -> Iterator[list[str]]:
    """Words of every line of the Bash blocks, and of every `wsfvit ...` in the text."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (shlex.split(part, comments=True) for part in line.split("&&"))
    for code in re.findall(r"`(wsfvit [a-z][^`]*)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)):
        yield shlex.split(code)


def check(words: list[str]) -> None:
    """Parse the arguments of our commands; of other programs of the repository, check that they exist."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    for script, name in SCRIPTS.items():
        if script in words:  # of python or torchrun
            words = ["wsfvit", name, *words[words.index(script) + 1 :]]
    if words[:1] == ["python"] and words[1].startswith("examples/own_model"):
        words = ["wsfvit", *words[2:]]
    if words[:3] == ["python", "-m", "wsfvit"]:
        words = words[2:]
    if words[:1] == ["wsfvit"]:
        group, name, *argv = words[1:] if words[1] in GROUPS else ["", *words[1:]]
        module, _, function = GROUPS[group][name][1].partition(":")
        parser = getattr(importlib.import_module(f"wsfvit.{module}"), function)()
        wsfvit_cli.add_import(parser)
        if argv and argv != ["--help"]:  # else the words only name the command
            parse_with_config(parser, argv)
    elif words[:2] == ["python", "-m"]:
        assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file(), words
    elif words[:1] in (["bash"], ["python"], ["sbatch"]):
        for word in words[1:]:
            assert not word.startswith(("scripts/", "examples/")) or (ROOT / word).is_file(), words


@per_page
def test_command_lines(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in command_lines(page):
        check(words)


def test_wrong_command_lines_are_found() -> None:
    for wrong in (["wsfvit", "train", "--epoch", "1"], ["wsfvit", "validate", "-c"], ["wsfvit", "tarin"]):
        with pytest.raises((SystemExit, KeyError)):
            check(wrong)


def test_every_variable_is_in_the_table() -> None:
    table = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8").partition("## Environment variables")[2]
    inherited = {"PATH", "HOME", "TMPDIR", "LANG", "DEATH"}  # the last one of tests/dying_rank.py
    folders = ("wsfvit", "benchmarks", "experiments", "tools", "scripts", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh")]
    for path in files:
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"environ(?:\.get|\.setdefault)?[\[(]\"([A-Z_0-9]+)\"", text)
        found += re.findall(r"WSFVIT_[A-Z_0-9]+", text)
        found += re.findall(r"\$\{([A-Z_]+):-", text) if path.suffix == ".sh" else []
        for name in set(found) - inherited:
            assert name in table or (name.startswith("TORCHELASTIC_") and "TORCHELASTIC_*" in table), (path, name)


def test_the_readme_is_short_and_the_pages_use_the_fields_words() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
    for page in PAGES:
        assert not re.search("moving average|learnt|anew|all alone|native alone", page.read_text(encoding="utf-8")), (
            page
        )
