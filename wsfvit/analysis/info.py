"""``wsfvit info``: what this installation is and what it computes with."""

import argparse
import importlib.metadata
import os
import platform
from collections import Counter

import PIL
import timm
import torch
import torch.distributed as dist
import torchvision

import wsfvit
from wsfvit.wavelets import resolve_backend
from wsfvit.wavelets.backend import kernels_were_selected
from wsfvit.wavelets.triton import checked

PACKAGES = ("torch", "torchvision", "timm", "triton", "PyWavelets", "fvcore", "safetensors", "mlxtend")
DATA_PACKAGES = ("datasets", "webdataset", "tensorflow-datasets")
LOG_PACKAGES = ("tensorboard", "wandb", "trackio")
# Every environment variable that the package, its programs and its scripts read; a test compares.
VARIABLES = {
    "WSFVIT_WAVELET_BACKEND": "wavelet operators: auto (checked kernels on a GPU), reference or triton",
    "WSFVIT_CIFAR10": "folder of CIFAR-10 for the study in experiments/",
    "WSFVIT_REQUIRE_GPU": "1: tests that need a GPU fail instead of being skipped",
    "WSFVIT_SLURM_TASKS": "set by scripts/slurm/train.sbatch: one task per GPU",
    "TRITON_INTERPRET": "1: Triton kernels run in its interpreter, on the CPU",
    "TIMM_FUSED_ATTN": "timm's choice of attention: 0 off, 1 fused, 2 fused also where experimental",
    "CUDA_VISIBLE_DEVICES": "GPUs that are used",
    "OMP_NUM_THREADS": "CPU threads of each process",
    "CXX": "C++ compiler of --format aoti",
    "CUBLAS_WORKSPACE_CONFIG": "set by --deterministic where it is not set",
    "HF_HUB_OFFLINE": "1: hfds/ datasets and hf:// weights do not use the network",
    "TORCH_HOME": "folder of torch.hub's cache, where the weights of --pretrained are",
    "RANK": "set by torchrun: number of this process",
    "LOCAL_RANK": "set by torchrun: number of this process on its machine",
    "WORLD_SIZE": "set by torchrun: number of processes",
    "LOCAL_WORLD_SIZE": "set by torchrun: number of processes on this machine",
    "MASTER_ADDR": "set by torchrun, or for scripts/launch.sh: host of rank 0",
    "MASTER_PORT": "set by torchrun, or for scripts/launch.sh: port of rank 0",
    "NNODES": "for scripts/launch.sh: number of machines",
    "NODE_RANK": "for scripts/launch.sh: number of this machine",
    "MAX_RESTARTS": "for scripts/launch.sh: restarts after a failure",
    "PYTHON": "for the scripts: Python interpreter",
    "REMOTE": "for scripts/multinode.sh: command that runs a command on another machine, such as ssh",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1: for restarts on several machines",
    "TORCHELASTIC_ERROR_FILE": "set by torchrun: beside it, one process notes that it reported an error",
    "TORCHELASTIC_RESTART_COUNT": "set by torchrun: restarts so far",
    "TORCHELASTIC_USE_AGENT_STORE": "set by torchrun: whether restarted processes share its store",
}


def run_info(args: argparse.Namespace) -> None:
    """Print versions, devices, registered models, backends (wavelets, data, processes) and environment variables."""
    print(f"wsfvit {wsfvit.__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"packages:  {_versions(PACKAGES)}")
    print(f"images:    Pillow {PIL.__version__}, decoded by {torchvision.get_image_backend()}")
    print(f"data sets: folders and tar files, {_versions(DATA_PACKAGES)}")
    print(f"logs:      CSV, {_versions(LOG_PACKAGES)}")
    ours = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("wsfvit.")]
    families = Counter(name.partition("_")[0] for name in ours)
    print(f"models:    {', '.join(f'{count} {family}_*' for family, count in families.items())}")
    for device in [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]:
        print(f"device:    {_describe(device)}, wavelet backend {_backend(device)}")
    names = ("gloo", "nccl", "mpi") if dist.is_available() else ()
    backends = [name for name in names if getattr(dist, f"is_{name}_available")()]
    print(f"processes: {', '.join(backends) or 'only one'}")
    for name, meaning in VARIABLES.items():
        print(f"variable:  {name}={os.environ.get(name, '(not set)')}  {meaning}")


def _describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    found = torch.cuda.get_device_properties(device)
    return f"{device} {found.name}, {found.total_memory / 2**30:.0f} GiB"


def _backend(device: torch.device) -> str:
    try:
        found = resolve_backend(device)
    except (RuntimeError, ValueError) as err:  # a backend was asked for that this installation does not have
        return f"unusable: {err}"
    if found == "triton" and not kernels_were_selected():
        return f"triton, checked in float32: {checked.describe(device)}"
    return found


def _versions(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {_version(name)}" for name in names)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
