"""What only happens on GPUs, with stand-ins for them: which device, which process group, whose memory."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.distributed as dist
from timm.utils import distribute_bn
from tiny_data import TinyImages

from benchmarks.common import set_up_device
from wsfvit.checkpoint.store import CheckpointStore
from wsfvit.cli.validate import parse_validate_args
from wsfvit.eval.validate import run_validation
from wsfvit.factory.model import synchronize_batch_norm
from wsfvit.utils.distributed import World, join_world, joined_world, resolve_device
from wsfvit.utils.errors import UserError

TWO = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, as far as their numbers go: lists of which became the current one, and where memory was taken."""
    found = SimpleNamespace(current=[], used=[])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: found.current.append(torch.device(device)))
    monkeypatch.setattr(torch, "empty", lambda *size, device: found.used.append(device))
    return found


@pytest.fixture
def joined(monkeypatch):
    """The arguments of the process groups that were made and ended, in place of the groups."""
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: calls.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroyed"))
    return calls


@pytest.mark.parametrize("name", [None, "cuda", "cuda:0"])
def test_a_process_touches_its_own_gpu_alone(gpus, joined, name):
    assert join_world(name).device == torch.device("cuda", 1)
    assert gpus.current == gpus.used == [torch.device("cuda", 1)]
    assert joined == ["cpu:gloo,cuda:nccl"]


def test_more_processes_than_gpus(gpus, joined, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="process 2 of this machine has no GPU: it has 2"):
        join_world()


def test_a_gpu_that_is_named_becomes_the_current_one(gpus):
    assert resolve_device("cuda:1") == set_up_device("cuda:1", None) == torch.device("cuda", 1)
    assert gpus.current == [torch.device("cuda", 1)] * 2
    assert resolve_device("cuda") == set_up_device("cuda", None) == torch.device("cuda")
    assert len(gpus.current) == 2


def test_host_memory_is_exchanged_without_the_gpu(gpus, joined, monkeypatch):
    """With Gloo in NCCL's place: it has no GPU to run on, so whatever went over it would fail."""
    join_world()
    monkeypatch.undo()
    backend = joined[0].replace("nccl", "gloo")
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        world = World(torch.device("cuda"), size=2)
        world.barrier()
        assert world.gather({"loss": 0.5})[0] == {"loss": 0.5} and world.any(True)
        # A moving average that --model-ema-force-cpu keeps there.
        average = torch.nn.BatchNorm2d(2)
        distribute_bn(average, 2, reduce=True)
        assert average.running_var.tolist() == [0.5, 0.5]
    finally:
        dist.destroy_process_group()


def test_a_group_ends_where_all_went_well(joined, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with joined_world("cpu"):
        pass
    assert joined == ["destroyed"]
    # After an error the other processes may be in an exchange, which NCCL would wait for.
    with pytest.raises(KeyError), joined_world("cpu"):
        raise KeyError
    with pytest.raises(UserError, match=r"CUDA out of memory.*memory of cpu: pass a smaller --batch-size"):
        with joined_world("cpu"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 EiB.")
    assert joined == ["destroyed"]


@pytest.mark.parametrize("name", ["wsfvit_p0_224", "wacnn_resnet18"])
def test_synchronised_batch_norm_keeps_the_model(name):
    model = timm.create_model(name, num_classes=3).eval()
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        converted = synchronize_batch_norm(model)
        torch.testing.assert_close(converted(images), expected)
    norms = [module for module in converted.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)


class Greedy(torch.nn.Module):
    """Finds no memory for more than three images, and for any while another one of its kind lives."""

    living: "weakref.WeakSet[Greedy]" = weakref.WeakSet()

    def __init__(self):
        super().__init__()
        self.head, self.num_classes = torch.nn.Linear(3, 4), 4
        self.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
        self.pretrained_cfg["interpolation"] = "bilinear"
        self.living.add(self)

    def forward(self, images):
        if len(images) > 3 or len(self.living) > 1:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate 1 EiB beside {len(self.living)}")
        return self.head(images.mean((2, 3)))


def test_a_smaller_batch_finds_the_memory_of_the_larger_one(monkeypatch):
    """The failed try left no variables behind, which the garbage collector would find too late."""
    monkeypatch.setattr("wsfvit.factory.data.create_dataset", lambda *args, **kwargs: TinyImages(7))
    monkeypatch.setattr(
        "wsfvit.eval.validate.load_model", lambda args, pretrained: (args, Greedy(), {"weights": "raw"})
    )
    monkeypatch.setattr("wsfvit.factory.model.resolve_model_kwargs", lambda args: {})
    arguments = ["--model", "test_resnet", "-b", "7", "--retry", "-j", "0", "--device", "cpu"]
    gc.disable()
    try:
        [row] = run_validation(parse_validate_args(arguments))
    finally:
        gc.enable()
    assert row["batch_size"] == 3


class OnGpu(torch.Tensor):
    """A tensor that says it is on the second GPU."""

    device = property(lambda self: torch.device("cuda", 1))


def test_a_save_waits_for_the_gpus_it_copies_from(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    store = CheckpointStore(tmp_path)
    monkeypatch.setattr(store, "_copy_tensor", lambda value, key: torch.zeros(1))
    store.save({"a": torch.ones(1), "b": [torch.ones(1).as_subclass(OnGpu)]}, epoch=0)
    store.wait()
    assert waited == [torch.device("cuda", 1)]
    store.save({"a": torch.ones(1)}, epoch=1)
    store.wait()
    assert len(waited) == 1
