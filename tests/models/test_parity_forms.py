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
from wsfvit.benchmarks.baseline import create_baseline
from wsfvit.models.fuse import fuse_for_inference

NAME, DWT_NAME = "wsfvit_p1_224", "wsfvit_dwt_p0_224"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
HALVES = (torch.bfloat16, torch.float16)
# A half-precision run may err this many times as much as the plain rebuild in the same precision.
HALF_FACTOR = 2
# Everything that inductor does before it writes code: one graph, without mutation, in its smaller set of operators.
NO_CODE = "aot_eager_decomp_partition"


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    return load_fixture(NAME)


@pytest.fixture(scope="module")
def images(fixture) -> Tensor:
    """(2, 3, 224, 224) float64."""
    return make_input(int(fixture["seed"]), int(fixture["img_size"]))


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """The model in float64, not to be changed: `to` gives copies."""
    return fill_by_key(timm.create_model(NAME)).eval()


@pytest.fixture(scope="module")
def rebuild() -> nn.Module:
    """The plain rebuild with the same weights, likewise."""
    return fill_by_key(create_baseline(NAME)).eval()


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


def test_compiled_with_gradients_in_float64(published, images, fixture) -> None:
    model = to(published, torch.float64)
    logits = torch.compile(model, fullgraph=True, backend=NO_CODE)(images)
    logits.square().mean().backward()
    assert relative_error(logits.detach(), fixture["logits"]) < LIMITS[torch.float64]
    errors = grad_norm_errors(model, load_grad_norms(NAME))
    assert max(errors.values()) < 1e-8, max(errors, key=errors.__getitem__)


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")
def test_stem_compiled_to_machine_code(published, images, fixture) -> None:
    """Inductor's own code, of the part that holds the wavelet transform: the whole model takes it many minutes."""
    stem = to(published, torch.float32).stem
    with torch.no_grad():
        feature = torch.compile(stem, fullgraph=True, dynamic=False)(images.float())
    assert relative_error(sample(feature), fixture["feature0_sample"]) < LIMITS[torch.float32]


def half_errors(model: nn.Module, dtype: torch.dtype, autocast: bool, images: Tensor, expected: dict[str, Any]) -> Any:
    """Errors of a float64 model that is run in half precision, on weights of that type or under autocast."""
    weights = torch.float32 if autocast else dtype
    context = torch.autocast("cpu", dtype) if autocast else contextlib.nullcontext()
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


def test_forms_of_the_explicit_subbands(images) -> None:
    """No fixture is published for this family: its forms are measured against its float64 outputs."""
    exact = fill_by_key(timm.create_model(DWT_NAME)).eval()
    with torch.no_grad():
        expected = exact(images)
        assert relative_error(fuse_for_inference(exact)(images), expected) < LIMITS[torch.float64]
        model = to(exact, torch.float32, torch.channels_last)
        fused = fuse_for_inference(model)
        compiled = torch.compile(fused, fullgraph=True, backend=NO_CODE)
        for form in (model, fused, compiled):
            assert relative_error(form(images.float()), expected) < LIMITS[torch.float32]
