"""Imports run one way, and importing the package is silent, cheap and touches no CUDA, Triton or optional package."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom to the top: a package imports what stands before it.
ORDER = (
    "utils", "wavelets", "layers", "data", "models", "cli", "checkpoint", "factory", "eval", "inference", "analysis",
    "train", "detection", "video", "__main__",
)  # fmt: skip
TASKS = {"detection", "video"}  # know nothing of each other
# Programs beside the package use its public names; nothing in the package knows them.
OUTSIDE = {"benchmarks", "experiments", "tools", "examples", "tests", "train", "validate", "get_flops", "cam_image"}


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported_modules(path: Path, top_level: bool = False) -> set[str]:
    """Absolute names of all modules that a file imports, at any depth of its code or at its top level only."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    names = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import name` means the module of that name where there is one.
            names |= {
                f"{module}.{alias.name}" if module == "wsfvit" or is_module(f"{module}.{alias.name}") else module
                for alias in node.names
            }
    return names


def package_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else "__init__"


FILES = sorted((ROOT / "wsfvit").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    here = path.relative_to(ROOT / "wsfvit").with_suffix("").parts[0]
    for module in imported_modules(path):
        assert module.split(".")[0] not in OUTSIDE, f"{path} imports {module}"
        assert module != "wsfvit_cli" or path.stem in ("__main__", "plot"), f"{path} imports the launcher"
        there = package_of(module)
        if module.split(".")[0] != "wsfvit" or there in (here, "__version__"):
            continue
        if there == "__init__":
            # A bare `import wsfvit` registers the models; only what builds models may ask for that.
            assert ORDER.index(here) > ORDER.index("models"), path
        elif here in ("__init__", "plot", "benchmarks"):  # the package itself and its short-cuts
            assert there in ("models", "analysis", "utils"), path
        else:
            assert ORDER.index(there) < ORDER.index(here), f"{here} may not import {module}"
            assert not {here, there} <= TASKS, f"{here} may not import {module}"


def test_no_two_modules_import_each_other() -> None:
    """Imports at the top of a file; one inside a function may run the other way within a package."""
    graph: dict[str, set[str]] = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = imported_modules(path, top_level=True)
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in graph[name] & graph.keys() - {name}:
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_walk_sees_imports(tmp_path: Path) -> None:
    """The walk itself: it finds relative, nested and aliased imports."""
    seen = {module for path in FILES for module in imported_modules(path)}
    assert {"wsfvit.wavelets", "wsfvit.layers", "wsfvit.models", "timm.layers"} <= seen


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:wsfvit", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_import_is_silent_and_light() -> None:
    added = json.loads(
        run_python(
            "import sys, json, timm; before = set(sys.modules); import wsfvit, torch; "
            "print(json.dumps([sorted(set(sys.modules) - before), torch.cuda.is_initialized(), "
            "len(timm.list_models('wsfvit*'))]))"
        )
    )
    modules, cuda, models = added
    heavy = {"triton", "pywt", "pytorch_wavelets", "fvcore", "matplotlib", "tensorboard", "datasets"}
    assert not heavy & {module.split(".")[0] for module in modules}
    assert not cuda and models == 21


def test_import_costs_at_most_half_a_second_over_timm() -> None:
    code = "import time, timm; t = time.perf_counter(); import wsfvit; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.5
