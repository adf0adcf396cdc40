"""The launchers: what they start, and a dry run of each (model built, one update on generated images)."""

import importlib.util
import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from wsfvit.cli.train import parse_train_args
from wsfvit.detection.shapes import write_shapes
from wsfvit.train.classify import run_training

ROOT = Path(__file__).parents[1]
LAUNCHERS = sorted((ROOT / "scripts").glob("wsfvit_*_1k.sh"))
DETECTION_LAUNCHERS = sorted((ROOT / "scripts" / "detection").glob("*.sh"))
NAMES = [path.name.removesuffix("_1k.sh") for path in LAUNCHERS]
VIDEO_LAUNCHERS = sorted((ROOT / "scripts" / "video").glob("*.sh"))
VIDEO_NAMES = [path.stem for path in VIDEO_LAUNCHERS]


def run_bash(arguments: Sequence[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    inherited = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR", "LANG") if key in os.environ}
    return subprocess.run(
        ["bash", *arguments], cwd="/", env=inherited | variables, capture_output=True, text=True, timeout=300
    )


def write_program(path: Path, text: str) -> str:
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def echo(tmp_path: Path) -> str:
    """A stand-in for Python that prints its place among the processes and its arguments, one line each."""
    return write_program(
        tmp_path / "echo", 'echo "${RANK:-}/${LOCAL_RANK:-}/${WORLD_SIZE:-} $MASTER_ADDR:$MASTER_PORT" "$@"\n'
    )


def test_there_is_a_launcher_and_a_recipe_for_every_published_row() -> None:
    published = [f"wsfvit_{name}_224" for name in ("p0", "p1", "p2", "n", "t", "s", "m", "b")]
    published += ["wsfvit_b_256", *(f"wsfvit_{name}_384" for name in "tsmb")]
    assert sorted(NAMES) == sorted(published)
    assert sorted(path.stem for path in (ROOT / "configs" / "imagenet").glob("*.yaml")) == sorted(published)


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=NAMES)
def test_one_gpu_is_one_plain_process_with_the_recipe_of_that_name(launcher: Path, echo: str) -> None:
    name = launcher.name.removesuffix("_1k.sh")
    initial = ["--initial-checkpoint", "weights.pth.tar"] if name.endswith("384") else []
    done = run_bash([str(launcher), "/data", "1", *initial], {"PYTHON": echo})
    assert done.returncode == 0, done.stderr
    expected = ["train.py", "/data", "-c", f"configs/imagenet/{name}.yaml", "--output", "output/imagenet"]
    expected += ["--experiment", name, "--resume", "auto", *initial]
    assert done.stdout.split()[2:] == expected


def test_there_is_a_launcher_for_every_published_detector() -> None:
    published = ["mask_rcnn_wsfvit_t", *(f"cascade_wsfvit_{size}" for size in "tsm")]
    assert sorted(path.stem for path in DETECTION_LAUNCHERS) == sorted(published)


@pytest.mark.parametrize("launcher", DETECTION_LAUNCHERS, ids=lambda path: path.stem)
def test_detectors_start_as_one_process_or_through_torchrun(launcher: Path, echo: str) -> None:
    name = launcher.stem
    expected = f"-m wsfvit.detection train /coco -c configs/detection/{name}.yaml --output output/detection "
    expected += f"--experiment {name} --resume auto --epochs 5"
    done = run_bash([str(launcher), "/coco", "--epochs", "5"], {"PYTHON": echo})
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()[2:]) == expected
    done = run_bash([str(launcher), "/coco", "8", "--epochs", "5"], {"PYTHON": echo})
    assert " ".join(done.stdout.split()).endswith(f"--max-restarts 0 {expected}")
    done = run_bash([str(launcher), "--help"], {"PYTHON": echo})
    assert done.returncode == 0 and f"scripts/detection/{name}.sh DATA" in done.stdout


def test_several_gpus_and_machines_start_through_torchrun(echo: str) -> None:
    variables = {"PYTHON": echo, "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "1234"}
    done = run_bash([str(LAUNCHERS[0]), "/data", "8", "--epochs", "5"], variables)
    line = done.stdout
    assert "-m torch.distributed.run --nproc-per-node 8 --nnodes 2 --node-rank 1" in line
    assert "--master-addr first --master-port 1234 --max-restarts 0 train.py /data" in line
    assert line.rstrip().endswith("--resume auto --epochs 5")


def test_flags_may_follow_the_data_at_once_and_spaces_survive(tmp_path: Path) -> None:
    python = write_program(tmp_path / "python", 'printf "<%s>" "$@"\n')
    done = run_bash([str(LAUNCHERS[0]), "/my data", "--opt-kwargs", "a b"], {"PYTHON": python})
    assert "<train.py></my data>" in done.stdout and done.stdout.endswith("<--opt-kwargs><a b>")


@pytest.mark.parametrize("launcher", VIDEO_LAUNCHERS, ids=VIDEO_NAMES)
def test_a_video_model_is_trained_by_the_recipe_of_that_name(launcher: Path, echo: str) -> None:
    done = run_bash([str(launcher), "/mnist", "4", "--amp"], {"PYTHON": echo})
    assert done.returncode == 0, done.stderr
    config = f"configs/video/{launcher.stem}.yaml"
    expected = (
        f"--max-restarts 0 -m wsfvit.video train --mnist /mnist -c {config} --batch-size 4 --output output/video "
    )
    assert expected + f"--experiment {launcher.stem} --resume auto --amp" in " ".join(done.stdout.split())
    assert (ROOT / config).is_file()


@pytest.mark.parametrize("launcher", [LAUNCHERS[0], VIDEO_LAUNCHERS[0]], ids=["imagenet", "video"])
@pytest.mark.parametrize("arguments", [[], ["/data", "0"], ["/data", "many"]])
def test_missing_or_wrong_arguments_say_what_is_wanted(launcher: Path, arguments: list[str], echo: str) -> None:
    done = run_bash([str(launcher), *arguments], {"PYTHON": echo})
    assert done.returncode == 2
    assert "GPU" in done.stdout + done.stderr


def test_help_is_help(echo: str) -> None:
    usages = {launcher: f"scripts/{launcher.name} DATA" for launcher in LAUNCHERS}
    usages |= {launcher: f"scripts/video/{launcher.name} DATA" for launcher in VIDEO_LAUNCHERS}
    for launcher, usage in usages.items():
        done = run_bash([str(launcher), "--help"], {"PYTHON": echo})
        assert done.returncode == 0 and usage in done.stdout


@pytest.mark.parametrize("name", ["quickstart", "test", "benchmark_gpu"])
def test_help_installs_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for script in (f"{name}.sh", "env.sh"):
        shutil.copy(ROOT / "scripts" / script, tmp_path / "scripts")
    done = run_bash([str(tmp_path / "scripts" / f"{name}.sh"), "--help"], {"PYTHON": "false"})
    assert done.returncode == 0 and "rguments go to" in done.stdout and "set -e" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["scripts"]


def test_fine_tuning_without_weights_is_refused(echo: str) -> None:
    done = run_bash([str(ROOT / "scripts" / "wsfvit_t_384_1k.sh"), "/data", "1"], {"PYTHON": echo})
    assert done.returncode == 2
    assert "output/imagenet/wsfvit_t_224/model_best.pth.tar" in done.stderr and "--initial-checkpoint" in done.stderr


def test_several_machines_get_their_ranks_and_one_failure_is_told(tmp_path: Path, echo: str) -> None:
    remote = write_program(tmp_path / "remote", '[ "$1" != broken ] || exit 7\nexec bash -c "$2"\n')
    multinode = str(ROOT / "scripts" / "multinode.sh")
    launcher = "scripts/wsfvit_t_224_1k.sh"
    done = run_bash([multinode, "one two", launcher, "/my data", "2"], {"REMOTE": remote, "PYTHON": echo})
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert len(lines) == 2 and all("one:29500" in line and "/my data -c" in line for line in lines)
    assert "--nnodes 2 --node-rank 0" in lines[0] and "--nnodes 2 --node-rank 1" in lines[1]
    done = run_bash([multinode, "one broken", launcher, "/data", "2"], {"REMOTE": remote, "PYTHON": echo})
    assert done.returncode == 7 and "broken ended with exit code 7" in done.stderr


def test_a_slurm_task_is_one_process_and_a_saved_run_is_queued_again(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    write_program(
        programs / "srun",
        'shift\nfor task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" || status=$?; done\n'
        "exit ${status:-0}\n",
    )
    log = tmp_path / "scontrol.log"
    write_program(
        programs / "scontrol", f'echo "$@" >> {shlex.quote(str(log))}\n[ "$1" != show ] || printf "one\\ntwo\\n"\n'
    )
    python = write_program(
        tmp_path / "python", 'echo "$RANK/$LOCAL_RANK/$WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $@"\nexit ${STATUS:-0}\n'
    )
    variables = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHON": python,
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NODELIST": "one,two",
        "SLURM_JOB_ID": "41",
    }
    job = [str(ROOT / "scripts" / "slurm" / "train.sbatch"), "scripts/wsfvit_t_224_1k.sh", "/data", "--epochs", "5"]
    done = run_bash(job, variables)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("0/0/2 one:20041 train.py /data -c") and second.startswith("1/1/2 one:20041 train.py")
    assert first.endswith("--epochs 5") and "requeue" not in log.read_text()
    assert run_bash(job, variables | {"STATUS": "75"}).returncode == 75
    assert "requeue 41" in log.read_text()
    assert run_bash(job, variables | {"STATUS": "2"}).returncode == 2
    assert log.read_text().count("requeue") == 1


DRY_RUN = "--dry-run --dataset synthetic --device cpu --no-amp -j 0 --img-size 64".split()
DRY_RUN += "--batch-size 2 --global-batch-size 2".split()


def test_dry_run() -> None:
    """Of one; the others' recipes follow without a process each."""
    arguments = [str(ROOT / "scripts" / "wsfvit_p0_224_1k.sh"), "/nowhere", "1", *DRY_RUN]
    done = run_bash(arguments, {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "dry run" in done.stdout and "wsfvit_p0_224" in done.stdout


@pytest.mark.parametrize("name", [name for name in NAMES if name != "wsfvit_p0_224"])
def test_dry_run_of_a_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "configs" / "imagenet" / f"{name}.yaml")
    run_training(parse_train_args(["/nowhere", "-c", recipe, *DRY_RUN]))
    said = capsys.readouterr().out
    assert "dry run" in said and name in said


def test_dry_run_of_a_video_model(tmp_path: Path) -> None:
    """The dwt recipe, at a width and size that make it cheap, on digits of its own."""
    for name in ("train", "t10k"):
        digits = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
        header = b"\0\0\x08\x03" + np.array(digits.shape, ">u4").tobytes()
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(header + digits.tobytes())
    flags = "--dry-run --device cpu -j 0 --size 16 16 --hid-s 2 --hid-t 8 --head-dim 4 --inter-heads 4".split()
    launcher = ROOT / "scripts" / "video" / "simvp_wsfvit_dwt_200ep.sh"
    done = run_bash([str(launcher), str(tmp_path), "1", *flags], {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "dry run" in done.stdout and "SimVP (dwt family)" in done.stdout and "generated-test" in done.stdout


def test_dry_run_on_two_machines(tmp_path: Path) -> None:
    remote = write_program(tmp_path / "remote", 'exec bash -c "$2"\n')
    variables = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "REMOTE": remote, "MASTER_ADDR": "localhost"}
    arguments = [str(ROOT / "scripts" / "multinode.sh"), "one two", "scripts/wsfvit_p0_224_1k.sh", "/nowhere", "1"]
    done = run_bash([*arguments, *DRY_RUN, "--global-batch-size", "4"], variables | {"MASTER_PORT": "29611"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("dry run") == 1
    assert "strides do not match" not in done.stderr  # of axes of length one


# Small everywhere but in what the recipes differ by; the published sizes would take minutes on a CPU.
SMALL_DETECTOR = (
    "--dry-run --device cpu --no-amp -j 0 --model test_resnet --global-batch-size 2 --pad-multiple 32".split()
)
SMALL_DETECTOR += "--long-side 64 --proposals 20 --detector-kwargs fpn_width=16 fc_width=32 roi_samples=16".split()


def test_dry_run_of_a_detector(tmp_path: Path) -> None:
    """Of one; tests/detection dry-runs the recipes of the others without a process each."""
    for split in ("train", "val"):
        write_shapes(tmp_path / split, 2, (32, 48))
    variables = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = run_bash([str(DETECTION_LAUNCHERS[0]), str(tmp_path), "1", *SMALL_DETECTOR], variables)
    assert done.returncode == 0, done.stderr
    assert "dry run" in done.stdout and "2 images per update" in done.stdout


def load_launch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("launch", ROOT / "scripts" / "launch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train.py /none --device cpu", "'/none' (data) does not exist"),
        ("-m wsfvit.detection train /none --device cpu", "'/none' (data) does not exist"),
        ("-m wsfvit video train --mnist /none --device cpu", "'/none' (mnist) does not exist"),
        ("train.py --dataset digits", "3 processes need 3 GPUs, and this machine has 2: start 2 processes"),
        ("train.py --dataset digits --device cpu --global-batch-size 2048", "--global-batch-size 1920 fits"),
        ("train.py /none --device cpu --import own.py", "'/none' (data) does not exist"),
        ("train.py --dataset digits --device cpu -c none.yaml", "cannot be read"),
        ("trian.py --dataset digits", "'trian.py' does not exist"),
    ],
)
def test_a_mistake_is_found_before_torchrun_starts(
    command: str, expected: str, monkeypatch: pytest.MonkeyPatch, error_of: Callable[..., str]
) -> None:
    launch = load_launch()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(launch.torchrun, "run", lambda args: pytest.fail("started"))
    monkeypatch.setattr(sys, "argv", ["launch.py", "--nproc-per-node", "3", *command.split()])
    assert expected in error_of(launch.main)


@pytest.mark.parametrize("code", [2, pytest.param(75, marks=pytest.mark.slow)])
def test_the_launcher_ends_as_the_processes_do(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line from two processes, and no traceback of torchrun."""
    script = tmp_path / "command.py"
    script.write_text(
        "import sys, time\nfrom wsfvit.utils.errors import UserError, run_main\n"
        f"def main():\n    if {code} == 2: raise UserError('no such thing')\n    sys.exit({code})\nrun_main(main)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", ["launch.py", "--standalone", "--nproc-per-node", "2", str(script)])
    with pytest.raises(SystemExit) as ended:
        load_launch().main()
    assert ended.value.code == code
    assert capfd.readouterr().err == ("error: no such thing\n" if code == 2 else "")
