"""What torch.compile gets on a GPU: the reference's values, layouts and gradients, in one pass over the tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from wsfvit.benchmarks.kernel_code import CARDS
from wsfvit.benchmarks.traffic_count import Kernel, plan_inference, plan_training
from wsfvit.wavelets import compiled, haar_dwt2d, haar_idwt2d, haar_swt2d, reference

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
    """Of the axes on which there is anything to stride over."""
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
    # Sums in another order; what rounds to another bfloat16 is a tie in float32.
    tolerance = {torch.float64: 1e-15, torch.float32: 5e-7, torch.bfloat16: 1e-2}[dtype]
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=4 * tolerance)


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def plan(function: Callable[[Tensor], Tensor], x: Tensor) -> list[Kernel]:
    return plan_inference(Apply(function), x, CARDS["H200"]).graphs["inference"]


@pytest.mark.parametrize("layout", FORMATS)
def test_a_dwt_and_its_inverse_are_one_pass_each(layout: torch.memory_format) -> None:
    x = torch.empty(4, 16, 28, 28, dtype=torch.bfloat16).to(memory_format=layout)
    (kernel,) = plan(haar_dwt2d, x)
    assert kernel.bytes == 2 * 2 * x.numel()
    (kernel,) = plan(lambda y: haar_idwt2d(y, (28, 28)), reference.haar_dwt2d(x))
    assert kernel.bytes == 2 * 2 * x.numel()


@pytest.mark.parametrize("layout", FORMATS)
def test_so_are_their_gradients(layout: torch.memory_format) -> None:
    def between(model: nn.Module, x: Tensor) -> Tensor:
        y = model.inner(haar_dwt2d(model.before(x)).flatten(0, 1)).unflatten(0, (-1, 4))
        return model.after(haar_idwt2d(y, (28, 28)))

    model = Apply(lambda x: between(model, x))
    model.before, model.inner, model.after = (nn.Conv2d(64, 64, 1, bias=False) for _ in range(3))
    x = torch.empty(4, 64, 28, 28).to(memory_format=layout)
    graphs = plan_training(model.to(memory_format=layout), x, CARDS["H200"], torch.bfloat16).graphs
    for kernels in graphs.values():
        large = [kernel.bytes for kernel in kernels if kernel.kind == "generated" and kernel.bytes > x.numel()]
        large = [size for size in large if size != 6 * x.numel()]  # the cast of the input
        assert large == [2 * 2 * x.numel()] * 2


def test_an_swt_reads_a_plane_and_writes_its_subbands() -> None:
    x = torch.empty(4, 3, 32, 32, dtype=torch.bfloat16)
    kernels = plan(lambda x: haar_swt2d(x, "zero", flip_details=True), x)
    assert sum(kernel.bytes for kernel in kernels) <= 2 * (3 + 4) * x.numel()  # inductor counts the image thrice


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
