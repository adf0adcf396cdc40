"""What the command line asks of torch.compile reaches it."""

import copy
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from wsfvit.cli.train import parse_train_args
from wsfvit.layers.conv import TanhGELU
from wsfvit.utils.compiling import GPU_TRAINING_OPTIONS, compile_model


@pytest.fixture(autouse=True)
def budget_as_before() -> Iterator[None]:
    with torch._functorch.config.patch(activation_memory_budget=1.0):
        yield


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What torch.compile, which does nothing, is called with."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda model, **how: calls.append(how) or model)
    return calls


def compile_on(device: str, *argv: str, training: bool = True) -> None:
    model = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device(device))]))
    compile_model(parse_train_args(list(argv)), model, training)


def test_options_reach_the_compiler_over_those_of_the_mode(asked: list[dict[str, Any]]) -> None:
    flags = ["--torchcompile", "--torchcompile-options", "max_autotune=false", "epilogue_fusion=false"]
    compile_on("cpu", *flags)
    compile_on("cpu", *flags, "--torchcompile-mode", "max-autotune")
    own = {"max_autotune": False, "epilogue_fusion": False}
    assert asked[0] == {"options": own}
    assert own.items() < asked[1]["options"].items() and asked[1]["options"]["triton.cudagraphs"]


def test_training_on_a_gpu_gets_this_projects_options(asked: list[dict[str, Any]]) -> None:
    compile_on("cuda:1", "--torchcompile")
    compile_on("cuda", "--torchcompile", "--torchcompile-options", "realize_reads_threshold=4")
    compile_on("cuda", "--torchcompile", training=False)
    compile_on("cpu", "--torchcompile")
    compile_on("cuda", "--torchcompile", "aot_eager")
    own = GPU_TRAINING_OPTIONS
    assert [each.get("options") for each in asked] == [own, own | {"realize_reads_threshold": 4}, {}, {}, None]


def test_the_budget_holds_until_the_next_model(asked: list[dict[str, Any]]) -> None:
    compile_on("cpu", "--torchcompile", "--torchcompile-memory-budget", "0.25")
    assert torch._functorch.config.activation_memory_budget == 0.25
    compile_on("cpu", "--torchcompile")
    assert torch._functorch.config.activation_memory_budget == 1 and len(asked) == 2


def test_gradients_are_those_of_all_activations() -> None:
    norm = BatchNormAct2d(8, act_layer=TanhGELU)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.Conv2d(8, 8, 3, groups=8))
    own, x = copy.deepcopy(model), torch.randn(2, 3, 16, 16)
    compiled = compile_model(parse_train_args(["--torchcompile", "--torchcompile-memory-budget", "0.5"]), own)
    saved = []
    for called in (model, compiled):
        kept: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(partial(keep, kept), lambda each: each):
            y = called(x)
        y.square().mean().backward()
        saved.append(sum(kept.values()))
    wanted, found = ([each.grad for each in chosen.parameters()] for chosen in (model, own))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert saved[1] < 0.6 * saved[0]  # the convolution's map and the output, not what lies between


def keep(kept: dict[int, int], saved: torch.Tensor) -> torch.Tensor:
    """Notes the bytes of what autograd saves, by where they are."""
    kept[saved.data_ptr()] = saved.nbytes
    return saved
