"""What timm's own models promise, checked on every registered model (small images, full widths)."""

import dataclasses
import re
from collections.abc import Iterator

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn

import wsfvit  # noqa: F401
from wsfvit.models.wsfvit import model_cfgs

MODELS = timm.list_models("wsfvit*")
PUBLISHED = [f"wsfvit_{size}_224" for size in ("p0", "p1", "p2", "n", "t", "s", "m", "b")]
PUBLISHED += ["wsfvit_b_256", "wsfvit_t_384", "wsfvit_s_384", "wsfvit_m_384", "wsfvit_b_384"]
TINY = dict(embed_dims=(16, 16, 32, 32), depths=(1, 2, 1, 1), inter_heads=(2, 2, 4, 4), head_dim=8, stem_width=8)
TINY_NAMES = ["wsfvit_p0_224", "wsfvit_dwt_p0_224"]
SIZE = 64


def create_tiny(name: str, **kwargs: object) -> nn.Module:
    return timm.create_model(name, **{**TINY, "head_hidden_size": 16, "img_size": SIZE, "num_classes": 7, **kwargs})


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    torch.manual_seed(0)
    yield timm.create_model(request.param, num_classes=42, img_size=SIZE, drop_path_rate=0.0)


def test_all_names_are_registered() -> None:
    dwt = [f"wsfvit_dwt_{size}_224" for size in ("p0", "p1", "p2", "n", "t", "s", "m", "b")]
    assert sorted(MODELS) == sorted(PUBLISHED + dwt)
    assert timm.is_model("wsfvit_t_224") and timm.list_models(module="wsfvit") == MODELS


def test_forward(model: nn.Module) -> None:
    with torch.inference_mode():
        out = model.eval()(torch.randn(2, 3, SIZE, SIZE))
    assert out.shape == (2, 42)
    assert out.isfinite().all()


def test_backward_reaches_every_parameter(model: nn.Module) -> None:
    model.eval().zero_grad()
    model(torch.randn(2, 3, SIZE, SIZE)).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not silent
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_features(model: nn.Module) -> None:
    with torch.inference_mode():
        x = torch.randn(1, 3, SIZE, SIZE)
        last, features = model.eval().forward_intermediates(x)
        torch.testing.assert_close(model.forward_features(x), last)
        torch.testing.assert_close(model.forward_head(last), model(x))
        assert model.forward_head(last, pre_logits=True).shape == (1, model.head_hidden_size)
    for feature, info in zip(features, model.feature_info, strict=True):
        assert feature.shape == (1, info["num_chs"], SIZE // info["reduction"], SIZE // info["reduction"])
    assert model.num_features == model.feature_info[-1]["num_chs"]


def test_default_cfg(model: nn.Module) -> None:
    cfg = model.default_cfg
    state_dict = model.state_dict()
    assert {"url", "num_classes", "input_size", "mean", "std", "crop_pct", "interpolation"} <= cfg.keys()
    assert f"{cfg['first_conv']}.weight" in state_dict and f"{cfg['classifier']}.weight" in state_dict
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])
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


@pytest.mark.parametrize("name", TINY_NAMES)
def test_features_only(name: str) -> None:
    x = torch.randn(2, 3, SIZE, SIZE)
    full = create_tiny(name).eval()
    with torch.inference_mode():
        expected = full.forward_intermediates(x, intermediates_only=True)
    for indices in (None, (0, 1, 2, 3, 4), (1, 3), (-2, -1)):
        kwargs = {} if indices is None else dict(out_indices=indices)
        extractor = create_tiny(name, features_only=True, **kwargs).eval()
        extractor.model.load_state_dict(full.state_dict(), strict=False)
        wanted = [expected[i] for i in (indices or (0, 1, 2, 3, 4))]
        with torch.inference_mode():
            actual = extractor(x)
        for a, b in zip(actual, wanted, strict=True):
            torch.testing.assert_close(a, b)
        assert extractor.feature_info.channels() == [f.shape[1] for f in wanted]
        assert extractor.feature_info.reduction() == [SIZE // f.shape[2] for f in wanted]
    pruned = create_tiny(name, features_only=True, out_indices=(0, 2))
    assert len(pruned.model.stages) == 2 and isinstance(pruned.model.head.fc, nn.Identity)


@pytest.mark.parametrize("name", TINY_NAMES)
def test_forward_intermediates_stops_early(name: str) -> None:
    model = create_tiny(name).eval()
    calls = []
    model.stages[3].register_forward_hook(lambda *_: calls.append(1))
    features = model.forward_intermediates(
        torch.randn(1, 3, SIZE, SIZE), indices=[1, 2], stop_early=True, intermediates_only=True
    )
    assert len(features) == 2 and not calls
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(torch.randn(1, 3, SIZE, SIZE), output_fmt="NLC")


@pytest.mark.parametrize("name", TINY_NAMES)
def test_classifier_arguments(name: str) -> None:
    x = torch.randn(2, 3, SIZE, SIZE)
    model = create_tiny(name, drop_rate=0.5, global_pool="max").eval()
    assert model.head.drop.p == 0.5 and model.head.global_pool.pool_type == "max"
    assert model(x).shape == (2, 7)
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3) and model.num_classes == 3 and model.global_pool == "avg"
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(x).shape[0] == 2 and model(x).ndim == 4
    model.reset_classifier(0, "avg", reset_other=True)
    assert model(x).shape == (2, model.num_features)
    assert create_tiny(name, num_classes=0)(x).shape == (2, 16)


@pytest.mark.parametrize("name", TINY_NAMES)
@pytest.mark.parametrize("in_chans", [1, 3, 5])
def test_in_chans(name: str, in_chans: int) -> None:
    assert create_tiny(name, in_chans=in_chans)(torch.randn(2, in_chans, SIZE, SIZE)).shape == (2, 7)


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


@pytest.mark.parametrize("name", TINY_NAMES)
def test_grad_checkpointing_changes_nothing(name: str) -> None:
    model, x = create_tiny(name).double().eval(), torch.randn(2, 3, SIZE, SIZE).double()
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", TINY_NAMES)
def test_parameter_groups(name: str) -> None:
    model = create_tiny(name)
    no_decay = model.no_weight_decay()
    assert len(no_decay) == 10 and all("bias_table" in n for n in no_decay)
    for coarse, depth in ((False, 6), (True, 5)):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sum(map(len, groups.values())) == len(list(model.parameters()))
        assert len(groups) == depth + 1  # stem, blocks or stages, head
    decayed = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05).param_groups
    tables = {id(p) for n, p in model.named_parameters() if "bias_table" in n}
    assert all(group["weight_decay"] == 0 for group in decayed for p in group["params"] if id(p) in tables)
    assert len(param_groups_layer_decay(model, layer_decay=0.9)) > 5


@pytest.mark.parametrize("name", TINY_NAMES)
def test_half_precision_channels_last_and_gradient_to_the_image(name: str) -> None:
    model = create_tiny(name).eval()
    x = torch.randn(2, 3, SIZE, SIZE, requires_grad=True)
    expected = model(x)
    expected.sum().backward()
    assert x.grad is not None and x.grad.abs().min(dim=1).values.max() > 0
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(x).float() - expected).abs().max() < 0.1 * expected.abs().max().clamp(min=1)
    model.bfloat16()
    assert model(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", TINY_NAMES)
def test_device_and_dtype(name: str) -> None:
    model = create_tiny(name, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
    assert model(torch.empty(2, 3, 97, 131, device="meta", dtype=torch.bfloat16)).shape == (2, 7)


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
