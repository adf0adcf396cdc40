"""The published names agree with the published system: parameters, keys, shapes, outputs and gradients."""

import pytest
import timm
import torch
from parity import (
    LIMITS,
    fill_by_key,
    grad_norm_errors,
    load_fixture,
    load_grad_norms,
    load_manifest,
    make_input,
    output_errors,
)

import wsfvit  # noqa: F401

MANIFEST = load_manifest()


@pytest.mark.parametrize("name", MANIFEST)
def test_parameters_keys_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == MANIFEST[name]["params"]
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == MANIFEST[name]["state_dict"]
    assert list(shapes) == list(MANIFEST[name]["state_dict"]), "another order"
    assert model.default_cfg["input_size"] == (3, MANIFEST[name]["img_size"], MANIFEST[name]["img_size"])


def test_dwt_family_has_the_published_keys() -> None:
    for size in ("p0", "p1", "p2", "n", "t", "s", "m", "b"):
        with torch.device("meta"):
            model = timm.create_model(f"wsfvit_dwt_{size}_224")
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        assert shapes == MANIFEST[f"wsfvit_{size}_224"]["state_dict"]


@pytest.mark.parametrize("name", ["wsfvit_p1_224", "wsfvit_t_224", "wsfvit_b_256", "wsfvit_t_384"])
def test_outputs(name: str) -> None:
    fixture = load_fixture(name)
    x = make_input(int(fixture["seed"]), int(fixture["img_size"]))
    model = fill_by_key(timm.create_model(name)).eval()
    for dtype, limit in LIMITS.items():
        model.to(dtype)
        with torch.inference_mode():
            last, features = model.forward_intermediates(x.to(dtype))
            errors = output_errors(model.forward_head(last), features, fixture)
        assert max(errors.values()) < limit, (dtype, errors)


def test_gradient_norms() -> None:
    fixture = load_fixture("wsfvit_p1_224")
    model = fill_by_key(timm.create_model("wsfvit_p1_224")).eval()
    model(make_input(int(fixture["seed"]), 224)).square().mean().backward()
    errors = grad_norm_errors(model, load_grad_norms("wsfvit_p1_224"))
    assert max(errors.values()) < 1e-8, max(errors, key=errors.__getitem__)
