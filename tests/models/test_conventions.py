"""Symbolic tracing, functional transforms and timm's kinds of feature extractors: one small model of every family."""

import copy
from collections.abc import Callable

import pytest
import torch
from models import contract
from timm.layers import get_notrace_modules
from timm.models import create_feature_extractor
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.quantize_fx import prepare_fx
from torch.func import functional_call, grad, stack_module_state, vmap

import wsfvit.models  # noqa: F401

WSFVIT = dict(
    embed_dims=(8, 8, 16, 16),
    depths=(1, 1, 1, 1),
    inter_heads=(1, 1, 2, 2),
    head_dim=8,
    stem_width=8,
    head_hidden_size=16,
    img_size=64,
)
MIXER = dict(embed_dim=24, depth=2, groups=(4, 6), num_blocks=4, num_heads=4)
MODELS = {
    "wsfvit_p0_224": WSFVIT,
    "wsfvit_dwt_p0_224": WSFVIT,
    "wavemix_192_16_l3": dict(embed_dim=16, depth=2, level=2),
    "wavemix_v1_128_7": dict(embed_dim=16, depth=1),
    "wavemix_v3_144_16": dict(embed_dim=16, depth=1),
    "wacnn_resnet18": dict(stem_width=8, widths=(8, 8, 16), depths=(1, 2, 1)),
    "wacnn_vgg16_bn": dict(stem_width=8, widths=(8,) * 5, depths=(1,) * 5, hidden_sizes=(12,)),
    "wacnn_mobilenetv2": dict(stem_width=8, widths=(8,) * 7, depths=(1,) * 7, final_width=16),
    "mwa_vit_xs_patch4_32": MIXER,
    "afno_vit_xs_patch4_32": MIXER,
    "gfn_vit_xs_patch4_32": MIXER,
    "sa_vit_xs_patch4_32": MIXER,
}
# Families whose modules are called in the order of their registration, as timm's "list" needs.
IN_ORDER = [name for name in MODELS if name.startswith(("wsfvit", "wacnn"))]


def create(name: str, **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return contract.create_named(name, **MODELS[name])(**kwargs).eval()


def images(name: str, batch: int = 2) -> Tensor:
    size = 64 if name.startswith("wsfvit") else 32
    return contract.images(batch, size=(size, size))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_fx_graph_equals_the_model(name: str, training: bool) -> None:
    model = create(name, **(dict(block_drop_rate=0.0) if "wavemix" in name else {})).train(training)
    if name == "wacnn_vgg16_bn":
        model.head.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout) else None)
    graph = create_feature_extractor(copy.deepcopy(model), {"head" if hasattr(model, "head") else "pool": "out"})
    graph.train(training)
    for batch in (2, 3):
        x = images(name, batch)
        expected, actual = model(x), graph(x)["out"]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        expected.square().mean().backward()
        actual.square().mean().backward()
    grads = {key: p.grad for key, p in model.named_parameters()}
    traced = {key: p.grad for key, p in graph.named_parameters()}
    assert traced.keys() == grads.keys()
    for key, value in traced.items():
        torch.testing.assert_close(value, grads[key], rtol=1e-3, atol=1e-4)


def test_fx_takes_other_image_sizes() -> None:
    """The graph has no branch that was taken for the traced image."""
    model, x = create("wsfvit_dwt_p0_224"), contract.images(1, size=(75, 97))
    graph = create_feature_extractor(copy.deepcopy(model), ["head"])
    with torch.inference_mode():
        torch.testing.assert_close(graph(x)["head"], model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"), [(n, k) for n in MODELS for k in ("fx", "hook", "list") if k != "list" or n in IN_ORDER]
)
def test_kinds_of_feature_extractors(name: str, kind: str) -> None:
    indices = (0, len(create(name).feature_info) - 1)
    extractor, getter = (create(name, features_only=True, feature_cls=k, out_indices=indices) for k in (kind, "getter"))
    x = images(name)
    with torch.no_grad():
        actual, expected = extractor(x), getter(x)
    assert extractor.feature_info.channels() == getter.feature_info.channels()
    for a, b in zip(actual, expected, strict=True):
        # A block of a vision transformer has the channels last; only "getter" moves them.
        torch.testing.assert_close(a.permute(0, 3, 1, 2) if "vit_xs" in name else a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Please use quant_min")
def test_quantisation_prepares_a_graph() -> None:
    model, x = create("wsfvit_p0_224"), images("wsfvit_p0_224")
    config = PrepareCustomConfig().set_non_traceable_module_classes(get_notrace_modules())
    prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(), (x,), config)
    assert any("activation_post_process" in node.name for node in prepared.graph.nodes)
    with torch.inference_mode():
        torch.testing.assert_close(prepared(x), model(x), rtol=1e-4, atol=1e-5)


def loss_of(model: nn.Module) -> Callable[..., Tensor]:
    return lambda params, buffers, x: functional_call(model, (params, buffers), (x[None],)).square().mean()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_per_sample(name: str) -> None:
    model, x = create(name), images(name, 3)
    params, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    grads = vmap(grad(loss_of(model)), (None, None, 0))({k: p.detach() for k, p in params.items()}, buffers, x)
    for i, image in enumerate(x):
        expected = torch.autograd.grad(loss_of(model)(params, buffers, image), list(params.values()))
        for key, value in zip(params, expected, strict=True):
            torch.testing.assert_close(grads[key][i], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_ensembles(name: str) -> None:
    models, x = [create(name), create(name)], images(name)
    with torch.no_grad():
        for p in models[1].parameters():
            p.mul_(1.1)
        params, buffers = stack_module_state(models)
        out = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(params, buffers)
        torch.testing.assert_close(out, torch.stack([m(x) for m in models]), rtol=1e-4, atol=1e-5)


def test_compiled_training_step() -> None:
    name = "mwa_vit_xs_patch4_32"
    models, x = [create(name).train() for _ in range(2)], images(name)
    compiled = torch.compile(models[1], fullgraph=True, backend="aot_eager")
    for model, run in zip(models, (models[0], compiled), strict=True):
        run(x).square().mean().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    torch._dynamo.reset()  # otherwise a later test of another size compiles for all sizes
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
