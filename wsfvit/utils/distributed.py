"""Process group of a run: `torchrun` starts the processes, `joined_world` initialises the group."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from wsfvit.utils.errors import UserError, first_line

# A rank that waits longer than this for another one fails, so that a dead rank ends the job.
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """This process and the process group of the run.

    Attributes:
        device: Device of this process.
        rank: Rank among all processes; rank 0 writes files and logs.
        size: Number of processes.
        local_rank: Rank on this machine, and the index of its GPU.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def log(self, text: str) -> None:
        """Print in rank 0 only."""
        if self.is_main:
            print(text, flush=True)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; synchronizes the processes, not the GPU."""
        if self.size == 1:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes)
        return bool(votes.item())

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place; ``tensor`` must have the same shape and dtype in each."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """One picklable value from each process, in the order of ranks, on every process."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


def distribute(model: nn.Module, world: World, broadcast_buffers: bool = True) -> nn.parallel.DistributedDataParallel:
    """A model on ``world.device`` whose gradients are averaged over all processes."""
    # Gradients have the layout of their parameters except for meaningless strides of axes of length one, which
    # channels-last convolutions have; DDP would warn about each.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    ids = [world.device] if world.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=broadcast_buffers)


def join_world(device: str | None = None) -> World:
    """Initialise the process group of ``torchrun``; without it, a world of one process.

    Args:
        device: Name as for ``--device``. Among several processes each takes the CUDA device of its local rank.

    Raises:
        UserError: There is no such device, or there are more processes on this machine than CUDA devices.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World(resolve_device(device))
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    gpus = torch.cuda.device_count() if device is None or device.startswith("cuda") else 0
    if gpus:
        if local_rank >= gpus:
            raise UserError(
                f"process {local_rank} of this machine has no GPU: it has {gpus}; "
                "start one process per GPU (torchrun --nproc-per-node)"
            )
        # With the index: otherwise every process would allocate memory on the first GPU.
        device = f"cuda:{local_rank}"
    found = resolve_device(device)
    if not dist.is_initialized():
        # Host tensors and objects go over gloo: NCCL would copy objects to GPU memory, which a process that has just
        # run out of memory does not have.
        backend = "cpu:gloo,cuda:nccl" if found.type == "cuda" else "gloo"
        # With a store, PyTorch requires rank and world size; without one it reads them from the environment.
        dist.init_process_group(backend, timeout=TIMEOUT, store=restart_scoped_store(size), rank=rank, world_size=size)
    return World(found, rank, size, local_rank)


@contextmanager
def joined_world(device: str | None = None) -> Iterator[World]:
    """``join_world`` for a block, whose end destroys the process group; too little memory raises a ``UserError``."""
    world = join_world(device)
    try:
        yield world
    except torch.OutOfMemoryError as err:
        advice = "pass a smaller --batch-size, or --amp; in training, --grad-checkpointing helps too"
        raise UserError(f"{first_line(err)} This does not fit into the memory of {world.device}: {advice}") from err
    # Not after an error: NCCL would wait for collectives that the other processes may never join. They end as soon as
    # this process is gone.
    if dist.is_initialized():
        dist.destroy_process_group()


def restart_scoped_store(size: int) -> dist.Store | None:
    """Rendezvous store with separate keys for each restart, or None for PyTorch's default.

    ``torchrun --max-restarts`` passes restarted processes the store of the previous attempt with its stale rendezvous
    keys (pytorch/pytorch#135712). On several machines the restart counts differ; there, with
    ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``, torchrun (c10d rendezvous) creates a new store each time.
    """
    environment = os.environ
    one_machine = environment.get("LOCAL_WORLD_SIZE") == str(size)
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not one_machine:
        return None
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    shared = dist.TCPStore(address, port, size, is_master=False, timeout=TIMEOUT)
    return dist.PrefixStore(f"restart_{environment['TORCHELASTIC_RESTART_COUNT']}", shared)


def resolve_device(name: str | None) -> torch.device:
    """Device by name (a ``UserError`` if there is none); without a name the current CUDA device, or the CPU.

    A CUDA device with an index becomes the current device, so that calls without a device (synchronize, new streams)
    use it.
    """
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        torch.empty(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as err:
        raise UserError(f"--device {name} cannot be used here: {first_line(err)}") from err
    return device
