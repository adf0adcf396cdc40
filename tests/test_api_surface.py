"""Public names and signatures change on purpose only: then update api_surface.json and the CHANGELOG.

python tests/test_api_surface.py > tests/api_surface.json
"""

import importlib
import inspect
import json
from pathlib import Path

import timm

import wsfvit.models

PACKAGES = "wavelets layers models data checkpoint eval analysis train detection video"
MODULES = tuple(f"wsfvit.{name}" for name in PACKAGES.split())


def describe_surface() -> dict[str, object]:
    families = [name for name, member in vars(wsfvit.models).items() if inspect.ismodule(member)]
    surface: dict[str, object] = {"models": sorted(m for name in families for m in timm.list_models(module=name))}
    for name in MODULES:
        module = importlib.import_module(name)
        members = {member: getattr(module, member) for member in sorted(module.__all__)}
        surface[name] = {key: _signature(value) for key, value in members.items()}
    return surface


def _signature(value: object) -> str:
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return type(value).__name__
    parameters = inspect.signature(value).parameters.values()
    return ", ".join(p.name if p.default is p.empty else f"{p.name}=" for p in parameters)


def test_public_names_and_signatures() -> None:
    recorded = json.loads((Path(__file__).parent / "api_surface.json").read_text())
    assert describe_surface() == recorded


if __name__ == "__main__":
    print(json.dumps(describe_surface(), indent=1))
