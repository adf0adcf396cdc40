"""dwt2d and idwt2d against PyWavelets, wavelet by wavelet, mode by mode."""

import operator
import warnings
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsfvit.wavelets import BoundaryMode, DetailCoeffs2d, dwt2d, filterbank, haar_dwt2d, idwt2d

pywt = pytest.importorskip("pywt")
pytorch_wavelets = pytest.importorskip("pytorch_wavelets")

MODES = get_args(BoundaryMode)
WAVELETS = ["haar", "db2", "sym5", "coif1", "bior2.2", "rbio3.1", "dmey"]
UNEVEN = pywt.Wavelet("uneven", filter_bank=([1.0, 2.0, 3.0], [1.0, -2.0, 3.0], [1.0, 2.0, 5.0], [1.0, 2.0, 7.0]))


@pytest.fixture(autouse=True)
def quiet_pywt():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Level value of")
        yield


def normal(shape, device, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def flat(coeffs) -> list:
    return [coeffs[0], *(subband for detail in coeffs[1:] for subband in detail)]


def close(actual, expected, tolerance=1e-12):
    """Relative to the largest value: taps that cancel leave nothing of a value's own size to compare with."""
    actual, expected = torch.as_tensor(actual).double().cpu(), torch.as_tensor(expected).double().cpu()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))


def check_parity(x: torch.Tensor, wavelet, level: int, mode: str) -> None:
    expected = pywt.wavedec2(x.cpu().numpy(), wavelet, mode, level)
    coeffs = dwt2d(x, wavelet, level, mode)
    for ours, theirs in zip(flat(coeffs), flat(expected), strict=True):
        close(ours, theirs)
    close(idwt2d(coeffs, wavelet, mode), pywt.waverec2(expected, wavelet, mode))


@pytest.mark.parametrize("mode", MODES)
def test_smoke(device, dtype, mode):
    x = normal((2, 3, 8, 6), device, dtype)
    coeffs = dwt2d(x, "db2", 2, mode)
    assert all(c.dtype == dtype and c.device.type == device.type and c.isfinite().all() for c in flat(coeffs))
    assert isinstance(coeffs[1], DetailCoeffs2d) and len(coeffs) == 3
    assert idwt2d(coeffs, "db2", mode).dtype == dtype


def test_shapes(device):
    x = normal((2, 3, 9, 6), device)
    cA, (cH, cV, cD) = dwt2d(x, "db2")
    assert cA.shape == cH.shape == cV.shape == cD.shape == (2, 3, 6, 4)
    assert idwt2d([cA, (cH, cV, cD)], "db2").shape == (2, 3, 10, 6)
    assert idwt2d([cA, (cH, cV, cD)], "db2", output_size=(9, 6)).shape == x.shape


def test_exceptions(device):
    x = normal((2, 3, 8, 8), device)
    for bad in (x[0], x.long(), x[:, :0]):
        with pytest.raises(ValueError) as error:
            dwt2d(bad)
        assert str(tuple(bad.shape)) in str(error.value) and str(bad.dtype) in str(error.value)
    for name in ("nope", "gaus1"):
        with pytest.raises(ValueError, match=rf"{name}.*pywt.wavelist\(kind='discrete'\)"):
            dwt2d(x, name)
    with pytest.raises(ValueError, match="not 3"):
        dwt2d(x, 3)
    with pytest.raises(ValueError, match="level"):
        dwt2d(x, level=0)
    coeffs = dwt2d(x, "db2", 2)
    for call in (lambda: dwt2d(x, mode="per"), lambda: idwt2d(coeffs, "db2", "per")):
        with pytest.raises(ValueError, match=f"{', '.join(MODES)}.*'per'"):
            call()
    cA, details = coeffs[0], coeffs[1]
    for bad in ([], [cA], [details, cA], [cA, cA], [cA, details[:2]], [cA[:1], details], [cA.float(), details]):
        with pytest.raises(ValueError, match="idwt2d"):
            idwt2d(bad, "db2")
    with pytest.raises(ValueError, match="too few"):
        idwt2d([cA[..., :2, :2], [detail[..., :2, :2] for detail in details]], "db8")
    for output_size in ((9, 8), (8, 6), (6, 8)):
        with pytest.raises(ValueError, match=rf"\({output_size[0]}, {output_size[1]}\).*\(8, 8\)"):
            idwt2d(coeffs, "db2", output_size=output_size)


@pytest.mark.parametrize("missing", [(0,), (1, 2), (0, 1, 2), None], ids=str)
@pytest.mark.parametrize("maps", [1, 8])  # by convolutions and by matrices
@pytest.mark.parametrize("mode", ["symmetric", "periodization"])
def test_missing_details_are_zeros(device, mode, maps, missing):
    x = normal((1, maps, 15, 12), device)
    cA, coarse, fine = dwt2d(x, "db2", 2, mode)
    ours = None if missing is None else tuple(None if i in missing else c for i, c in enumerate(coarse))
    theirs = tuple(None if ours is None or c is None else c.cpu().numpy() for c in ours or (None,) * 3)
    expected = pywt.waverec2([cA.cpu().numpy(), theirs, tuple(c.cpu().numpy() for c in fine)], "db2", mode)
    close(idwt2d([cA, ours, fine], "db2", mode), expected)


@pytest.mark.parametrize(
    "wrong",
    [None, 3, [1, 2], "abc", [torch.zeros(1, 1, 4, 4), 5], [torch.zeros(1, 1, 4, 4), (1, 2, 3)], [None, None]]
    + [[torch.zeros(1, 1, 4, 4), (torch.zeros(1, 1, 4), None, None)], [torch.zeros(1, 1, 4, 4), "abc"]]
    + [[torch.zeros(1, 1, 4, 4), (torch.zeros(1, 1, 4, 4, device="meta"), None, None)]],
    ids=range(10),
)
def test_what_is_no_coefficient_is_a_value_error(wrong):
    with pytest.raises(ValueError, match="idwt2d"):
        idwt2d(wrong)


def test_a_wrong_output_size_is_a_value_error():
    with pytest.raises(ValueError, match="output_size"):
        idwt2d([torch.zeros(1, 1, 4, 4), None], output_size=8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wavelet", [*WAVELETS, UNEVEN], ids=[*WAVELETS, "uneven"])
def test_parity_pywt(device, wavelet, mode):
    for size, level in (((16, 12), 1), ((13, 7), 2), ((2, 5), 1)):
        check_parity(normal((1, 2, *size), device), wavelet, level, mode)


def test_parity_pywt_every_wavelet(device):
    """All discrete wavelets of the installed PyWavelets, each in one mode."""
    for index, wavelet in enumerate(pywt.wavelist(kind="discrete")):
        check_parity(normal((1, 1, 10, 7), device), wavelet, 1, MODES[index % len(MODES)])


@pytest.mark.parametrize("ours, theirs", [("symmetric", "symmetric"), ("zero", "zero"), ("periodization", "per")])
@pytest.mark.parametrize("wavelet", ["db3", "bior2.4"])
def test_parity_pytorch_wavelets(device, wavelet, ours, theirs):
    x = normal((2, 3, 40, 48), device, torch.float32)
    low, high = pytorch_wavelets.DWTForward(J=2, wave=wavelet, mode=theirs).to(device)(x)
    coeffs = dwt2d(x, wavelet, 2, ours)
    close(coeffs[0], low, 1e-5)
    for detail, stacked in zip(coeffs[1:], reversed(high), strict=True):
        close(torch.stack(detail, 2), stacked, 1e-5)


def test_textbook_values(device):
    """Daubechies 2 of a ramp: two vanishing moments, so the details away from the border are 0."""
    x = torch.arange(12.0, device=device, dtype=torch.float64).expand(1, 1, 12, 12)
    cA, (cH, cV, cD) = dwt2d(x, "db2")
    close(torch.stack((cH, cV, cD))[..., 1:-1, 1:-1], torch.zeros(3, 1, 1, 5, 5))
    close(cA[..., 1:-1, 1:-1].diff(dim=-1), torch.full((1, 1, 5, 4), 4.0))
    haar = dwt2d(torch.tensor([[1.0, 2.0], [4.0, 8.0]], device=device).view(1, 1, 2, 2))
    close(torch.stack(flat(haar)).flatten(), torch.tensor([7.5, -4.5, -2.5, 1.5]), 1e-6)


@pytest.mark.parametrize("mode", MODES)
@given(
    size=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    wavelet=st.sampled_from(["haar", "db2", "sym4", "bior2.2"]),
    level=st.integers(1, 3),
)
def test_odd_sizes(device, mode, size, wavelet, level):
    x = normal((1, 2, *size), device)
    coeffs = dwt2d(x, wavelet, level, mode)
    close(idwt2d(coeffs, wavelet, mode, output_size=size), x, 1e-10)
    # Extending one sample by reflection is what PyWavelets refuses.
    if mode != "reflect" or min(*size, *coeffs[1].cH.shape[2:]) > 1 and level == 1:
        check_parity(x, wavelet, level, mode)


@pytest.mark.parametrize("mode", MODES)
def test_reconstruction(device, mode):
    x = normal((2, 3, 12, 15), device)
    close(idwt2d(dwt2d(x, "sym4", 3, mode), "sym4", mode, (12, 15)), x, 1e-10)


def test_energy(device):
    x = normal((2, 3, 16, 8), device)
    coeffs = dwt2d(x, "db4", 2, "periodization")
    close(sum(c.square().sum() for c in flat(coeffs)), x.square().sum())


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_haar_zero_equals_haar_dwt2d(device, dtype, size, assert_close):
    x = normal((2, 3, *size), device, dtype)
    assert_close(torch.stack(flat(dwt2d(x, "haar", mode="zero")), 1), haar_dwt2d(x.double()))


def test_precision(device, dtype, assert_close):
    """Inside in float32 or wider, over all levels: against the float64 transform of the same rounded input."""
    x = normal((2, 3, 24, 17), device, dtype)
    coeffs = dwt2d(x, "db2", 2)
    for ours, exact in zip(flat(coeffs), flat(dwt2d(x.double(), "db2", 2)), strict=True):
        assert_close(ours, exact)
    exact = idwt2d([coeffs[0].double(), *([c.double() for c in detail] for detail in coeffs[1:])], "db2")
    assert_close(idwt2d(coeffs, "db2"), exact)


def test_adjoint(device):
    """An orthonormal wavelet with periodization: the backward is the inverse."""
    x = normal((2, 3, 8, 12), device).requires_grad_()
    coeffs = flat(dwt2d(x, "db3", 1, "periodization"))
    weights = [normal(tuple(c.shape), device) for c in coeffs]
    (back,) = torch.autograd.grad(coeffs, x, weights)
    close(back, idwt2d([weights[0], weights[1:]], "db3", "periodization"))


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(device, mode):
    def round_trip(x: torch.Tensor) -> torch.Tensor:
        cA, (cH, cV, cD) = dwt2d(x, "db2", 1, mode)
        return idwt2d([cA * cH, (cV, cD, cA)], "db2", mode, (3, 2))

    x = normal((1, 1, 3, 2), device).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(flat(dwt2d(x, "db2", 2, mode))), x)
    assert torch.autograd.gradcheck(round_trip, x) and torch.autograd.gradgradcheck(round_trip, x)


def test_noncontiguous(device):
    x = normal((2, 3, 8, 12), device)
    expected = flat(dwt2d(x, "db2"))
    sliced, channels_last = x.repeat_interleave(2, 3)[..., ::2], x.contiguous(memory_format=torch.channels_last)
    for strided in (x.mT.contiguous().mT, sliced, channels_last):
        assert not strided.is_contiguous()
        assert all(map(torch.equal, flat(dwt2d(strided, "db2")), expected))
    strided = [c.mT.contiguous().mT for c in expected]
    assert torch.equal(idwt2d([strided[0], strided[1:]], "db2"), idwt2d([expected[0], expected[1:]], "db2"))


def test_autocast(device, dtype):
    def forward_and_backward(x: torch.Tensor) -> list[torch.Tensor]:
        y = idwt2d(dwt2d(x, "db2"), "db2")
        return [y, *torch.autograd.grad(y.square().sum(), x)]

    x = normal((2, 3, 8, 6), device, dtype).requires_grad_()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        inside = forward_and_backward(x)
    assert all(map(torch.equal, inside, forward_and_backward(x)))


class RoundTrip(torch.nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        coeffs = dwt2d(x, "db2", 2, self.mode)
        return coeffs[0], idwt2d(coeffs, "db2", self.mode, x.shape[-2:])


def test_compile(device):
    torch._dynamo.reset()
    round_trip = RoundTrip("symmetric")
    compiled = torch.compile(round_trip, fullgraph=True, backend="aot_eager")
    for size in ((8, 6), (9, 7)):
        x = normal((1, 2, *size), device).requires_grad_()
        actual, expected = compiled(x), round_trip(x)
        weights = [torch.randn_like(y) for y in expected]
        actual_grad, expected_grad = (torch.autograd.grad(outputs, x, weights) for outputs in (actual, expected))
        for ours, theirs in zip((*actual, *actual_grad), (*expected, *expected_grad), strict=True):
            close(ours.detach(), theirs.detach())


def test_export(device):
    x = normal((1, 2, 8, 6), device, torch.float32)
    exported = torch.export.export(RoundTrip("symmetric"), (x,))
    for node in exported.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            assert node.target.namespace == "aten", node.target
    for actual, expected in zip(exported.module()(x), RoundTrip("symmetric")(x), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("mode", MODES)
def test_matrices_equal_convolutions(device, mode, monkeypatch):
    """The two ways of computing: values, all derivatives, in- and outside of vmap and autocast, any strides."""

    def everything(wavelet: str, size: tuple[int, int]) -> list[torch.Tensor]:
        def round_trip(x: torch.Tensor) -> torch.Tensor:
            cA, (cH, cV, cD), _ = dwt2d(x, wavelet, 2, mode)
            return idwt2d([cA * cH, (cV, cD, cA)], wavelet, mode)

        x = normal((2, 2, *size), device).requires_grad_()
        coeffs = dwt2d(x, wavelet, 2, mode)
        y = idwt2d(coeffs, wavelet, mode, size)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            (grad,) = torch.autograd.grad(round_trip(x).pow(3).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(grad.square().sum(), x)
        tangent = torch.func.jvp(round_trip, (x,), (x.mT.contiguous().mT,))[1]
        mapped = torch.func.vmap(round_trip, 1)(x.unsqueeze(1))
        return [*flat(coeffs), y, grad, second, tangent, mapped]

    for wavelet, size in (("db2", (12, 9)), ("bior2.2", (7, 7)), ("haar", (2, 5))):
        monkeypatch.setattr(filterbank, "MIN_MATRIX_MAPS", 10**9)
        expected = everything(wavelet, size)
        monkeypatch.setattr(filterbank, "MIN_MATRIX_MAPS", 1)
        assert filterbank._suits_matrices(torch.zeros(1, 1, *size), torch.zeros(2, 4))
        for ours, theirs in zip(everything(wavelet, size), expected, strict=True):
            close(ours.detach(), theirs.detach())


def test_long_sides_and_taps_to_be_learned_are_convolved(device, monkeypatch):
    taps = torch.zeros(2, 4, device=device)
    monkeypatch.setattr(filterbank, "_multiply", lambda *_: pytest.fail("matrices"))
    flat(dwt2d(normal((2, 4, filterbank.MAX_MATRIX_SIDE + 1, 8), device), "db2"))
    flat(filterbank.analyse(normal((2, 4, 8, 8), device, torch.float32), taps.requires_grad_(), 1, "zero"))
