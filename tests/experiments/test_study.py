"""The study's runner: rows are run once, a failing one stops none, and an interrupted one is continued."""

import contextlib
import json
import os
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from other_process import holding

from experiments import study_report, study_row
from experiments.study import Runner, main, read_record
from experiments.study_plan import Row, choose_rows, load_study, row_settings
from wsfvit.cli.train import parse_train_args
from wsfvit.factory.model import build_model
from wsfvit.train.loop import LoopEvents
from wsfvit.train.signals import STOPPED_EXIT_CODE, StopRequests
from wsfvit.train.trainer import Trainer
from wsfvit.utils.errors import UserError

ROOT = Path(__file__).parents[2]
TRAIN = {
    **{"dataset": "synthetic/4", "train_num_samples": 16, "val_num_samples": 16, "num_classes": 4, "img_size": 32},
    **{"device": "cpu", "workers": 0, "epochs": 2, "batch_size": 8, "warmup_epochs": 0, "opt": "adamw", "lr": 1e-3},
}
SYSTEMS = {"small": {"model": "test_resnet", "note": "tiny"}, "broken": {"model": "test_nothing"}}
SYSTEMS["other"] = {"model": "test_convnext"}


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    content = {
        "title": "tiny",
        "results": str(tmp_path / "results"),
        "seeds": [0],
        "train": TRAIN,
        "measure": {"batch_size": 2, "repeats": 1},
        "systems": SYSTEMS,
        "comparisons": [{"system": "small", "against": "other", "published": "+1.5"}],
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rows run in this process, which imports torch once; the list names them."""
    names: list[str] = []

    def execute(self: Runner, argv: list[str], log: Any, stop: StopRequests) -> int:
        names.append(Path(argv[0]).name)
        with contextlib.redirect_stdout(log):
            try:
                study_row.main(argv)
            except UserError as err:
                log.write(f"error: {err}\n")
                return 2
            except SystemExit as ended:
                return int(ended.code or 0)
        return 0

    monkeypatch.setattr(Runner, "_execute", execute)
    return names


def test_rows_run_once_and_a_failing_one_stops_none(study_file: Path, executed: list[str], capsys: Any) -> None:
    results, argv = study_file.parent / "results", [str(study_file), "--output", str(study_file.parent / "out")]
    main(argv)
    assert executed == ["small-seed0", "broken-seed0", "other-seed0"]
    small, broken, other = json.loads((results / "results.json").read_text())["rows"]
    assert "unknown model 'test_nothing'" in broken["error"] and "top1" not in broken
    for record in (small, other):
        assert record["epochs"] == 2 and 0 <= record["top1"] <= record["best_top1"] <= 100
        assert min(record[key] for key in ("params", "macs", "training_images_per_s", "inference_images_per_s")) > 0
        assert record["peak_memory"] > 2**20
    page = (results / "results.md").read_text()
    assert "2 of 3 rows are finished" in page and "tiny" in page and "+1.5" in page
    assert f"{small['top1'] - other['top1']:+.2f}" in page
    assert (results / "results.png").stat().st_size > 10_000
    kept = {path.name for path in (results / "small-seed0").iterdir()}
    assert kept == {"row.json", "summary.csv", "args.yaml", "log.txt"}
    for path in (results / "small-seed0").iterdir():
        assert str(study_file.parent / "out") not in path.read_text()

    executed.clear()
    main(argv)
    assert executed == ["broken-seed0"]
    capsys.readouterr()
    main([*argv, "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert f"top-1 {small['top1']:.2f} %" in lines[0] and "failed: error: unknown model" in lines[1]

    study_file.write_text(study_file.read_text().replace("epochs: 2", "epochs: 3"))
    with pytest.raises(UserError, match=r"small-seed0 was finished with other settings \(epochs 2 -> 3\)"):
        main(argv)
    for path in (results / "small-seed0").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="small-seed0' holds a run with other settings .epochs 2 -> 3.: remove it"):
        main([*argv, "--only", "small"])


def test_an_interrupted_row_is_continued(
    study_file: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = study_file.parent / "out"
    argv = [str(study_file), "--output", str(out), "--only", "small"]

    def stop_after_first_update(self: Trainer, state: Any) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return on_update(self, state)

    on_update = Trainer.on_update
    assert on_update is not LoopEvents.on_update
    monkeypatch.setattr(Trainer, "on_update", stop_after_first_update)
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == STOPPED_EXIT_CODE
    assert not (study_file.parent / "results").exists()
    capsys.readouterr()
    main([*argv, "--list"])
    assert "interrupted, will continue" in capsys.readouterr().out

    monkeypatch.setattr(Trainer, "on_update", on_update)
    main(argv)
    assert "continuing at epoch 0, batch 1" in (out / "tiny" / "small-seed0" / "log.txt").read_text()
    record = json.loads((study_file.parent / "results" / "small-seed0" / "row.json").read_text())
    assert record["epochs"] == 2
    assert executed == ["small-seed0"] * 2


@pytest.mark.skipif(os.name != "posix", reason="locks as POSIX systems do")
def test_commands_share_the_rows(study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """What another command runs is left out, and what it has run since this one started."""
    out, study = study_file.parent / "out", load_study(str(study_file))
    ran = []

    def run_row(self: Runner, row: Row, folder: Path, stop: Any) -> int:
        ran.append(row.system)
        for name in ("broken", "other"):  # finished by another command meanwhile
            target = study.results / f"{name}-seed0"
            target.mkdir(parents=True, exist_ok=True)
            settings = row_settings(study, Row(name, 0))
            (target / "row.json").write_text(json.dumps({"settings": settings, "top1": 1.0, "error": "none"}))
        (folder / "log.txt").write_text("failed")
        return 1

    monkeypatch.setattr(Runner, "_run_row", run_row)
    monkeypatch.setattr("experiments.study.write_report", lambda study: None)
    with holding(out / "tiny" / "small-seed0" / ".row.lock"):
        assert Runner(study, None, out, None).run([Row("small", 0)])
    assert not ran and "another command runs it or has run it" in capsys.readouterr().out
    assert Runner(study, None, out, None).run([Row("small", 0), Row("broken", 0), Row("other", 0)])
    assert ran == ["small"]


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_a_row_is_a_process_of_its_own(study_file: Path) -> None:
    argv = [str(study_file), "--output", str(study_file.parent / "out"), "--only"]
    main([*argv, "broken"])
    record = json.loads((study_file.parent / "results" / "broken-seed0" / "row.json").read_text())
    assert record["error"].startswith("error: unknown model 'test_nothing'")
    study, rows = load_study(str(study_file)), [Row("small", 0)]
    runner = Runner(study, None, study_file.parent / "out", budget=0.3)
    assert not runner.run(rows)  # asked to stop while Python is still starting
    assert not (study.results / "small-seed0").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sytems": {}}, "unknown key 'sytems', did you mean 'systems'"),
        ({"seeds": []}, "has no seeds"),
        ({"systems": {"small": {}}}, "system 'small' names no model"),
        ({"comparisons": [{"system": "small", "against": "big"}]}, "against is 'big', which is not a system"),
        ({"recipe": "nowhere.yaml"}, "'nowhere.yaml' cannot be read"),
    ],
)
def test_a_wrong_study_is_refused(study_file: Path, change: dict[str, Any], message: str) -> None:
    study_file.write_text(yaml.safe_dump(yaml.safe_load(study_file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_study(str(study_file))


def test_choice_of_rows(study_file: Path) -> None:
    study_file.write_text(study_file.read_text().replace("seeds:\n- 0\n", "seeds: [0, 1, 2]\n"))
    study = load_study(str(study_file))
    assert choose_rows(study, ["o*", "br*"], [1, 2]) == [
        Row("broken", 1),
        Row("other", 1),
        Row("broken", 2),
        Row("other", 2),
    ]
    with pytest.raises(UserError, match="--seeds 7: the study's seeds are 0, 1, 2"):
        choose_rows(study, ["*"], [0, 7])
    with pytest.raises(UserError, match="--only big: no such system; there are small, broken, other"):
        choose_rows(study, ["small", "big"], None)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "cifar10").glob("study*.yaml")), ids=lambda path: path.stem)
def test_the_studies_name_models_and_settings_that_exist(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    study = load_study(str(path))
    for row in choose_rows(study, "*", study.seeds[:1]):
        file = tmp_path / "row.yaml"
        file.write_text(yaml.safe_dump(row_settings(study, row)))
        args = parse_train_args(["-c", str(file)])
        with torch.device("meta"):
            params = sum(p.numel() for p in build_model(args).parameters())
        if path.stem == "study":
            assert ("band" in study.systems[row.system].get("note", "")) == (not 2e6 <= params <= 10e6), row


def test_paired_differences() -> None:
    ours, theirs = {0: 90.0, 1: 92.0, 2: 91.0, 3: 50.0}, {0: 89.0, 1: 90.0, 2: 90.5, 5: 10.0}
    difference, half, count = study_report.paired_difference(ours, theirs) or (0, 0, 0)
    assert (difference, count) == (pytest.approx(3.5 / 3), 3)
    assert half == pytest.approx(4.303 * statistics.stdev([1.0, 2.0, 0.5]) / 3**0.5, rel=1e-4)
    assert study_report.paired_difference({0: 2.0}, {0: 1.0}) == (1.0, None, 1)
    assert study_report.paired_difference({0: 2.0}, {1: 1.0}) is None


def test_model_kwargs_of_a_row_reach_the_model(study_file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(study_file.read_text())
    own = {"model": "wsfvit_dwt_p0_224", "img_size": 64, "model_kwargs": {"window_size": 4, "joint_subband_norm": True}}
    study_file.write_text(yaml.safe_dump(content | {"systems": {"joint": own}, "comparisons": []}))
    (tmp_path / "row.yaml").write_text(yaml.safe_dump(row_settings(load_study(str(study_file)), Row("joint", 0))))
    with torch.device("meta"):
        joint = build_model(parse_train_args(["-c", str(tmp_path / "row.yaml")]))
        plain = timm.create_model("wsfvit_dwt_p0_224", img_size=64, num_classes=4, window_size=4)
    assert str(joint) != str(plain)


def test_the_recorded_study_is_finished_and_gives_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = load_study("configs/cifar10/study_cpu.yaml")
    records = [read_record(study, row) for row in choose_rows(study, "*", None)]
    assert len(records) == 39 and all(record and "error" not in record for record in records)
    ordered = sorted(records, key=lambda record: (list(study.systems).index(record["system"]), record["seed"]))
    assert study_report.build_page(study, ordered) == (study.results / "results.md").read_text()
