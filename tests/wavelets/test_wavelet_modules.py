"""The modules: each equals its function."""

import pytest
import torch

from wsfvit.wavelets import (
    DWT2d,
    HaarDWT2d,
    HaarIDWT2d,
    HaarISWT2d,
    HaarSWT2d,
    IDWT2d,
    dwt2d,
    haar_dwt2d,
    haar_idwt2d,
    haar_iswt2d,
    haar_swt2d,
    idwt2d,
)

pywt = pytest.importorskip("pywt")


def equal(ours, theirs) -> bool:
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    return len(ours) == len(theirs) and all(map(equal, ours, theirs))


def test_module_equals_function_haar(device, dtype):
    x = torch.randn(2, 3, 5, 6, device=device).to(dtype)
    y = haar_dwt2d(x)
    assert equal(HaarDWT2d()(x), y)
    assert equal(HaarIDWT2d()(y), haar_idwt2d(y))
    assert equal(HaarIDWT2d()(y, output_size=(5, 6)), haar_idwt2d(y, (5, 6)))
    for mode in ("zero", "periodic"):
        s = haar_swt2d(x, mode)
        assert equal(HaarSWT2d(mode)(x), s)
        assert equal(HaarISWT2d(mode)(s), haar_iswt2d(s, mode))


@pytest.mark.parametrize("wavelet", ["bior2.4", pywt.Wavelet("db2")], ids=["name", "object"])
@pytest.mark.parametrize("change", ["none", "half", "bfloat16", "double"])
def test_module_equals_function_filterbank(device, dtype, wavelet, change):
    """Whatever dtype the module is cast to, its taps stay exact for the dtype of the input."""
    x = torch.randn(2, 3, 9, 6, device=device).to(dtype)
    dwt, idwt = DWT2d(wavelet, 2, "zero").to(device), IDWT2d(wavelet, "zero").to(device)
    if change != "none":
        dwt, idwt = getattr(dwt, change)(), getattr(idwt, change)()
    coeffs = dwt(x)
    assert equal(coeffs, dwt2d(x, wavelet, 2, "zero"))
    assert equal(idwt(coeffs, (9, 6)), idwt2d(coeffs, wavelet, "zero", (9, 6)))


def test_taps_are_no_state():
    for module in (DWT2d("db2"), IDWT2d("db2")):
        assert dict(module.named_buffers()).keys() == {"taps"} and not module.state_dict()


def test_exceptions():
    for build in (DWT2d, IDWT2d):
        with pytest.raises(ValueError, match="nope"):
            build("nope")
        with pytest.raises(ValueError, match="periodization"):
            build("db2", mode="per")
    with pytest.raises(ValueError, match="level"):
        DWT2d("db2", level=0)


def test_extra_repr():
    assert repr(HaarDWT2d()) == "HaarDWT2d()"
    assert repr(HaarSWT2d("periodic")) == "HaarSWT2d(mode='periodic')"
    assert repr(HaarISWT2d()) == "HaarISWT2d(mode='zero')"
    assert repr(DWT2d("db2", 3, "zero")) == "DWT2d(wavelet='db2', level=3, mode='zero')"
    assert repr(IDWT2d(pywt.Wavelet("db2"))) == "IDWT2d(wavelet='db2', mode='symmetric')"


def test_compile(device):
    torch._dynamo.reset()
    dwt, idwt = DWT2d("db3", 2).to(device), IDWT2d("db3").to(device)
    x = torch.randn(1, 2, 9, 8, device=device)
    compiled = torch.compile(lambda x: idwt(dwt(x), (9, 8)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), x)
