"""wsfvit plot."""

import math

import numpy as np
import pytest
from PIL import Image

from wsfvit.analysis.plot import draw_curves, name_runs, read_run, run_plot
from wsfvit.cli.tools import plot_parser
from wsfvit_cli import dispatch


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def runs(tmp_path):
    """Our table with an empty cell, timm's, and one that holds something else."""
    write(tmp_path / "runs/ours/summary.csv", "epoch,train_loss,val_loss,top1,lr\n0,2,1.5,50,0.1\n1,1,,60,0.01\n")
    write(tmp_path / "runs/theirs/summary.csv", "epoch,train_loss,eval_loss,eval_top1\n0,3,2.5,40\n")
    write(tmp_path / "other/linear.csv", "dataset,top1\ndigits,91\n")
    return tmp_path


def test_curves_hold_the_tables(runs):
    found = [read_run(runs / "runs" / name / "summary.csv", name) for name in ("ours", "theirs")]
    axes = draw_curves(found).axes
    assert [axis.get_title() for axis in axes] == [
        "training loss",
        "validation loss",
        "validation top-1",
        "learning rate",
    ]
    drawn = [[(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines] for axis in axes]
    assert drawn[0] == [([0, 1], [2, 1]), ([0], [3])]
    assert drawn[2] == [([0, 1], [50, 60]), ([0], [40])]
    assert drawn[3] == [([0, 1], [0.1, 0.01])]
    (first, gap), (only,) = drawn[1][0][1], drawn[1][1][1]
    assert (first, only) == (1.5, 2.5) and math.isnan(gap)


def test_command_names_runs_and_skips_other_tables(runs, trained, capsys):
    out = runs / "new" / "curves.png"
    args = [str(runs / "runs"), str(runs / "other/linear.csv"), str(trained.run_dir), "--out", str(out)]
    assert [run.name for run in run_plot(plot_parser().parse_args(args))] == ["ours", "theirs", "tiny"]
    lines = capsys.readouterr().out.splitlines()
    assert "skipped" in lines[0] and "no 'epoch' column" in lines[0]
    assert lines[1] == "ours: 2 epochs, best top-1 60.00 % (epoch 1)"
    assert np.asarray(Image.open(out)).std() > 10


def test_names_grow_until_they_differ(tmp_path):
    files = [tmp_path / "a/run/summary.csv", tmp_path / "b/run/summary.csv", tmp_path / "b/table.csv"]
    assert name_runs(files) == ["a/run", "b/run", "table"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["none"], "'none' does not exist"),
        (["empty"], "holds no summary.csv"),
        (["other/linear.csv"], "no 'epoch' column"),
        (["header.csv"], "it has no rows"),
        (["bytes.csv"], "cannot be read as a table"),
        (["epochs.csv"], "a column to draw: train_loss"),
        (["runs", "--out", "curves.doc"], "must end in .png"),
    ],
)
def test_mistakes_are_one_line(argv, expected, runs, monkeypatch, error_of):
    (runs / "empty").mkdir()
    write(runs / "header.csv", "epoch,train_loss\n")
    write(runs / "epochs.csv", "epoch,other\n0,1\n")
    (runs / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    monkeypatch.chdir(runs)
    assert expected in error_of(lambda: dispatch(["plot", *argv]))
    assert not (runs / "output").exists()


def test_average_precision_of_every_second_epoch(tmp_path, capsys):
    rows = [f"{epoch},1,{0.1 * epoch if epoch % 2 else ''},,0.1" for epoch in range(60)]
    write(tmp_path / "det/summary.csv", "\n".join(["epoch,train_loss,bbox_AP,segm_AP,lr", *rows]))
    (run,) = run_plot(plot_parser().parse_args([str(tmp_path / "det"), "--out", str(tmp_path / "curves.png")]))
    assert "det: 60 epochs, best box AP 5.900 (epoch 59)" in capsys.readouterr().out
    axes = draw_curves([run]).axes
    assert [axis.get_title() for axis in axes if axis.axison] == ["training loss", "validation box AP", "learning rate"]
    assert [axis.lines[0].get_marker() for axis in axes[:2]] == ["", "o"]
