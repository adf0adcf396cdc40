"""validate.py with tiny networks: figures, defaults, several models, several processes, other truths, memory."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from tiny_data import CLASSES, TinyImages, write_folder
from torch import nn

import validate
from wsfvit.cli.validate import parse_validate_args
from wsfvit.eval import validate as command
from wsfvit.eval.jobs import Job, list_jobs
from wsfvit.eval.validate import run_validation
from wsfvit.factory import model as factory
from wsfvit.models.fuse import ConvGELU
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.tables import ResultsFile

ROOT = Path(__file__).parents[2]
MODEL = ["--model", "test_resnet", "--num-classes", str(CLASSES), "--img-size", "32", "--device", "cpu", "-j", "0"]


def digits_args(checkpoint, *more):
    return parse_validate_args(
        ["--dataset", "digits", "--device", "cpu", "-j", "0", "--checkpoint", str(checkpoint), *more]
    )


def save_model(path, seed=0, **more):
    """A random test_resnet for the tiny images; returns its path."""
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=CLASSES)
    with torch.no_grad():
        model.fc.weight.normal_()
    torch.save({"state_dict": model.state_dict(), **more}, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("weights") / "a.pth")


@pytest.fixture
def seven(monkeypatch):
    """All data is seven tiny images."""
    monkeypatch.setattr("wsfvit.factory.data.create_dataset", lambda *args, **kwargs: TinyImages(7))


def run(*argv):
    return run_validation(parse_validate_args([*MODEL, *map(str, argv)]))


def test_it_repeats_the_last_validation_of_a_training(trained, tmp_path, capsys):
    last, row = trained.run_dir / "last.pth.tar", trained.rows[-1]
    [result] = run_validation(digits_args(last, "--use-ema", "--results-file", str(tmp_path / "r.json")))
    assert (result["images"], result["weights"]) == (1000, "ema")
    assert result["top1"] == row["top1"]
    assert result["loss"] == pytest.approx(row["val_loss"], rel=1e-5)
    assert (result["input_size"], result["mean"]) == ([1, 32, 32], [0.13])
    assert json.loads((tmp_path / "r.json").read_text()) == result
    assert "1x32x32" in capsys.readouterr().out


def test_it_is_exact_for_any_batch_size_and_loader(trained):
    last = trained.run_dir / "last.pth.tar"
    [whole] = run_validation(digits_args(last, "-b", "1000"))
    [odd] = run_validation(digits_args(last, "-b", "333", "--no-prefetcher"))
    assert odd["images"] == whole["images"] == 1000
    assert odd["top1"] == whole["top1"]
    assert odd["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_the_command_line_overrules_what_the_checkpoint_says(trained):
    last = trained.run_dir / "last.pth.tar"
    [result] = run_validation(digits_args(last, "--img-size", "48", "--mean", "0.5"))
    assert (result["input_size"], result["mean"], result["std"]) == ([1, 48, 48], [0.5], [0.31])
    with pytest.raises(UserError, match="it has 10 classes, the model test_resnet has 12: pass num_classes=10"):
        run_validation(digits_args(last, "--num-classes", "12"))


@pytest.mark.usefixtures("seven")
def test_weights_in_another_model_get_a_note_and_keep_their_mean(tmp_path, capsys):
    """Models of one family share their keys, so loading alone would not tell."""
    data_config = {"input_size": [3, 40, 40], "mean": [0.1] * 3, "std": [0.2] * 3, "crop_pct": 0.5}
    found = {}
    for arch in ("test_resnet", "test_resnet_sibling"):
        path = save_model(tmp_path / "a.pth", arch=arch, data_config=data_config)
        args = ["--model", "test_resnet", "--num-classes", str(CLASSES), "--device", "cpu", "-j", "0"]
        [row] = run_validation(parse_validate_args([*args, "--checkpoint", str(path)]))
        found[arch] = row["input_size"][1], row["crop_pct"], row["mean"], row["std"]
        said = "is of test_resnet_sibling and runs as test_resnet" in capsys.readouterr().out
        assert said == (arch != "test_resnet")
    own, sibling = found.values()
    cfg = timm.get_pretrained_cfg("test_resnet")
    assert own == (40, 0.5, [0.1] * 3, [0.2] * 3)
    assert sibling == (cfg.input_size[1], cfg.crop_pct, [0.1] * 3, [0.2] * 3)


@pytest.mark.parametrize("processes", [2, 3])
def test_seven_images_on_several_processes(weights, tmp_path, processes):
    data = write_folder(tmp_path / "data", 7)
    argv = [str(data), *MODEL, "--checkpoint", str(weights), "-b", "2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*launch, str(ROOT / "validate.py"), *argv, "--results-file", str(tmp_path / "r.json")]
        + ["--confusion-matrix", str(tmp_path / "together.csv")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("7 images: top-1") == 1  # only rank 0 logs
    [alone] = run_validation(parse_validate_args([*argv, "--confusion-matrix", str(tmp_path / "alone.csv")]))
    assert (tmp_path / "together.csv").read_text() == (tmp_path / "alone.csv").read_text()
    together = json.loads((tmp_path / "r.json").read_text())
    for key in ("top1", "top5", "images"):
        assert together[key] == alone[key]
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)


def test_synthetic_data_has_the_classes_of_the_model(weights):
    [row] = run("--dataset", "synthetic", "--num-samples", "5", "--checkpoint", weights)
    assert row["images"] == 5


@pytest.mark.usefixtures("seven")
@pytest.mark.parametrize(
    "more",
    [["--model-dtype", "bfloat16"], ["--amp", "--amp-dtype", "bfloat16"], ["--channels-last"], ["--reparam"]]
    + [["--torchcompile", "eager"], ["--gp", "avg"], ["--amp-impl", "native"]],
    ids=" ".join,
)
def test_ways_to_run_it_agree(weights, more):
    [plain], [other] = run("--checkpoint", weights), run("--checkpoint", weights, *more)
    assert other["images"] == 7
    assert other["loss"] == pytest.approx(plain["loss"], rel=3e-2 if "bfloat16" in more else 1e-5)
    assert other["precision"] == {"--model-dtype": "bfloat16", "--amp": "amp bfloat16"}.get(more[0], "float32")


@pytest.mark.usefixtures("seven")
@pytest.mark.parametrize(
    "more", [[], ["--channels-last"], ["--model-dtype", "bfloat16"], ["--torchcompile", "eager"]], ids=" ".join
)
def test_fused_copy_has_the_same_figures(wsf_checkpoint, monkeypatch, capsys, more):
    models, compile_model = [], command.compile_model
    monkeypatch.setattr(
        command, "compile_model", lambda args, model: (models.append(model), compile_model(args, model))[1]
    )
    argv = ["--device", "cpu", "-j", "0", "--checkpoint", wsf_checkpoint, *more]
    [plain], [fused] = (run_validation(parse_validate_args([*argv, *fuse])) for fuse in (["--no-fuse"], ["--fuse"]))
    assert [any(isinstance(part, ConvGELU) for part in model.modules()) for model in models] == [False, True]
    forms = ("compiled", "fused, compiled") if "--torchcompile" in more else ("plain", "fused")
    assert (plain["form"], fused["form"]) == forms
    assert capsys.readouterr().out.count("note: add --fuse") == ("--torchcompile" in more)
    assert fused["loss"] == pytest.approx(plain["loss"], rel=2e-2 if "bfloat16" in more else 1e-5)
    same = ("images", "param_count") if "bfloat16" in more else ("images", "param_count", "top1", "top5")
    assert [fused[key] for key in same] == [plain[key] for key in same]


@pytest.mark.usefixtures("seven")
@pytest.mark.parametrize(
    ("more", "form"),
    [([], "fused"), (["--no-fuse"], "plain"), (["--amp"], "plain"), (["--model-dtype", "bfloat16"], "plain")],
)
def test_fused_by_default_on_a_cpu_in_float32(wsf_checkpoint, more, form):
    argv = ["--device", "cpu", "-j", "0", "--checkpoint", wsf_checkpoint, *more]
    assert run_validation(parse_validate_args(argv))[0]["form"] == form


@pytest.mark.usefixtures("seven")
def test_nothing_to_fuse_is_refused(weights):
    with pytest.raises(UserError, match="--fuse: test_resnet has nothing to fuse, the wsfvit models have; leave it"):
        run("--checkpoint", weights, "--fuse")


@pytest.mark.usefixtures("seven")
def test_crop_and_norm_flags_take_effect(weights, monkeypatch):
    plain, bordered, maximum = (
        run("--checkpoint", weights, "--img-size", "64", *more)[0]
        for more in ([], ["--crop-border-pixels", "8"], ["--gp", "max"])
    )
    assert bordered["crop_border_pixels"] == 8
    assert len({row["loss"] for row in (plain, bordered, maximum)}) == 3
    asked = []
    monkeypatch.setattr(command, "set_fast_norm", lambda: asked.append(True))
    run("--checkpoint", weights, "--fast-norm")
    assert asked == [True]


@pytest.mark.usefixtures("seven")
def test_the_authors_test_size_unless_a_checkpoint_or_a_flag_says_another(tmp_path, monkeypatch):
    args = ["--model", "test_resnet", "--num-classes", str(CLASSES), "--device", "cpu", "-j", "0", "--checkpoint"]
    bare = str(save_model(tmp_path / "bare.pth"))
    saved = str(save_model(tmp_path / "saved.pth", arch="test_resnet", data_config={"input_size": [3, 40, 40]}))
    build = factory.build_model

    def with_test_size(args, **extra):
        model = build(args, **extra)
        model.pretrained_cfg = {**model.pretrained_cfg, "test_input_size": (3, 64, 64), "test_crop_pct": 1.0}
        return model

    monkeypatch.setattr(factory, "build_model", with_test_size)
    for more, size in (
        ([bare], 64),
        ([bare, "--use-train-size"], 160),
        ([saved], 40),
        ([bare, "--img-size", "32"], 32),
    ):
        [row] = run_validation(parse_validate_args([*args, *more]))
        assert row["input_size"][1] == size, more


def test_images_are_evaluated_with_reassessed_labels(weights, tmp_path):
    data = write_folder(tmp_path / "data", 4)
    for index, path in enumerate(sorted((data / "validation").rglob("*.png"))):
        path.rename(path.with_name(f"ILSVRC2012_val_0000000{index + 1}.png"))
    table = tmp_path / "real.json"

    def top1(answers):
        table.write_text(json.dumps(answers))
        [row] = run(data, "--checkpoint", weights, "--real-labels", table, "-b", "3")
        assert row["images"] == 4
        return row["top1"], row["loss"]

    everything, nothing = list(range(CLASSES)), [CLASSES]
    [plain] = run(data, "--checkpoint", weights)
    assert top1([everything] * 4) == (100, pytest.approx(plain["loss"]))
    assert top1([everything, nothing, nothing, nothing])[0] == 25
    assert top1([everything, nothing, [], []])[0] == 50  # images without an answer do not count
    assert top1([[label] for label in range(4)])[0] == plain["top1"]
    with pytest.raises(UserError, match="none of the images"):
        top1([[]] * 4)
    with pytest.raises(UserError, match="is not one of its 3"):
        top1([everything] * 3)


def test_data_of_some_classes_is_evaluated_among_those(weights, tmp_path, capsys):
    data = write_folder(tmp_path / "data", 6)
    shutil.rmtree(data / "validation" / "1")
    shutil.rmtree(data / "validation" / "3")
    listed = tmp_path / "classes.txt"
    listed.write_text("0\n2\n")
    [row] = run(data, "--checkpoint", weights, "--valid-labels", listed)
    assert "note:" not in capsys.readouterr().out
    run(data, "--checkpoint", weights)
    noted = f"note: the data has 2 classes, evaluated as the first of the model's {CLASSES}; see --valid-labels"
    assert noted in capsys.readouterr().out
    model = timm.create_model("test_resnet", num_classes=CLASSES, checkpoint_path=str(weights)).eval()
    halved = nn.Linear(model.num_features, 2)
    halved.load_state_dict({key: value[[0, 2]] for key, value in model.fc.state_dict().items()})
    model.fc, path = halved, tmp_path / "halved.pth"
    torch.save(model.state_dict(), path)
    [expected] = run(data, "--checkpoint", path, "--num-classes", "2")
    assert row["loss"] == pytest.approx(expected["loss"], rel=1e-6) and row["top1"] == expected["top1"]


@pytest.mark.usefixtures("seven")
def test_a_folder_is_a_table_and_failures_are_named_in_it(tmp_path, monkeypatch, capsys):
    for number, seed in ((10, 0), (9, 1)):
        save_model(tmp_path / f"checkpoint-{number}.pth.tar", seed)
    os.link(tmp_path / "checkpoint-10.pth.tar", tmp_path / "last.pth.tar")
    shutil.copy(tmp_path / "checkpoint-9.pth.tar", tmp_path / "model_best.pth.tar")
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    (tmp_path / "summary.csv").write_text("no checkpoint either")
    out = tmp_path / "r.csv"
    argv = ["validate.py", *MODEL, "--checkpoint", str(tmp_path), "--results-file", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        validate.main()
    assert ended.value.code == 1
    text = capsys.readouterr().out
    assert "last.pth.tar is the same as checkpoint-10.pth.tar" in text
    assert "model_best.pth.tar is the same as checkpoint-9.pth.tar" in text
    with open(out) as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["checkpoint"]).name for row in rows][-1] == "broken.pth"
    assert "is damaged or not a checkpoint" in rows[-1]["error"] and rows[-1]["top1"] == ""
    assert {Path(row["checkpoint"]).name for row in rows[:2]} == {"checkpoint-9.pth.tar", "checkpoint-10.pth.tar"}
    assert float(rows[0]["top1"]) >= float(rows[1]["top1"])
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 4 and "broken.pth" in table[-1]


def test_checkpoints_come_in_natural_order(tmp_path):
    for name in ("checkpoint-10.pth", "checkpoint-9.pth", "a.safetensors", ".hidden.pth", "notes.txt"):
        (tmp_path / name).write_text(name)
    several, jobs = list_jobs("m", str(tmp_path))
    assert several
    assert [Path(job.checkpoint).name for job in jobs] == ["a.safetensors", "checkpoint-9.pth", "checkpoint-10.pth"]


def test_models_by_file_pattern_and_all(tmp_path):
    listed = tmp_path / "models.txt"
    listed.write_text("test_vit\n\nresnet18.a1_in1k\n")
    assert list_jobs(str(listed), "") == (True, [Job("test_vit", ""), Job("resnet18.a1_in1k", "")])
    assert list_jobs("test_vi?", "")[1] == [Job("test_vit.r160_in1k", "")]
    assert len(list_jobs("all", "")[1]) > 1000
    assert list_jobs("resnet18.a1_in1k", "") == (False, [Job("resnet18.a1_in1k", "")])
    with pytest.raises(UserError, match="no model of that pattern has pretrained weights"):
        list_jobs("wsfvit_p*", "")
    with pytest.raises(UserError, match="names several models"):
        list_jobs("test_*", "weights.pth")


@pytest.mark.usefixtures("seven")
def test_what_was_measured_survives_a_crash(tmp_path, monkeypatch):
    listed, out = tmp_path / "models.txt", tmp_path / "r.out"
    listed.write_text("test_resnet\ntest_vit\ntest_convnext\n")

    def pretrained(args, instead):
        if args.model == "test_vit":
            raise RuntimeError("cannot be had\nfor long reasons")
        if args.model == "test_convnext":
            raise KeyboardInterrupt
        return factory.build_model(args)

    monkeypatch.setattr(factory, "build_pretrained", pretrained)
    with pytest.raises(KeyboardInterrupt):
        run("--model", listed, "--results-file", out, "--results-format", "json")
    good, bad = json.loads(out.read_text())
    assert (good["model"], good["weights"], good["images"]) == ("test_resnet", "pretrained", 7)
    assert bad["error"] == "RuntimeError: cannot be had"


class Hungry(nn.Module):
    """Runs out of memory on more than two images."""

    def __init__(self, model):
        super().__init__()
        self.model, self.num_classes, self.pretrained_cfg = model, model.num_classes, model.pretrained_cfg

    def forward(self, images):
        if len(images) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return self.model(images)


@pytest.mark.usefixtures("seven")
def test_memory_that_runs_out(weights, monkeypatch, capsys):
    [plain] = run("--checkpoint", weights)
    load = command.load_model
    monkeypatch.setattr(
        command, "load_model", lambda *given, **how: (lambda a, m, meta: (a, Hungry(m), meta))(*load(*given, **how))
    )
    with pytest.raises(UserError, match="too small for --batch-size 7: pass a smaller one, or --retry"):
        run("--checkpoint", weights, "-b", "7")
    [row] = run("--checkpoint", weights, "-b", "7", "--retry")
    assert row["batch_size"] == 1 and row["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert "out of memory, retrying with --batch-size 3" in capsys.readouterr().out


def test_a_failure_in_one_process_ends_all():
    class Two(World):
        def gather(self, value):
            return [value, (False, "cannot read image 'b.png'")]

    with pytest.raises(UserError, match="process 1: cannot read image 'b.png'"):
        command._fail_together(Two(torch.device("cpu"), size=2), lambda: None)


def test_results_files_by_suffix_or_format(tmp_path):
    rows = [{"model": "a", "top1": 1.0}, {"model": "b", "error": "no, not this"}]
    for name, kind, is_json in (("r.json", "csv", True), ("r.csv", "json", False), ("r", "json", True)):
        ResultsFile(str(tmp_path / name), kind).write(rows)
        text = (tmp_path / name).read_text()
        assert text.startswith("[") == is_json
        assert json.loads(text) == rows if is_json else text == 'model,top1,error\na,1.0,\nb,,"no, not this"\n'


@pytest.mark.usefixtures("seven")
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], "pass --checkpoint PATH, or --model NAME"),
        (["--checkpoint", "BARE"], "pass --model NAME"),
        (["--checkpoint", "none.pth"], "does not exist"),
        (["--checkpoint", "EMPTY"], "holds no file that ends in"),
        (["--model", "BARE"], "bare.pth is not a text file of model names; weights go to --checkpoint"),
        (["--model", "wsfvit_p0_224"], "no pretrained weights for wsfvit_p0_224"),
        (["--model", "test_resnett"], "did you mean test_resnet"),
        (["--checkpoint", "BARE", "--amp", "--model-dtype", "float16"], "leave out --model-dtype float16"),
        (["--checkpoint", "BARE", "--results-file", "no/such/r.csv"], "the folder 'no/such' does not exist"),
        ([*MODEL, "--checkpoint", "WEIGHTS", "--torchcompile", "no-such"], "--torchcompile no-such"),
        ([*MODEL, "--checkpoint", "WEIGHTS", "--torchcompile-mode", "default"], "is an option of --torchcompile"),
        ([*MODEL, "--checkpoint", "WEIGHTS", "--real-labels", "none.json"], "needs a dataset with file names"),
        ([*MODEL, "--checkpoint", "WEIGHTS", "--valid-labels", "none.txt"], "expected one class index per line"),
        (["--real-labels", "a", "--valid-labels", "b"], "mutually exclusive"),
        (["--num-gpu", "2"], "--num-gpu is not supported: one process drives one GPU; start with torchrun"),
        (["--crop-border-pixels", "-1"], "must be 0 or more"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value[-2:]),
)
def test_mistakes_end_in_one_line(weights, tmp_path, monkeypatch, error_of, more, expected):
    torch.save({"a": torch.zeros(1)}, tmp_path / "bare.pth")
    (tmp_path / "empty").mkdir()
    paths = {"BARE": str(tmp_path / "bare.pth"), "EMPTY": str(tmp_path / "empty"), "WEIGHTS": str(weights)}
    argv = [paths.get(word, word) for word in ["--device", "cpu", "-j", "0", *more]]
    monkeypatch.setattr(sys, "argv", ["validate.py", *argv])
    assert expected in error_of(validate.main)


def test_confusion_matrix_and_per_class_accuracy(weights, seven, tmp_path, capsys):
    table, figure, result = tmp_path / "c.csv", tmp_path / "c.png", tmp_path / "r.json"
    (row,) = run(tmp_path, "--checkpoint", weights, "--confusion-matrix", table, figure, "--results-file", result)
    rows = list(csv.DictReader(table.open()))
    names = [str(label) for label in range(CLASSES)]
    counts = [[int(line[name]) for name in names] for line in rows]
    assert [line["class"] for line in rows] == names and sum(map(sum, counts)) == 7
    labels = TinyImages(7).labels
    assert [int(line["images"]) for line in rows] == [labels.count(label) for label in range(CLASSES)]
    hits = sum(counts[i][i] for i in range(CLASSES))
    assert row["top1"] == pytest.approx(100 * hits / 7)
    assert float(rows[0]["top1"]) == pytest.approx(100 * counts[0][0] / sum(counts[0]), abs=0.01)
    assert figure.stat().st_size > 1000
    written = json.loads(result.read_text())
    assert written["data"] == str(tmp_path) and written["epoch"] is None and written["seconds"] > 0
    assert "confusion" not in written and "top-5" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--confusion-matrix", "none/c.csv"], "the folder 'none' does not exist"),
        (["--confusion-matrix", "c.doc"], "--confusion-matrix c.doc: the name must end in .png"),
        (["--confusion-matrix", "c.csv", "--real-labels", "x"], "leave out --real-labels"),
    ],
)
def test_confusion_matrices_that_cannot_be_written(more, expected, weights):
    with pytest.raises(UserError, match=expected):
        run("--checkpoint", weights, *more)
