"""A GPU machine often has torch, torchvision and timm, and none of the other packages: the programs start there."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import importlib.abc, importlib.util, sys

MISSING = {"pywt", "pytorch_wavelets", "ptwt", "torchwavelets", "fvcore", "pytorch_grad_cam", "datasets", "mlxtend"}
MISSING |= {"pycocotools", "faster_coco_eval", "skimage", "av", "onnx", "onnxscript", "onnxruntime", "tensorboard"}
MISSING |= {"matplotlib", "scipy"}

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.partition(".")[0] in MISSING else find(name, *more)

from benchmarks import gpu, models, scaling, video, wavelets
from experiments import study
from wsfvit.cli.train import parse_train_args
from wsfvit.train.classify import run_training
from wsfvit.utils.errors import UserError

once = ["--warmup", "1", "--repeats", "1"]
wavelets.main(["--shapes", "1x2x8x8", "--backward", *once])
models.main(["--models", "resnet10t", "--img-size", "32", "--batch-size", "2", *once])
scaling.main(["--model", "resnet10t", "--img-sizes", "32", "--batch-sizes", "2", *once])
gpu.main(["--list"])
flags = ["--dataset", "synthetic", "--num-classes", "4", "-b", "2", "-j", "0", "--device", "cpu", "--no-tensorboard"]
flags += ["--dry-run", "--img-size", "32"]
counts = ["--train-num-samples", "4", "--val-num-samples", "2"]
run_training(parse_train_args([*flags, *counts, "--model", "test_resnet"]))
for more in (["--model", "mwa_vit_xs_patch4_32", "--model-kwargs", "wavelet=db2"], ["--dataset", "digits"]):
    try:
        run_training(parse_train_args([*flags, *more]))
    except UserError as err:
        print(f"error: {err}")
"""


def test_programs_start_without_the_other_packages():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert "checked against our plain formulas" in printed and "dry run: one update" in printed
    missing = [line for line in printed.splitlines() if line.startswith("| p") and "not installed" in line]
    assert len(missing) == 4  # pytorch_wavelets and ptwt, in two tables
    assert "pip install PyWavelets" in printed and "pip install mlxtend" in printed
