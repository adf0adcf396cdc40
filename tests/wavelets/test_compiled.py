"""The form for torch.compile on a GPU: the reference's values, layouts and gradients, without concatenations."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from wsfvit.wavelets import compiled, reference

FORMATS = [torch.contiguous_format, torch.channels_last]
OPERATORS: dict[str, Callable[..., Tensor]] = {
    "DWT": lambda module, x: module.haar_dwt2d(x),
    "IDWT": lambda module, x: module.haar_idwt2d(reference.haar_dwt2d(x), tuple(x.shape[2:])),
    "SWT zero": lambda module, x: module.haar_swt2d(x, "zero"),
    "SWT periodic": lambda module, x: module.haar_swt2d(x, "periodic", True, True),
    "ISWT": lambda module, x: module.haar_swt2d_adjoint(reference.haar_swt2d(x, "zero"), "zero", True),
}


def value_and_gradient(name: str, module: object, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = OPERATORS[name](module, x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return y, torch.autograd.grad((y * weights).sum(), x)[0]


def strides(x: Tensor) -> list[int]:
    """Strides of the axes longer than 1."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (2, 5, 7, 9), (1, 1, 1, 1), (2, 17, 4, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_is_the_reference(name: str, layout: torch.memory_format, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    x = x.to(memory_format=layout)
    found, wanted = value_and_gradient(name, compiled, x), value_and_gradient(name, reference, x)
    assert found[0].shape == wanted[0].shape
    assert strides(found[0]) == strides(wanted[0])
    # Sums in another order; values that round to another bfloat16 are ties in float32.
    tolerance = {torch.float64: 1e-15, torch.float32: 5e-7, torch.bfloat16: 1e-2}[dtype]
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=4 * tolerance)


VIEWS = {"alias", "detach", "expand", "permute", "squeeze", "unsqueeze", "view"}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", ["DWT", "IDWT"])
def test_value_and_gradient_are_one_product_and_one_sum_each(name: str, layout: torch.memory_format) -> None:
    """For even sizes; in particular no concatenation, stack or slice, from which Inductor makes slow kernels."""
    images = torch.randn(2, 5, 6, 8).to(memory_format=layout)
    x = images if name == "DWT" else reference.haar_dwt2d(images)

    def run(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        y = compiled.haar_dwt2d(x) if name == "DWT" else compiled.haar_idwt2d(x, (6, 8))
        return y, torch.autograd.grad(y, x, grad)[0]

    graph = make_fx(run)(x, reference.haar_dwt2d(images) if name == "DWT" else images).graph
    # The signs have 16 elements.
    calls = [node for node in graph.nodes if node.op == "call_function" and node.meta["val"].numel() > 16]
    names = [node.target.overloadpacket.__name__ for node in calls]
    assert Counter(name for name in names if name not in VIEWS) == {"mul": 2, "sum": 2}


def test_one_graph_serves_all_even_sizes() -> None:
    graphs: list[object] = []

    def run(x: Tensor) -> Tensor:
        y = compiled.haar_swt2d(x, "zero").sum(1) + x
        return compiled.haar_idwt2d(compiled.haar_dwt2d(y), (x.shape[2], x.shape[3]))

    torch.compiler.reset()
    called = torch.compile(run, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True, dynamic=True)
    for shape in ((2, 3, 6, 8), (5, 3, 6, 8), (5, 3, 10, 12), (7, 3, 16, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(called(x), run(x))
    assert len(graphs) == 1
