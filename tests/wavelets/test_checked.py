"""The check of the Triton kernels before their first use, with sound kernels and with broken ones."""

import time
import warnings
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from wsfvit.analysis import info
from wsfvit.wavelets import cpu, functional, haar_dwt2d, haar_iswt2d, haar_swt2d
from wsfvit.wavelets.triton import checked

haar = pytest.importorskip("wsfvit.wavelets.triton.haar")


@pytest.fixture(autouse=True)
def calls(monkeypatch) -> Counter:
    """Nothing checked yet; calls of the kernels' functions by name."""
    monkeypatch.setattr(checked, "failures", {})
    monkeypatch.setattr(checked, "_checked", set())
    counts: Counter = Counter()

    def count(name, function):
        return lambda *arguments: (counts.update([name]), function(*arguments))[1]

    for name in checked.OPERATORS:
        monkeypatch.setattr(haar, name, count(name, getattr(haar, name)))
    return counts


def arguments_of(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple:
    x = torch.randn(2, 3, 6, 9, device=device).to(dtype)
    return {
        "haar_dwt2d": (x,),
        "haar_idwt2d": (cpu.haar_dwt2d(x), (6, 9)),
        "haar_swt2d": (x, "periodic", False, True),
        "haar_swt2d_adjoint": (cpu.haar_swt2d(x, "zero"), "zero", True, False),
        "haar_swt2d_affine_gelu": (x, *torch.randn(2, 12, device=device), True, torch.float16),
    }[name]


@pytest.mark.parametrize("name", checked.OPERATORS)
def test_sound_kernel_is_compared_once_and_used(name, device, calls):
    arguments = arguments_of(name, device)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the Triton kernel")
        got = getattr(checked, name)(*arguments)
        assert calls[name] == len(checked.SIZES) + 1
        getattr(checked, name)(*arguments)
    assert calls[name] == len(checked.SIZES) + 2
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(got, getattr(cpu, name)(*arguments), check_stride=True)


def test_every_dtype_layout_and_option_is_compared(device, calls):
    image = torch.randn(2, 3, 6, 9, device=device)
    forms = [image, image.double(), image.to(memory_format=torch.channels_last), image.half()]
    for number, x in enumerate(forms, 1):
        checked.haar_dwt2d(x)
        assert calls["haar_dwt2d"] == number * (len(checked.SIZES) + 1)
    before = len(checked._checked)
    for mode, average, flip in [("zero", False, False), ("periodic", False, False), ("zero", False, True)]:
        checked.haar_swt2d(image, mode, average, flip)
    assert len(checked._checked) == before + 3


def too_large(*arguments):
    return cpu.haar_dwt2d(*arguments) * 1.001


def not_finite(*arguments):
    return cpu.haar_dwt2d(*arguments) * float("nan")


def in_another_layout(*arguments):
    return cpu.haar_dwt2d(*arguments).transpose(3, 4).contiguous().transpose(3, 4)


def fails(*arguments):
    raise RuntimeError("ptxas is missing\nsecond line")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (too_large, "AssertionError: Tensor-likes are not close"),
        (not_finite, "AssertionError: Tensor-likes are not close"),
        (in_another_layout, "stride"),
        (fails, "RuntimeError: ptxas is missing;"),
    ],
)
def test_broken_kernel_is_named_once_and_replaced(broken, reason, device, monkeypatch):
    monkeypatch.setattr(haar, "haar_dwt2d", broken)
    x = torch.randn(2, 3, 6, 9, device=device)
    with pytest.warns(RuntimeWarning, match=f"kernel of haar_dwt2d is not used.*{reason}") as caught:
        got = checked.haar_dwt2d(x)
    assert len(caught) == 1
    monkeypatch.setattr(haar, "haar_dwt2d", None)  # calling it again would be an error
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the Triton kernel")
        for each in (x, x.double()):
            torch.testing.assert_close(checked.haar_dwt2d(each), cpu.haar_dwt2d(each))
        checked.haar_idwt2d(got, (6, 9))
    assert list(checked.failures) == ["haar_dwt2d"]


def test_nothing_is_compared_while_a_graph_is_recorded(device, calls, monkeypatch):
    x = torch.randn(2, 3, 6, 9, device=device)
    with monkeypatch.context() as patch:
        patch.setattr(checked, "_is_recorded", lambda x: True)
        torch.testing.assert_close(checked.haar_dwt2d(x), cpu.haar_dwt2d(x))
        assert not calls
    checked.haar_dwt2d(x)  # compared now
    with monkeypatch.context() as patch:
        patch.setattr(checked, "_is_recorded", lambda x: True)
        before = calls["haar_dwt2d"]
        checked.haar_dwt2d(x)
    assert calls["haar_dwt2d"] == before + 1


def test_fake_tensors_do_not_reach_a_kernel(calls):
    with FakeTensorMode():
        assert checked.haar_dwt2d(torch.empty(2, 3, 6, 9)).shape == (2, 4, 3, 3, 5)
    assert not calls and not checked.failures


def test_public_functions_differentiate_through_the_choice(device, calls, monkeypatch):
    monkeypatch.setattr(functional, "eager_module", lambda device: checked)
    x = torch.randn(1, 1, 2, 3, device=device, dtype=torch.float64, requires_grad=True)
    for function in (haar_dwt2d, haar_swt2d, lambda x: haar_iswt2d(haar_swt2d(x))):
        assert torch.autograd.gradcheck(function, x)
    assert calls.keys() == set(checked.OPERATORS[:-1])


@pytest.mark.usefixtures("calls")
def test_info_tells_which_kernels_are_used(device, monkeypatch):
    monkeypatch.setattr(info, "resolve_backend", lambda device: "triton")
    monkeypatch.setattr(haar, "haar_idwt2d", fails)
    with pytest.warns(RuntimeWarning, match="haar_idwt2d"):
        text = info._backend(torch.device(device))
    assert text.startswith("triton, checked in float32: haar_dwt2d, haar_swt2d, haar_swt2d_adjoint; not haar_idwt2d: ")
    assert "ptxas is missing" in text


def test_a_comparison_takes_milliseconds_after_compilation(device):
    if torch.device(device).type != "cuda":
        pytest.skip("the interpreter is slow")
    for name in checked.OPERATORS:
        getattr(checked, name)(*arguments_of(name, device))
        checked._checked.clear()
        torch.cuda.synchronize()
        start = time.perf_counter()
        getattr(checked, name)(*arguments_of(name, device))
        torch.cuda.synchronize()
        assert time.perf_counter() - start < 0.05
