"""The parity of test_parity.py in every form that a model is run in: layouts, folded, compiled, half precision."""

import contextlib
import copy
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from parity import (
    LIMITS,
    fill_by_key,
    grad_norm_errors,
    load_fixture,
    load_grad_norms,
    make_input,
    output_errors,
    relative_error,
    run_with_features,
    sample,
)
from torch import Tensor, nn

import wsfvit  # noqa: F401
from benchmarks.baseline import create_baseline
from wsfvit.models.fuse import fuse_for_inference
from wsfvit.wavelets import wavelet_backend

NAME, DWT_NAME = "wsfvit_p1_224", "wsfvit_dwt_p0_224"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
HALVES = (torch.bfloat16, torch.float16)
# A half-precision run may err this many times as much as the plain rebuild in the same precision.
HALF_FACTOR = 2
# On a CPU, everything that inductor does before it writes code, which takes a model's many minutes there: one graph,
# without mutation, in its smaller set of operators.
COMPILERS = {"cpu": "aot_eager_decomp_partition", "cuda": "inductor"}


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    return load_fixture(NAME)


@pytest.fixture(scope="module")
def images(fixture, device) -> Tensor:
    """(2, 3, 224, 224) float64."""
    return make_input(int(fixture["seed"]), int(fixture["img_size"])).to(device)


@pytest.fixture(scope="module")
def published(device) -> nn.Module:
    """The model in float64, not to be changed: `to` gives copies."""
    return fill_by_key(timm.create_model(NAME)).eval().to(device)


@pytest.fixture(scope="module")
def rebuild(device) -> nn.Module:
    """The plain rebuild with the same weights, likewise."""
    return fill_by_key(create_baseline(NAME)).eval().to(device)


@pytest.fixture(scope="module")
def subbands(device) -> nn.Module:
    """The model of explicit subbands in float64, likewise. No fixture is published for it."""
    return fill_by_key(timm.create_model(DWT_NAME)).eval().to(device)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


def to(model: nn.Module, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    return copy.deepcopy(model).to(dtype, memory_format=layout)


@pytest.mark.parametrize("folded", [False, True], ids=["whole", "folded"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_layouts_and_folded(dtype, layout, folded, published, images, fixture) -> None:
    model = to(published, dtype, LAYOUTS[layout])
    model = fuse_for_inference(model) if folded else model
    errors = output_errors(*run_with_features(model, images.to(dtype, memory_format=LAYOUTS[layout])), fixture)
    assert max(errors.values()) < LIMITS[dtype], errors


def test_compiled_with_gradients_in_float64(device, published, images, fixture) -> None:
    model = to(published, torch.float64)
    logits = torch.compile(model, fullgraph=True, backend=COMPILERS[device.type])(images)
    logits.square().mean().backward()
    assert relative_error(logits.detach(), fixture["logits"]) < LIMITS[torch.float64]
    errors = grad_norm_errors(model, load_grad_norms(NAME))
    assert max(errors.values()) < 1e-8, max(errors, key=errors.__getitem__)


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")
def test_stem_compiled_to_machine_code(published, images, fixture) -> None:
    """Inductor's own code, of the part that holds the wavelet transform."""
    stem = to(published, torch.float32).stem
    with torch.no_grad():
        feature = torch.compile(stem, fullgraph=True, dynamic=False)(images.float())
    assert relative_error(sample(feature), fixture["feature0_sample"]) < LIMITS[torch.float32]


def half_errors(model: nn.Module, dtype: torch.dtype, autocast: bool, images: Tensor, expected: dict[str, Any]) -> Any:
    """Errors of a float64 model that is run in half precision, on weights of that type or under autocast."""
    weights = torch.float32 if autocast else dtype
    context = torch.autocast(images.device.type, dtype) if autocast else contextlib.nullcontext()
    with context:
        return output_errors(*run_with_features(to(model, weights), images.to(weights)), expected)


@pytest.mark.parametrize("autocast", [False, True], ids=["converted", "autocast"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_errs_little_more_than_the_plain_rebuild(
    dtype, autocast, published, rebuild, images, fixture
) -> None:
    """PyTorch has no FFT in half precision on a CPU, so the rebuild widens its transform alone, as its users must.

    Everything else of it is in the half type, and its transform's result is rounded to it.
    """
    plain = half_errors(rebuild, dtype, autocast, images, fixture)
    for model in (published, fuse_for_inference(published)):
        errors = half_errors(model, dtype, autocast, images, fixture)
        ratios = {key: errors[key] / plain[key] for key in plain}
        assert max(ratios.values()) < HALF_FACTOR, (ratios, plain)


@pytest.mark.requires_cuda
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_folded_and_compiled_on_a_gpu(dtype, device, published, rebuild, images, fixture) -> None:
    model, layout = fuse_for_inference(to(published, dtype)), torch.channels_last
    x = images.to(dtype, memory_format=layout)
    limit = LIMITS.get(dtype) or HALF_FACTOR * half_errors(rebuild, dtype, False, images, fixture)["logits"]
    for backend in ("reference", "triton"):
        with torch.no_grad(), wavelet_backend(backend):
            logits = torch.compile(model.to(memory_format=layout), fullgraph=True, dynamic=False)(x)
        assert relative_error(logits, fixture["logits"]) < limit, backend


@pytest.mark.parametrize("folded", [False, True], ids=["whole", "folded"])
def test_triton_kernels(folded, published, subbands, images) -> None:
    pytest.importorskip("triton")
    x = images[:, :, :64, :48]  # whole ones take Triton's interpreter a minute
    for exact in (published, subbands):
        model = to(exact, torch.float32)
        with torch.no_grad(), wavelet_backend("triton"):
            logits = (fuse_for_inference(model) if folded else model)(x.float())
        with torch.no_grad():
            assert relative_error(logits, exact(x)) < LIMITS[torch.float32]


def test_forms_of_the_explicit_subbands(device, subbands, images) -> None:
    """Measured against the model's own float64 outputs."""
    with torch.no_grad():
        expected = subbands(images)
        assert relative_error(fuse_for_inference(subbands)(images), expected) < LIMITS[torch.float64]
        model = to(subbands, torch.float32, torch.channels_last)
        fused = fuse_for_inference(model)
        compiled = torch.compile(fused, fullgraph=True, backend=COMPILERS[device.type])
        for form in (model, fused, compiled):
            assert relative_error(form(images.float()), expected) < LIMITS[torch.float32]
