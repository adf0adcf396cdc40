"""WA-CNN: timm's contract, any size, and parity with the authors' code through the key map."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import peers
import pytest
import timm
import torch
from models import contract
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import wsfvit  # noqa: F401
from wsfvit.layers import WaveletAttention
from wsfvit.models.wacnn import model_cfgs

RESNETS = ["wacnn_resnet18", "wacnn_resnet34", "wacnn_resnet50"]
BACKBONES = [*RESNETS, "wacnn_vgg16_bn", "wacnn_mobilenetv2"]
MODELS = sorted([*BACKBONES, *(f"{name}_baseline" for name in BACKBONES)])
TINY = {
    "resnet18": dict(stem_width=8, widths=(8, 8, 16), depths=(1, 2, 1)),
    "vgg16_bn": dict(stem_width=8, widths=(8, 8, 16, 16, 16), depths=(1, 1, 2, 1, 1), hidden_sizes=(12, 20)),
    "mobilenetv2": dict(stem_width=8, widths=(8,) * 7, depths=(1, 2, 1, 1, 1, 1, 1), final_width=16),
}
OUT_INDICES = {"resnet18": (1, 2, 3), "vgg16_bn": (1, 2, 3, 4, 5, 6), "mobilenetv2": (2, 3, 5, 7)}
GROUPS = {"resnet18": (6, 5), "vgg16_bn": (8, 7), "mobilenetv2": (11, 10)}
VARIANTS = [f"wacnn_{backbone}{suffix}" for backbone in TINY for suffix in ("", "_baseline")]

# Of the authors' code: parameters with 10 and with 100 classes, and multiply-accumulates of convolutions and linear
# layers for one 32 x 32 image. Its attention computes products with band matrices on top, 0.8 to 13 % more, and its
# MobileNetV2 with attention has 8,208 parameters more that nothing uses.
COUNTS = {
    "wacnn_resnet18": (272_474, 278_324, 40_813_184),
    "wacnn_resnet34": (466_906, 472_756, 69_124_736),
    "wacnn_resnet50": (855_770, 861_620, 125_747_840),
    "wacnn_vgg16_bn": (33_646_666, 34_015_396, 332_111_872),
    "wacnn_mobilenetv2": (2_296_922, 2_412_212, 91_154_944),
}


def backbone_of(name: str) -> str:
    return name.removeprefix("wacnn_").removesuffix("_baseline")


@pytest.fixture(params=VARIANTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def create(name: str) -> contract.Create:
    return contract.create_named(name, **TINY[backbone_of(name)])


def test_all_names_are_registered() -> None:
    assert timm.list_models("wacnn*") == MODELS == timm.list_models(module="wacnn")


@pytest.mark.parametrize("name", MODELS)
def test_published_size(name: str) -> None:
    model = timm.create_model(name)
    contract.check_default_cfg(model)
    contract.check_forward(model, size=32)


@pytest.mark.parametrize(
    "check",
    [
        contract.check_intermediates_stop_early,
        contract.check_classifier_arguments,
        contract.check_new_classifier_joins_the_model,
        contract.check_grad_checkpointing,
        contract.check_half_precision_channels_last_and_gradient_to_the_image,
        contract.check_device_and_dtype,
        contract.check_export,
    ],
    ids=lambda check: check.__name__,
)
def test_contract(create: contract.Create, check: Callable[[contract.Create], None]) -> None:
    check(create)


def test_every_parameter_has_a_gradient(create: contract.Create) -> None:
    contract.check_backward_reaches_every_parameter(create())


@pytest.mark.parametrize("size", [(45, 70), (32, 33), (17, 64), (224, 96)], ids=str)
def test_any_size(create: contract.Create, size: tuple[int, int]) -> None:
    contract.check_any_size(create, size)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_in_chans(create: contract.Create, in_chans: int) -> None:
    contract.check_in_chans(create, in_chans)


def test_features_only(create: contract.Create, name: str) -> None:
    contract.check_features_only(create, default=OUT_INDICES[backbone_of(name)])


def test_parameter_groups(create: contract.Create, name: str) -> None:
    groups, coarse_groups = GROUPS[backbone_of(name)]
    contract.check_parameter_groups(create, groups, coarse_groups)


def test_safetensors(create: contract.Create, tmp_path: Path) -> None:
    contract.check_safetensors(create, tmp_path)


def test_drop_path_rises_linearly() -> None:
    model = timm.create_model("wacnn_resnet18", drop_path_rate=0.8)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([i / 10 for i in range(9)])
    model = timm.create_model("wacnn_mobilenetv2", drop_path_rate=0.5)
    paths = [m for m in model.modules() if type(m).__name__ == "DropPath"]
    assert (
        paths[-1].drop_prob == pytest.approx(0.5) and len(paths) == 13
    )  # of 17 blocks the first and 3 others have none
    with pytest.raises(ValueError, match="VGG has no shortcuts"):
        timm.create_model("wacnn_vgg16_bn", **TINY["vgg16_bn"], drop_path_rate=0.1)


def test_dropout_of_the_classifier() -> None:
    def rates(**kwargs: float) -> list[float]:
        model = timm.create_model("wacnn_vgg16_bn", **TINY["vgg16_bn"], **kwargs)
        return [m.p for m in model.head.modules() if isinstance(m, nn.Dropout)]

    assert rates() == [0.5, 0.5] and rates(drop_rate=0.0) == [0.0, 0.0]


def test_pruned_models_take_a_new_classifier() -> None:
    model = timm.create_model("wacnn_vgg16_bn", **TINY["vgg16_bn"]).eval()
    model.prune_intermediate_layers([3], prune_head=False)
    model.reset_classifier(5, "avg")
    assert model(contract.images()).shape == (2, 5)


def test_errors_name_the_field() -> None:
    with pytest.raises(TypeError, match="unknown model argument wavlet;"):
        timm.create_model("wacnn_resnet18", wavlet="db2")
    for wavelet in ("nosuch", "mexh"):
        with pytest.raises(ValueError, match=f"no discrete wavelet is called '{wavelet}'"):
            timm.create_model("wacnn_resnet18", wavelet=wavelet)
    with pytest.raises(ValueError, match="unknown backbone 'resnt'; known: resnet, vgg, mobilenetv2"):
        timm.create_model("wacnn_resnet18", backbone="resnt")
    with pytest.raises(ValueError, match="one value per stage"):
        timm.create_model("wacnn_resnet18", depths=(1, 1))
    with pytest.raises(ValueError, match=r"one value per stage is needed, got widths=16, depths=\(3, 3, 3\), strides"):
        timm.create_model("wacnn_resnet18", widths=16)
    for kwargs, message in [
        (dict(depths=(3, 0, 3)), r"depths must be integers of at least 1, not \(3, 0, 3\)"),
        (dict(widths=(8, 16, 8.5)), r"widths must be integers of at least 1, not \(8, 16, 8.5\)"),
        (dict(stem_width=0), "stem_width must be an integer of at least 1, not 0"),
        (dict(hidden_sizes=(0,)), r"hidden_sizes must be integers of at least 1, not \(0,\)"),
        (dict(hidden_sizes=12), "hidden_sizes takes a tuple of widths, not 12"),
        (dict(final_width=-1), "final_width must be an integer of at least 1, not -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            timm.create_model("wacnn_resnet18", **kwargs)
    with pytest.raises(ValueError, match="strides are 1 or 2"):
        timm.create_model("wacnn_resnet18", strides=(1, 2, 4))
    with pytest.raises(ValueError, match="changes the width"):
        timm.create_model("wacnn_resnet18", global_pool="catavgmax")


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("wacnn_resnet18", ["stages.1.blocks.0.attn"]),
        ("wacnn_vgg16_bn", [f"stages.{i}.blocks.0.down" for i in (1, 2, 3, 4)] + ["stages.5.blocks.0"]),
        ("wacnn_mobilenetv2", [f"stages.{i}.blocks.0.attn" for i in (2, 3, 5)]),
    ],
)
def test_attention_stands_where_the_authors_have_it(name: str, where: list[str]) -> None:
    def find(name: str) -> dict[str, nn.Module]:
        with torch.device("meta"):
            model = timm.create_model(name, wavelet="db2") if "baseline" not in name else timm.create_model(name)
        return {key: module for key, module in model.named_modules() if isinstance(module, WaveletAttention)}

    assert list(find(name)) == where
    assert all(module.wavelet == "db2" for module in find(name).values())  # in every backbone
    assert not find(f"{name}_baseline")


@pytest.mark.parametrize("name", MODELS)
def test_counts(name: str) -> None:
    params, params_100, macs = COUNTS[name.removesuffix("_baseline")]
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        wide = timm.create_model(name, num_classes=100)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == params
    assert sum(p.numel() for p in wide.parameters()) == params_100
    assert counter.get_total_flops() == 2 * macs


CASES = {
    "wacnn_resnet18_wa_haar": ("wacnn_resnet18", {}),
    "wacnn_resnet18_wa_db2": ("wacnn_resnet18", {"wavelet": "db2"}),
    "wacnn_resnet34_wa_haar": ("wacnn_resnet34", {}),
    "wacnn_resnet18_none": ("wacnn_resnet18_baseline", {}),
    "wacnn_vgg16bn_wad_haar": ("wacnn_vgg16_bn", {}),
    "wacnn_vgg16bn_none": ("wacnn_vgg16_bn_baseline", {}),
    "wacnn_mobilenetv2_wad_haar": ("wacnn_mobilenetv2", {}),
    "wacnn_mobilenetv2_none": ("wacnn_mobilenetv2_baseline", {}),
}


@pytest.mark.parametrize("case_name", CASES)
def test_parity(case_name: str) -> None:
    """A state dict of the authors' code, renamed, gives their outputs and gradients."""
    case, (name, kwargs) = peers.load_case(case_name), CASES[case_name]
    model = timm.create_model(name, **kwargs).double().eval()
    theirs = {key: peers.fill_value(key, torch.empty(shape)) for key, shape in case.shapes.items()}
    model.load_state_dict(theirs)
    x = case.make_input().requires_grad_()
    y = model(x)
    assert error(y, case.arrays["out0_f64"]) < 1e-9

    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    expected = dict(case.info["grad_norms"])
    assert x.grad.norm().item() == pytest.approx(expected.pop("__input__"), rel=1e-9)
    assert error(x.grad[..., :8, :8], case.arrays["gradx_corner_f64"]) < 1e-9
    # The renaming knows the names alone, so it also tells which of their norms belongs to which parameter here.
    expected = model.convert_state_dict(expected)
    actual = {key: p.grad.norm().item() for key, p in model.named_parameters()}
    assert actual == pytest.approx(expected, rel=1e-9)

    model.float()
    with torch.inference_mode():
        assert error(model(x.detach().float()), case.arrays["out0_f64"]) < 1e-5


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


def test_unused_weights_are_the_only_difference() -> None:
    """8,208 parameters of the authors' MobileNetV2 with attention have no gradient; the renaming leaves them out."""
    case = peers.load_case("wacnn_mobilenetv2_wad_haar")
    unused = [key for key, norm in case.info["grad_norms"].items() if norm is None]
    assert unused == [f"layers.{i}.conv2.weight" for i in (3, 6, 13)]
    model = timm.create_model("wacnn_mobilenetv2")
    own = model.convert_state_dict({key: torch.empty(shape) for key, shape in case.shapes.items()})
    assert own.keys() == model.state_dict().keys() and len(case.shapes) == len(own) + 3
    assert case.info["params"] - COUNTS["wacnn_mobilenetv2"][0] == 8_208


def test_own_checkpoints_are_left_alone() -> None:
    model = timm.create_model("wacnn_resnet18")
    assert model.convert_state_dict(model.state_dict()).keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "case_name", "message"),
    [
        ("wacnn_resnet18", "wacnn_resnet34_wa_haar", r"72 unexpected \(layer1.3.conv1.weight"),
        ("wacnn_mobilenetv2_baseline", "wacnn_mobilenetv2_wad_haar", r"3 unexpected \(layers.3.wa.1.weight"),
        ("wacnn_mobilenetv2", "wacnn_mobilenetv2_none", r"3 unexpected \(layers.3.conv2.weight"),
    ],
)
def test_the_authors_weights_of_another_network_are_refused(name: str, case_name: str, message: str) -> None:
    """Also where every shape fits: a stride in place of the attention would go unnoticed."""
    model, shapes = timm.create_model(name, device="meta"), peers.load_case(case_name).shapes
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})


def test_the_families_differ_in_one_field() -> None:
    for name in BACKBONES:
        assert dataclasses.replace(model_cfgs[name], wavelet=None) == model_cfgs[f"{name}_baseline"]
