"""The copy for inference computes what the model computes."""

import copy
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import timm
import torch
from parity import relative_error
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import wsfvit  # noqa: F401
from wsfvit.layers import MBConv
from wsfvit.models import fuse
from wsfvit.models.fuse import ConvGELU, FusedLinear, fuse_for_inference
from wsfvit.wavelets import wavelet_backend


def tiny(name: str = "wsfvit_p0_224", **options) -> nn.Module:
    """A model whose BatchNorms do something, from the moments of random data."""
    torch.manual_seed(0)
    sizes = dict(embed_dims=(12, 24), inter_heads=(1, 2), depths=(1, 1), stage_strides=(2, 2)) | options
    model = timm.create_model(name, img_size=64, **sizes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name, options", [("wsfvit_p0_224", {}), ("wsfvit_dwt_p0_224", {"gelu": "none"})])
def test_values(name, options, layout) -> None:
    exact = tiny(name, **options).double()
    model = tiny(name, **options).to(memory_format=layout)
    state = copy.deepcopy(model.state_dict())
    fused = {torch.float32: fuse_for_inference(model), torch.float64: fuse_for_inference(exact)}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items()), "the original was changed"
    for size in ((64, 64), (75, 50)):
        x = torch.randn(2, 3, *size).contiguous(memory_format=layout)
        with torch.inference_mode():
            expected = exact(x.double())
            for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
                assert relative_error(fused[dtype](x.to(dtype)), expected) < limit
        # Where gradients are wanted, of the image say, the operators that have none are left alone.
        actual = fused[torch.float32](x.requires_grad_())
        assert relative_error(actual.detach(), expected) < 1e-6 and actual.requires_grad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_kernel_of_the_stem_has_the_same_values(compiled: bool, layout) -> None:
    pytest.importorskip("triton")
    one_stage = dict(embed_dims=(12,), inter_heads=(1,), depths=(1,), stage_strides=(2,))
    fused = fuse_for_inference(tiny(**one_stage))
    called = torch.compile(fused, fullgraph=True, backend="eager") if compiled else fused
    for size in ((64, 64), (50, 36)):
        x = torch.randn(2, 3, *size).contiguous(memory_format=layout)
        expected = fused(x)
        with torch.no_grad(), wavelet_backend("triton"), Calls() as calls:
            torch.testing.assert_close(called(x), expected)
        assert calls.counts["haar_swt2d_affine_gelu"] == 1


def test_every_batch_norm_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with wavelet_backend("triton"):  # before it goes to a GPU
        fused = fuse_for_inference(tiny())
    assert not [name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)]
    kinds = [type(module) for module in fused.modules()]
    blocks = kinds.count(MBConv)
    assert (kinds.count(ConvGELU), kinds.count(FusedLinear)) == (
        3 + 2 * blocks,
        10 * blocks,
    )  # two of each MLP, two of each partition attention
    assert not any(p.requires_grad for p in fused.parameters()) and not fused.training


def test_autocast_and_compiler() -> None:
    one_stage = dict(embed_dims=(12,), inter_heads=(1,), depths=(1,), stage_strides=(2,))
    fused, x = fuse_for_inference(tiny(**one_stage)), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = fused(x)
        compiled = torch.compile(fused, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(fused(x).float(), expected, rtol=0.05, atol=0.05)


class Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        self.counts[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_gpu_gets_gelu_with_the_matrix_product(
    autocast: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *args, **kwargs: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    fused = fuse_for_inference(tiny())
    blocks = sum(isinstance(module, MBConv) for module in fused.modules())
    calls = Calls()

    def count_nodes(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        calls.counts.update(getattr(node.target, "__name__", "").split(".")[0] for node in graph.graph.nodes)
        return graph

    # Newer compilers trace under no other dispatch mode.
    with FakeTensorMode() as fake, nullcontext() if compiled else calls, torch.no_grad():
        for module in fused.modules():
            for tensors in (module._parameters, module._buffers):
                found = {key: x for key, x in tensors.items() if x is not None}
                tensors.update({key: torch.empty_like(fake.from_tensor(x), device="cuda") for key, x in found.items()})
        called = torch.compile(fused, fullgraph=True, backend=count_nodes) if compiled else fused
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast), wavelet_backend("triton"):
            logits = called(torch.empty(2, 3, 64, 64, device="cuda"))
    assert (logits.device.type, logits.dtype) == ("cuda", torch.bfloat16 if autocast else torch.float32)
    # The expansion of each MBConv, the MLPs of local and of global attention; the third MLP has the exact GELU.
    assert calls.counts["_addmm_activation"] == 3 * blocks
    assert calls.counts["haar_swt2d_affine_gelu"] == 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gelu_with_the_matrix_product_has_the_same_values(layout, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, x = fuse_for_inference(tiny().double()), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fused, x = fused.to(memory_format=layout), x.to(memory_format=layout)
    expected = fused(x)

    def on_a_gpu(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, use_gelu: bool) -> torch.Tensor:
        assert use_gelu  # a CPU's operator of this name has the exact GELU
        return nn.functional.gelu(torch.addmm(bias, x, weight), approximate="tanh")

    monkeypatch.setattr(fuse, "_has_gelu_epilogue", lambda x, approximate: approximate == "tanh")
    monkeypatch.setattr(torch, "_addmm_activation", on_a_gpu)
    torch.testing.assert_close(fused(x), expected)


@pytest.mark.requires_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_on_a_gpu(dtype: torch.dtype) -> None:
    model = tiny().to("cuda", memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64, device="cuda").to(memory_format=torch.channels_last)
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(x.double())
        plain, fused = model.to(dtype), fuse_for_inference(model).to(dtype)
        limit = max(2 * relative_error(plain(x.to(dtype)).double(), exact), 1e-6)
        assert relative_error(fused(x.to(dtype)).double(), exact) < limit
