"""``python -m wsfvit info``: what this installation is and what it will compute with.

``python -m wsfvit predict IMAGE... --checkpoint FILE``: the most probable classes of pictures.

``python -m wsfvit export --checkpoint FILE --output model.onnx``: a model for other runtimes.

``python -m wsfvit replay FILE``: an update of a training that was not finite, watched module by module.
"""

import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Callable
from typing import Any

import PIL
import timm
import torch
import torch.distributed as dist
import torchvision

import wsfvit
from wsfvit.cli.common import HelpFormatter, build_parser
from wsfvit.cli.tools import add_export_args, add_predict_args, add_replay_args
from wsfvit.inference.export import run_export
from wsfvit.inference.predictor import run_predict
from wsfvit.train.replay import run_replay
from wsfvit.utils.errors import run_main
from wsfvit.wavelets import resolve_backend

PACKAGES = ("torch", "torchvision", "timm", "triton", "PyWavelets", "fvcore", "safetensors", "mlxtend")
DATA_PACKAGES = ("datasets", "webdataset", "tensorflow-datasets")
LOG_PACKAGES = ("tensorboard", "wandb", "trackio")
VARIABLES = {
    "WSFVIT_WAVELET_BACKEND": "wavelet operators",
    "TIMM_FUSED_ATTN": "timm's choice of attention",
    "CUDA_VISIBLE_DEVICES": "GPUs that are used",
    "OMP_NUM_THREADS": "CPU threads of each process",
    "HF_HUB_OFFLINE": "1 keeps hfds/ datasets off the network",
}


def main() -> None:
    """Parses the command line and runs the command."""
    parser = build_parser("What does not belong to training: predictions, exports, and what this installation is.")
    parser.prog = "python -m wsfvit"
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, add_args, _) in COMMANDS.items():
        description = f"{text[0].upper()}{text[1:]}."
        command = subparsers.add_parser(
            name, help=text, description=description, allow_abbrev=False, formatter_class=HelpFormatter
        )
        add_args(command)
    args = parser.parse_args()
    COMMANDS[args.command][2](args)


def print_info() -> None:
    """Prints versions, devices, registered models, backends (wavelets, data, processes) and environment variables."""
    print(f"wsfvit {wsfvit.__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"packages:  {_versions(PACKAGES)}")
    print(f"images:    Pillow {PIL.__version__}, decoded by {torchvision.get_image_backend()}")
    print(f"data sets: folders and tar files, {_versions(DATA_PACKAGES)}")
    print(f"logs:      CSV, {_versions(LOG_PACKAGES)}")
    print(f"models:    {', '.join(f'{count} {family}' for family, count in _families().items())}")
    for device in _devices():
        print(f"device:    {_describe(device)}, wavelet backend {_backend(device)}")
    print(f"processes: {', '.join(_distributed_backends()) or 'one alone'}")
    for name, meaning in VARIABLES.items():
        print(f"variable:  {name}={os.environ.get(name, '(not set)')}  {meaning}")


# Name of a command -> what it does, what adds its flags, and what runs it.
COMMANDS: dict[str, tuple[str, Callable[[Any], None], Callable[[Any], object]]] = {
    "info": (
        "print versions, devices, models, backends of wavelets and data, environment variables",
        lambda parser: None,
        lambda args: print_info(),
    ),
    "predict": ("print, and draw on request, the most probable classes of images", add_predict_args, run_predict),
    "export": ("write a model for other runtimes: ONNX, torch.export, AOTInductor", add_export_args, run_export),
    "replay": (
        "compute again an update of a training that was not finite, and say where it began",
        add_replay_args,
        run_replay,
    ),
}


def _families() -> dict[str, int]:
    """Number of our registered models by the first part of their names."""
    ours = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("wsfvit.")]
    return dict(Counter(f"{name.partition('_')[0]}_*" for name in ours))


def _devices() -> list[torch.device]:
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]


def _describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    found = torch.cuda.get_device_properties(device)
    return f"{device} {found.name}, {found.total_memory / 2**30:.0f} GiB"


def _backend(device: torch.device) -> str:
    try:
        return resolve_backend(device)
    except (RuntimeError, ValueError) as err:  # a backend was asked for that this installation does not have
        return f"unusable: {err}"


def _distributed_backends() -> list[str]:
    if not dist.is_available():
        return []
    found = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available(), "mpi": dist.is_mpi_available()}
    return [name for name, available in found.items() if available]


def _versions(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {_version(name)}" for name in names)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    run_main(main)
