"""torch.compile compiles a WSF-ViT to one graph, and again at most once for other batch sizes."""

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


def tiny(name: str, stages: int) -> nn.Module:
    """One block per stage; a `dwt` model has explicit subbands in all stages but the last."""
    sizes = dict(embed_dims=(12, 24), inter_heads=(1, 2), depths=(1, 1), stage_strides=(2, 2))
    return timm.create_model(name, img_size=32, num_classes=3, **{key: value[:stages] for key, value in sizes.items()})


def test_one_graph_and_one_recompilation_for_any_batch_size_and_epoch() -> None:
    counter = CompileCounter()
    # fullgraph: a graph break is an error.
    compiled = torch.compile(tiny("wsfvit_p0_224", stages=1), fullgraph=True, backend=counter)
    frames = []
    for _ in range(2):  # epochs of training with a smaller last batch, and of evaluation
        # Below 16 images torch chooses the CPU's convolutions by the batch size, and specialises on that.
        for training, batches in ((True, (20, 17, 19)), (False, (20,))):
            compiled.train(training)
            for batch in batches:
                compiled(torch.randn(batch, 3, 32, 32))
        frames.append(counter.frame_count)
    # A graph for 20 images, its general form, and one for evaluation; nothing new in the second epoch.
    assert frames == [3, 3]


def test_explicit_subbands_are_one_graph_with_the_same_values_and_gradients() -> None:
    torch.manual_seed(0)
    model, x = tiny("wsfvit_dwt_p0_224", stages=2).double().eval(), torch.randn(2, 3, 32, 32).double()
    expected = model(x)
    expected_grads = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    actual = torch.compile(model, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad(actual.square().sum(), list(model.parameters()))
    for name, grad, wanted in zip(dict(model.named_parameters()), grads, expected_grads, strict=True):
        assert ((grad - wanted).norm() / (wanted.norm() + 1e-12)).item() < 1e-8, name
