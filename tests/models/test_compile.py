"""torch.compile takes a WSF-ViT as one graph, and compiles it anew at most once for other batch sizes."""

from collections.abc import Iterator

import pytest
import timm
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import wsfvit  # noqa: F401


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tiny(name: str) -> nn.Module:
    return timm.create_model(name, img_size=64, depths=(1, 1, 1, 1), num_classes=3)


@pytest.mark.parametrize("name", ["wsfvit_p0_224", "wsfvit_dwt_p0_224"])
def test_one_graph_and_one_recompilation_for_any_batch_size_and_epoch(name: str) -> None:
    model, counter = tiny(name), CompileCounter()
    # fullgraph: a graph break is an error.
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    frames = []
    for _ in range(2):  # epochs of training and evaluation, each with a smaller last batch
        compiled.train()
        for batch in (4, 3):
            compiled(torch.randn(batch, 3, 64, 64)).sum().backward()
        compiled.eval()
        with torch.no_grad():
            for batch in (4, 3, 5):
                compiled(torch.randn(batch, 3, 64, 64))
        frames.append(counter.frame_count)
    # One graph and its general form for training, one or both again for evaluation; nothing new in the second epoch.
    assert frames[0] <= 4 and frames[1] == frames[0], frames


def test_compiled_values_and_gradients() -> None:
    torch.manual_seed(0)
    model, x = tiny("wsfvit_p0_224").double().eval(), torch.randn(2, 3, 64, 64).double()
    expected = model(x)
    expected_grads = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    actual = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad(actual.square().sum(), list(model.parameters()))
    for name, grad, wanted in zip(dict(model.named_parameters()), grads, expected_grads, strict=True):
        assert ((grad - wanted).norm() / (wanted.norm() + 1e-12)).item() < 1e-8, name
