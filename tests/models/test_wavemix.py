"""WaveMix: parity with the published code, published counts, timm's contract, any size, errors of configuration."""

import json
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from models import contract
from peers import FIXTURES, check_parity, fill_by_key, load_case
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import wsfvit  # noqa: F401
from wsfvit.analysis.flops import count_complexity
from wsfvit.models import WaveMixSegmentation, WaveMixSuperResolution
from wsfvit.models.wavemix import model_cfgs
from wsfvit.models.wavemix_blocks import SubbandConv2d, WaveBlock, WaveletPyramid, WaveMixCfg

pywt = pytest.importorskip("pywt")

MODELS = timm.list_models("wavemix*")
COUNTS = json.loads((FIXTURES / "wavemix_counts.json").read_text())
# A registered name and other keywords for each row of the published configurations.
ROWS = {
    "64/6 L1 s1 c10 32": ("wavemix_lite_64_6", {}),
    "144/7 L1 s1 c10 32": ("wavemix_lite_144_7", {}),
    "320/8 L1 s1 c10 32": ("wavemix_lite_320_8", {}),
    "256/7 L1 s1 c100 32": ("wavemix_lite_256_7", {}),
    "256/8 L1 s1 c100 32": ("wavemix_lite_256_8", {}),
    "256/10 L1 s1 c100 32": ("wavemix_lite_256_10", {}),
    "256/12 L1 s1 c200 64": ("wavemix_lite_256_12", {}),
    "192/16 L3 p4 c200 128": ("wavemix_192_16_l3", {"num_classes": 200}),
    "192/16 L1 p4 c1000 224": ("wavemix_192_16_l1", {}),
    "192/16 L3 p4 c1000 224": ("wavemix_192_16_l3", {}),
    "192/16 L3 p4 c1000 256": ("wavemix_192_16_l3", {}),
    "256/16 L3 p4 c1000 224": ("wavemix_256_16_l3", {}),
    "256/16 L4 s2 c1000 256": ("wavemix_256_16_l4", {}),
    "256/12 L2 p8 c365 256": ("wavemix_256_12_l2", {}),
    "V1 128/7 c10 32": ("wavemix_v1_128_7", {}),
    "V1 256/7 c1000 64": ("wavemix_v1_256_7", {}),
    "V2 240/12 c1000 224": ("wavemix_v2_240_12", {}),
}
# A registered name and the fields that make it the fixture's small model.
CASES = {
    "wavemix_L1_strided": ("wavemix_lite_144_7", dict(embed_dim=16, depth=3, num_classes=10)),
    "wavemix_L2_patch4": ("wavemix_192_16_l1", dict(embed_dim=32, depth=2, level=2, num_classes=10)),
    "wavemix_L3_patch4": (
        "wavemix_192_16_l3",
        dict(embed_dim=32, depth=2, ff_dim=24, mlp_ratio=3, block_drop_rate=0.0, num_classes=10),
    ),
    "wavemix_L4_strided2": ("wavemix_256_16_l4", dict(embed_dim=16, depth=2, num_classes=10)),
    "wavemix_L2_patch8_rect": ("wavemix_256_12_l2", dict(embed_dim=20, depth=1, num_classes=7)),
    "wavemix_lite_144_7_cifar": ("wavemix_lite_144_7", {}),
    "wavemix_v1_L4parallel": ("wavemix_v1_128_7", dict(embed_dim=16, depth=2)),
    "wavemix_v2_L3_final1024": ("wavemix_v2_240_12", dict(embed_dim=16, depth=2, num_classes=10)),
    "wavemix_v3_pixelshuffle": ("wavemix_v3_144_16", dict(embed_dim=16, depth=2, num_classes=10)),
}
TINY = dict(embed_dim=16, depth=3)
# One of each form of block, stem and head.
TINY_NAMES = [
    "wavemix_lite_144_7",
    "wavemix_192_16_l3",
    "wavemix_256_16_l4",
    "wavemix_v1_128_7",
    "wavemix_v2_240_12",
    "wavemix_v3_144_16",
]


@pytest.fixture(params=TINY_NAMES)
def create(request: pytest.FixtureRequest) -> contract.Create:
    return contract.create_named(request.param, **TINY)


def meta_model(name: str, **kwargs: object) -> nn.Module:
    return timm.create_model(name, device="meta", **kwargs)


@pytest.mark.parametrize("case", CASES)
def test_parity_of_models(case: str) -> None:
    name, kwargs = CASES[case]
    check_parity(timm.create_model(name, **kwargs), load_case(case))


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_parity_of_blocks(level: int) -> None:
    block = WaveBlock(WaveMixCfg(embed_dim=16, depth=1, level=level, ff_dim=24))
    check_parity(block, load_case(f"wavemix_block_L{level}"), forward=block.mix)


def test_parity_of_heads() -> None:
    tiny = dict(embed_dim=16, depth=1, block_drop_rate=0.5)
    check_parity(WaveMixSegmentation(num_classes=5, level=2, **tiny), load_case("wavemix_semseg_L2"))
    check_parity(WaveMixSuperResolution(**tiny), load_case("wavemix_sisr_L1"))


@pytest.mark.parametrize("level", [1, 3])
def test_parity_of_the_pyramid(level: int) -> None:
    case = load_case(f"wavemix_dwt_J{level}")
    levels = WaveletPyramid(level)(case.make_input())
    torch.testing.assert_close(levels[-1][:, 0], case.output(0), rtol=0, atol=1e-12)
    for i, subbands in enumerate(levels, 1):
        torch.testing.assert_close(subbands[:, 1:].transpose(1, 2), case.output(i), rtol=0, atol=1e-12)


def published_transform_macs(cfg: WaveMixCfg, size: int) -> int:
    """The published code's transforms: for level i, i levels from scratch, each of two filters of two taps per axis."""
    pixels = (size // cfg.reduction) ** 2
    per_level = [4 * (cfg.embed_dim // 4) * pixels // 4**i for i in range(cfg.level)]
    return cfg.depth * sum((cfg.level - i) * macs for i, macs in enumerate(per_level))


@pytest.mark.parametrize("row", COUNTS)
def test_published_parameters_and_macs(row: str) -> None:
    """MACs of convolutions and linear layers: exactly the published ones less those of the published transforms."""
    name, kwargs = ROWS[row]
    model = meta_model(name, **kwargs).eval()
    assert sum(p.numel() for p in model.parameters()) == COUNTS[row]["params"]
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(COUNTS[row]["input"], device="meta"))
    transforms = published_transform_macs(model.cfg, COUNTS[row]["input"][-1])
    assert counter.get_total_flops() // 2 + transforms == COUNTS[row]["macs"]


def test_get_flops_knows_every_operator() -> None:
    found = count_complexity(timm.create_model("wavemix_lite_144_7"), torch.zeros(1, 3, 32, 32))
    # fvcore counts the norms and the pooling too.
    assert found.macs == pytest.approx(COUNTS["144/7 L1 s1 c10 32"]["macs"], rel=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_every_registered_model(name: str) -> None:
    model = meta_model(name)
    contract.check_default_cfg(model)
    out = model.eval()(torch.empty(2, *model.default_cfg["input_size"], device="meta"))
    assert out.shape == (2, model.default_cfg["num_classes"])


def test_names() -> None:
    assert set(MODELS) == set(model_cfgs) == set(timm.list_models(module="wavemix"))
    assert set(ROWS) == set(COUNTS)


def test_contract_forward_and_backward(create: contract.Create) -> None:
    model = create()
    contract.check_forward(model)
    contract.check_backward_reaches_every_parameter(model)
    contract.check_features(model)


def test_contract_features_only(create: contract.Create) -> None:
    contract.check_features_only(create, default=(0, 1, 2))
    assert len(create(features_only=True, out_indices=(1,)).model.layers) == 2
    contract.check_intermediates_stop_early(create)


def test_contract_classifier(create: contract.Create) -> None:
    contract.check_classifier_arguments(create)
    contract.check_new_classifier_joins_the_model(create)
    assert create(drop_rate=0.25).pool[1].p == 0.25
    with pytest.raises(ValueError, match="needs a global_pool"):
        create(global_pool="")


@pytest.mark.parametrize("in_chans", [1, 5])
def test_contract_in_chans(create: contract.Create, in_chans: int) -> None:
    contract.check_in_chans(create, in_chans)


@pytest.mark.parametrize("size", [(97, 131), (33, 32), (5, 9)], ids=str)
def test_contract_any_size(create: contract.Create, size: tuple[int, int]) -> None:
    contract.check_any_size(create, size)


def test_contract_training_parts(create: contract.Create) -> None:
    contract.check_grad_checkpointing(create)
    contract.check_parameter_groups(create, groups=5, coarse_groups=5)


def test_contract_dtypes_and_layouts(create: contract.Create) -> None:
    contract.check_half_precision_channels_last_and_gradient_to_the_image(create)
    contract.check_device_and_dtype(create)


def test_contract_files(create: contract.Create, tmp_path: Path) -> None:
    contract.check_safetensors(create, tmp_path)


@pytest.mark.parametrize("name", ["wavemix_192_16_l3", "wavemix_v1_128_7", "wavemix_v3_144_16"])
def test_contract_export(name: str) -> None:
    contract.check_export(contract.create_named(name, **(TINY | dict(depth=1))))


def test_drop_rates() -> None:
    model = timm.create_model("wavemix_192_16_l1", **TINY, drop_path_rate=0.4)
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in model.layers] == pytest.approx([0.0, 0.2, 0.4])
    drops = [m.p for m in model.layers.modules() if isinstance(m, nn.Dropout)]
    assert drops == [0.5, 0.5, 0.5]
    x = contract.images()
    assert not torch.equal(model.train().layers[0](model.conv(x)), model.layers[0](model.conv(x)))


def test_pretrained_weights_take_other_channels_and_classes(tmp_path: Path) -> None:
    source = timm.create_model("wavemix_lite_144_7", **TINY)
    path = tmp_path / "published.pth"
    torch.save(source.state_dict(), path)
    overlay = dict(file=str(path))
    model = timm.create_model(
        "wavemix_lite_144_7", **TINY, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=3
    )
    torch.testing.assert_close(model.conv[0].weight, source.conv[0].weight.sum(1, keepdim=True))
    assert torch.equal(model.layers[2].reduction.weight, source.layers[2].reduction.weight)


def test_subband_convolution_takes_the_published_channel_order() -> None:
    conv = SubbandConv2d(4 * 3 + 2, 5, subband_chs=3)
    subbands, others = torch.randn(2, 4, 3, 6, 7), torch.randn(2, 2, 6, 7)
    published = torch.cat((subbands[:, 0], subbands[:, 1:].transpose(1, 2).flatten(1, 2), others), 1)
    expected = F.conv2d(published, conv.weight, conv.bias)
    torch.testing.assert_close(conv(torch.cat((subbands.flatten(1, 2), others), 1)), expected)


def published_order(x: Tensor) -> tuple[Tensor, Tensor]:
    """One Haar level by PyWavelets: the approximation, and all subbands in the published channel order."""
    cA, details = pywt.dwt2(x.numpy(), "haar", mode="zero")
    low, high = torch.from_numpy(cA), torch.stack([torch.from_numpy(band) for band in details], 2)
    return low, torch.cat((low, high.flatten(1, 2)), 1)


@pytest.mark.parametrize("size", [(13, 10), (7, 5), (1, 3), (16, 16)], ids=str)
def test_block_at_odd_sizes_written_out(size: tuple[int, int]) -> None:
    """Two levels with PyWavelets, plain convolutions and crops."""
    block = WaveBlock(WaveMixCfg(embed_dim=8, depth=1, level=2)).double().eval()
    x = torch.randn(2, 8, *size, dtype=torch.float64)

    def up(layers: nn.Sequential, z: Tensor, size: tuple[int, ...]) -> Tensor:
        first, act, _, second, double, norm = layers
        hidden = F.conv2d(z, first.weight, first.bias)
        return norm(double(second(F.gelu(hidden)))[:, :, : size[0], : size[1]])

    with torch.no_grad():
        cA1, z1 = published_order(block.reduction(x))
        _, z2 = published_order(cA1)
        u2 = up(block.feedforward2, z2, z1.shape[2:])
        expected = x + up(block.feedforward1, torch.cat((z1, u2), 1), size)
        torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wavelet", ["db2", "bior1.3"])
def test_other_wavelets(wavelet: str) -> None:
    create = contract.create_named("wavemix_192_16_l3", **TINY, wavelet=wavelet)
    haar, other = (fill_by_key(model) for model in (contract.create_named("wavemix_192_16_l3", **TINY)(), create()))
    with torch.inference_mode():
        x = contract.images().double()
        assert (other(x) - haar(x)).norm() > 1e-3 * haar(x).norm()
    contract.check_any_size(create, (45, 70))
    one_level = WaveletPyramid(1, wavelet)(contract.images(1).double())[0]
    cA, details = pywt.dwt2(contract.images(1).double().numpy(), wavelet, mode="periodization")
    torch.testing.assert_close(one_level, torch.stack([*map(torch.from_numpy, (cA, *details))], 1))


@pytest.mark.parametrize("build", [WaveMixSegmentation, WaveMixSuperResolution])
@pytest.mark.parametrize("size", [(32, 48), (37, 50)], ids=str)
def test_heads_at_any_size(build: type[nn.Module], size: tuple[int, int]) -> None:
    model = build(embed_dim=16, depth=2, in_chans=2)
    y = model(torch.randn(2, 2, *size))
    expected = (20, *size) if build is WaveMixSegmentation else (2, 2 * size[0], 2 * size[1])
    assert y.shape[1:] == expected
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_default_heads() -> None:
    """The published sizes; 63 million parameters are published for the 256/16 of level 4."""
    with torch.device("meta"):
        segmentation, super_resolution = WaveMixSegmentation(), WaveMixSuperResolution()
    assert round(sum(p.numel() for p in segmentation.parameters()) / 1e6) == 63
    assert [len(m.layers) for m in (segmentation, super_resolution)] == [16, 4]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(stem="pachify"), "stem must be one of strided, patch, not 'pachify'"),
        (dict(block="v1"), "block must be one of pyramid, parallel, pixel_shuffle, not 'v1'"),
        (dict(level=5), "level must be 1, 2, 3 or 4, not 5"),
        (dict(level=0), "level must be 1, 2, 3 or 4, not 0"),
        (dict(embed_dim=18), "embed_dim must be a multiple of 4, one quarter per subband, not 18"),
        (dict(level="3"), "level must be 1, 2, 3 or 4, not '3'"),
        (dict(level=2.0), "level must be an integer of at least 1, not 2.0"),
        (dict(embed_dim=64.0), "embed_dim must be an integer of at least 1, not 64.0"),
        (dict(embed_dim="wide"), "embed_dim must be an integer of at least 1, not 'wide'"),
        (dict(depth=1.5), "depth must be an integer of at least 1, not 1.5"),
        (dict(mlp_ratio=1.5), "mlp_ratio must be an integer of at least 1, not 1.5"),
        (dict(patch_size=0), "patch_size must be an integer of at least 1, not 0"),
        (dict(ff_dim=0), "ff_dim must be an integer of at least 1, not 0"),
        (dict(head_dim=0), "head_dim must be an integer of at least 1, not 0"),
        (dict(global_pool="catavgmax"), "global_pool 'catavgmax' changes the width"),
        (dict(block="parallel"), "the parallel block has 4 levels, not 3"),
        (dict(block="pixel_shuffle"), "the pixel_shuffle block has level 1 and mlp_ratio 4, not 3 and 2"),
        (dict(wavelet="harr"), "harr"),
    ],
    ids=str,
)
def test_bad_configuration_is_one_clear_error(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        timm.create_model("wavemix_192_16_l3", **kwargs)
    assert "\n" not in str(caught.value)


def test_unknown_field_and_wrong_stem_for_a_head() -> None:
    with pytest.raises(TypeError, match="unknown model argument final_dim; known fields: .*embed_dim"):
        timm.create_model("wavemix_192_16_l3", final_dim=192)
    with pytest.raises(ValueError, match="segmentation needs a stem that reduces by 4, not by 1"):
        WaveMixSegmentation(stem_stride=1)
    with pytest.raises(ValueError, match="super-resolution needs a stem that reduces by 1, not by 4"):
        partial(WaveMixSuperResolution, stem="patch")()
