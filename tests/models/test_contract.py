"""timm's model interface, checked on every registered WSF-ViT (small images, full widths)."""

import dataclasses
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from models import contract
from timm.optim import create_optimizer_v2
from torch import nn

import wsfvit.models
from wsfvit.models.wsfvit import model_cfgs

MODELS = timm.list_models("wsfvit*")
PUBLISHED = [f"wsfvit_{size}_224" for size in ("p0", "p1", "p2", "n", "t", "s", "m", "b")]
PUBLISHED += ["wsfvit_b_256", "wsfvit_t_384", "wsfvit_s_384", "wsfvit_m_384", "wsfvit_b_384"]
TINY = dict(embed_dims=(16, 16, 32, 32), depths=(1, 2, 1, 1), inter_heads=(2, 2, 4, 4), head_dim=8, stem_width=8)
TINY_NAMES = ["wsfvit_p0_224", "wsfvit_dwt_p0_224"]
SIZE = contract.SIZE


def create_tiny(name: str, **kwargs: object) -> nn.Module:
    return contract.create_named(name, **TINY, head_hidden_size=16, img_size=SIZE)(**kwargs)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    torch.manual_seed(0)
    yield timm.create_model(request.param, num_classes=42, img_size=SIZE, drop_path_rate=0.0)


@pytest.mark.parametrize(
    "family", [wsfvit.models.wsfvit, wsfvit.models.wavemix, wsfvit.models.wacnn, wsfvit.models.mwa]
)
def test_each_name_is_a_function_in_its_familys_file(family: ModuleType) -> None:
    text = Path(family.__file__).read_text()
    names = timm.list_models(module=family.__name__.rsplit(".", 1)[1])
    assert set(re.findall(r"^@register_model\ndef (\w+)\(pretrained: bool = False, ", text, re.M)) == set(names)
    assert set(family.model_cfgs) == set(family.default_cfgs) == set(names)
    for name in names:
        assert re.search(rf'^def {name}\(.*\n    return _create\("{name}", pretrained, \*\*kwargs\)$', text, re.M), name


def test_all_names_are_registered() -> None:
    dwt = [f"wsfvit_dwt_{size}_224" for size in ("p0", "p1", "p2", "n", "t", "s", "m", "b")]
    assert sorted(MODELS) == sorted(PUBLISHED + dwt)
    assert timm.is_model("wsfvit_t_224") and timm.list_models(module="wsfvit") == MODELS


def test_forward(model: nn.Module) -> None:
    contract.check_forward(model)


def test_backward_reaches_every_parameter(model: nn.Module) -> None:
    contract.check_backward_reaches_every_parameter(model)


def test_features(model: nn.Module) -> None:
    contract.check_features(model)


def test_default_cfg(model: nn.Module) -> None:
    contract.check_default_cfg(model)
    cfg = model.default_cfg
    assert cfg["pool_size"] == tuple(side // 32 for side in cfg["input_size"][1:])
    assert cfg["crop_mode"] == ("squash" if cfg["architecture"].endswith("384") else "center")


def test_initialisation(model: nn.Module) -> None:
    """As WSF-ViT's: tables and stem convolutions normal, all else torch's defaults."""
    for name, p in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            assert p.abs().max() < 2 and (p.numel() < 100 or 0.01 < p.std() < 0.03), name
        elif re.fullmatch(r"stem\.conv\d\.weight", name):
            assert p.std().item() == pytest.approx((2 / (9 * p.shape[0])) ** 0.5, rel=0.15)
        else:
            assert p.isfinite().all(), name


@pytest.mark.parametrize("name", MODELS)
def test_full_size_forward(name: str) -> None:
    model = timm.create_model(name).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, *model.default_cfg["input_size"])).isfinite().all()


@pytest.fixture(params=TINY_NAMES)
def create(request: pytest.FixtureRequest) -> contract.Create:
    return partial(create_tiny, request.param)


def test_features_only(create: contract.Create) -> None:
    contract.check_features_only(create, default=(0, 1, 2, 3, 4))
    pruned = create(features_only=True, out_indices=(0, 2))
    assert len(pruned.model.stages) == 2 and isinstance(pruned.model.head.fc, nn.Identity)


def test_forward_intermediates_stops_early(create: contract.Create) -> None:
    contract.check_intermediates_stop_early(create)


def test_classifier_arguments(create: contract.Create) -> None:
    contract.check_classifier_arguments(create)
    contract.check_new_classifier_joins_the_model(create)
    model = create(drop_rate=0.5, global_pool="max").eval()
    assert model.head.drop.p == 0.5 and model.head.global_pool.pool_type == "max"
    model.reset_classifier(0, "avg", reset_other=True)
    assert model(contract.images()).shape == (2, model.num_features)


@pytest.mark.parametrize("in_chans", [1, 3, 5])
def test_in_chans(create: contract.Create, in_chans: int) -> None:
    contract.check_in_chans(create, in_chans)


@pytest.mark.parametrize("name", TINY_NAMES)
def test_drop_path_rises_linearly_and_is_off_in_evaluation(name: str) -> None:
    model = create_tiny(name, drop_path_rate=0.4)
    rates = [getattr(block.attn_local.drop_path1, "drop_prob", 0.0) for s in model.stages for block in s.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    last = model.stages[-1].blocks[-1]
    paths = [last.conv.drop_path, last.attn_inter.drop_path1, last.attn_inter.drop_path2, last.attn_global.drop_path2]
    assert [p.drop_prob for p in paths] == pytest.approx([0.4] * 4)
    x = torch.randn(4, 3, SIZE, SIZE)
    model.eval()
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)


def test_grad_checkpointing_changes_nothing(create: contract.Create) -> None:
    contract.check_grad_checkpointing(create)


def test_parameter_groups(create: contract.Create) -> None:
    contract.check_parameter_groups(create, groups=7, coarse_groups=6)
    model = create()
    no_decay = model.no_weight_decay()
    assert len(no_decay) == 10 and all("bias_table" in n for n in no_decay)
    decayed = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05).param_groups
    tables = {id(p) for n, p in model.named_parameters() if "bias_table" in n}
    assert all(group["weight_decay"] == 0 for group in decayed for p in group["params"] if id(p) in tables)


def test_half_precision_channels_last_and_gradient_to_the_image(create: contract.Create) -> None:
    contract.check_half_precision_channels_last_and_gradient_to_the_image(create)


def test_device_and_dtype(create: contract.Create) -> None:
    contract.check_device_and_dtype(create)


def test_safetensors(create: contract.Create, tmp_path: Path) -> None:
    contract.check_safetensors(create, tmp_path)


def test_export(create: contract.Create) -> None:
    contract.check_export(create)


def test_configuration_errors_name_the_field() -> None:
    with pytest.raises(TypeError, match="unknown model argument embed_dim;"):
        timm.create_model("wsfvit_p0_224", embed_dim=3)
    with pytest.raises(ValueError, match="one value per stage"):
        timm.create_model("wsfvit_p0_224", depths=(1, 1, 1))
    with pytest.raises(ValueError, match="width 24 is not a multiple of the head dimension 7"):
        timm.create_model("wsfvit_p0_224", head_dim=7)
    with pytest.raises(ValueError, match="heads"):
        timm.create_model("wsfvit_p0_224", inter_heads=(5, 4, 8, 16))


def test_families_differ_in_one_field() -> None:
    for size in ("p0", "p1", "p2", "n", "t", "s", "m", "b"):
        published, dwt = model_cfgs[f"wsfvit_{size}_224"], model_cfgs[f"wsfvit_dwt_{size}_224"]
        assert dataclasses.replace(published, explicit_dwt=True) == dwt


@pytest.mark.parametrize("name", TINY_NAMES)
def test_small_image_strides(name: str) -> None:
    model = create_tiny(name, img_size=32, stem_stride=1, stage_strides=(1, 2, 2, 2)).eval()
    assert [info["reduction"] for info in model.feature_info] == [1, 1, 2, 4, 8]
    assert model.stages[0].blocks[0].attn_local.window_size == (4, 4)
    features = model.forward_intermediates(torch.randn(1, 3, 32, 32), intermediates_only=True)
    assert [f.shape[-1] for f in features] == [32, 32, 16, 8, 4]
