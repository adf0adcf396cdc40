"""A study: its YAML file, its rows, and the settings of each."""

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from wsfvit.utils.errors import UserError

STUDY_KEYS = ("title", "recipe", "results", "seeds", "train", "measure", "systems", "comparisons")
REQUIRED_KEYS = ("title", "results", "seeds", "systems")


@dataclass(frozen=True)
class Study:
    """Content of a study's YAML file.

    Attributes:
        name: Of the file, without its suffix.
        title: Heading of the report.
        results: Folder of the results.
        seeds: Seeds of every system.
        settings: Arguments of train.py, as in its YAML files, for every row: the recipe and what the study changes.
        measure: ``batch_size`` and ``repeats`` of the timing after each training.
        systems: Arguments of train.py of each system, by name; ``note`` among them is shown in the table.
        comparisons: ``system`` and ``against`` by name, and the ``published`` difference.
    """

    name: str
    title: str
    results: Path
    seeds: list[int]
    settings: dict[str, Any]
    measure: dict[str, int]
    systems: dict[str, dict[str, Any]]
    comparisons: list[dict[str, str]]


class Row(NamedTuple):
    """One system with one seed."""

    system: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folders."""
        return f"{self.system}-seed{self.seed}"


def load_study(path: str) -> Study:
    """Read a study.

    Raises:
        UserError: the file or its recipe cannot be read, or does not hold what a study needs.
    """
    content = _read_yaml(Path(path))
    for key in content:
        if key not in STUDY_KEYS:
            near = difflib.get_close_matches(str(key), STUDY_KEYS, n=1)
            raise UserError(f"study '{path}': unknown key '{key}'" + (f", did you mean '{near[0]}'?" if near else ""))
    if missing := [key for key in REQUIRED_KEYS if not content.get(key)]:
        raise UserError(f"study '{path}' has no {', '.join(missing)}")
    systems = content["systems"]
    for name, system in systems.items():
        if not isinstance(system, dict) or "model" not in system:
            raise UserError(f"study '{path}': system '{name}' names no model")
    comparisons = content.get("comparisons") or []
    for comparison in comparisons:
        for key in ("system", "against"):
            if comparison.get(key) not in systems:
                raise UserError(
                    f"study '{path}': a comparison's {key} is '{comparison.get(key)}', which is not a system"
                )
    recipe = _read_yaml(Path(content["recipe"])) if content.get("recipe") else {}
    return Study(
        name=Path(path).stem,
        title=content["title"],
        results=Path(content["results"]),
        seeds=list(content["seeds"]),
        settings=recipe | (content.get("train") or {}),
        measure={"batch_size": 64, "repeats": 10} | (content.get("measure") or {}),
        systems=systems,
        comparisons=comparisons,
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as err:
        raise UserError(f"'{path}' cannot be read: {err.strerror}") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise UserError(f"'{path}' is not valid YAML: {' '.join(str(err).split())}") from err
    if not isinstance(content, dict):
        raise UserError(f"'{path}' must be a list of 'key: value' lines")
    return content


def choose_rows(study: Study, only: Sequence[str], seeds: Sequence[int] | None) -> list[Row]:
    """Rows to run, all systems of one seed before the next seed, so that an early end leaves whole comparisons.

    Raises:
        UserError: a pattern matches no system, or the study has no such seed.
    """
    for pattern in only:
        if not fnmatch.filter(study.systems, pattern):
            raise UserError(f"--only {pattern}: no such system; there are {', '.join(study.systems)}")
    systems = [name for name in study.systems if any(fnmatch.fnmatchcase(name, pattern) for pattern in only)]
    if unknown := sorted(set(seeds or ()) - set(study.seeds)):
        raise UserError(f"--seeds {unknown[0]}: the study's seeds are {', '.join(map(str, study.seeds))}")
    return [Row(system, seed) for seed in seeds or study.seeds for system in systems]


def row_settings(study: Study, row: Row) -> dict[str, Any]:
    """Arguments of train.py that define a row, without folders."""
    system = {key: value for key, value in study.systems[row.system].items() if key != "note"}
    return study.settings | system | {"seed": row.seed}
