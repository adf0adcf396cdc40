"""Imports run one way, and importing the package is silent, cheap and touches no CUDA, Triton or optional package."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Which rooms of the package a room may import. `errors` is a leaf that everyone may use.
MAY_IMPORT = {
    "errors": set(),
    "wavelets": set(),
    "layers": {"wavelets"},
    "models": {"layers", "wavelets"},
    "data": {"errors"},
    "engine": {"data", "errors", "models", "wavelets"},
    "detection": {"data", "engine", "errors", "layers", "models", "wavelets"},
    "video": {"data", "engine", "errors", "layers", "models", "wavelets"},
    "benchmarks": {"data", "detection", "engine", "errors", "layers", "models", "video", "wavelets"},
    "__main__": {"engine", "errors", "wavelets"},
    "plot": {"engine", "errors"},
    "__init__": {"models"},
}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, at any depth of its code."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "wsfvit" else {module}
    return names


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else "__init__"


FILES = sorted((ROOT / "wsfvit").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    parts = path.relative_to(ROOT / "wsfvit").with_suffix("").parts
    here = parts[0]
    for module in imported_modules(path):
        top = module.split(".")[0]
        assert top not in ("tests", "train", "validate", "get_flops", "cam_image"), f"{path} imports {module}"
        if module == "wsfvit":
            # A bare `import wsfvit` registers the models; only what builds models may ask for that.
            assert here in ("engine", "benchmarks", "detection", "video", "__main__"), path
        elif top == "wsfvit" and room(module) not in (here, "__version__"):
            assert room(module) in MAY_IMPORT[here], f"{here} may not import {module}"


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
