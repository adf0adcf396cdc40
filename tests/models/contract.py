"""timm's model interface as checks, shared by the tests of all families.

A check takes a `model`, or `create`, which builds a tiny model of the family for SIZE x SIZE images of 3 channels and
NUM_CLASSES classes and passes its keywords to `timm.create_model`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn

SIZE = 64
NUM_CLASSES = 7

Create = Callable[..., nn.Module]


def images(batch: int = 2, in_chans: int = 3, size: tuple[int, int] = (SIZE, SIZE)) -> torch.Tensor:
    return torch.randn(batch, in_chans, *size, generator=torch.Generator().manual_seed(0))


def check_forward(model: nn.Module, size: int = SIZE) -> None:
    with torch.inference_mode():
        out = model.eval()(images(size=(size, size)))
    assert out.shape == (2, model.num_classes)
    assert out.isfinite().all()


def check_backward_reaches_every_parameter(model: nn.Module, size: int = SIZE) -> None:
    model.eval().zero_grad()
    model(images(size=(size, size))).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not silent
    assert all(p.grad.isfinite().all() for p in model.parameters())


def check_features(model: nn.Module, size: tuple[int, int] = (SIZE, SIZE)) -> None:
    """forward = forward_head(forward_features), and intermediates have the widths and sizes of feature_info."""
    x = images(1, size=size)
    with torch.inference_mode():
        last, features = model.eval().forward_intermediates(x)
        torch.testing.assert_close(model.forward_features(x), last)
        torch.testing.assert_close(model.forward_head(last), model(x))
        assert model.forward_head(last, pre_logits=True).shape == (1, model.head_hidden_size)
    for feature, info in zip(features, model.feature_info, strict=True):
        stride = info["reduction"]
        assert feature.shape == (1, info["num_chs"], -(-size[0] // stride), -(-size[1] // stride))
    assert model.num_features == model.feature_info[-1]["num_chs"]


def check_default_cfg(model: nn.Module) -> None:
    cfg = model.default_cfg
    state_dict = model.state_dict()
    assert {"url", "num_classes", "input_size", "mean", "std", "crop_pct", "interpolation"} <= cfg.keys()
    assert f"{cfg['first_conv']}.weight" in state_dict and f"{cfg['classifier']}.weight" in state_dict
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])
    stride = model.feature_info[-1]["reduction"]
    assert cfg["pool_size"] == tuple(-(-side // stride) for side in cfg["input_size"][1:])


def check_features_only(create: Create, default: Sequence[int]) -> None:
    """Extractors return the full model's intermediates; `default` are the default indices."""
    x = images()
    full = create().eval()
    with torch.inference_mode():
        expected = full.forward_intermediates(x, intermediates_only=True)
    last = len(expected) - 1
    for indices in (None, tuple(range(last + 1)), (0, last), (-2, -1)):
        extractor = create(features_only=True, **({} if indices is None else dict(out_indices=indices))).eval()
        extractor.model.load_state_dict(full.state_dict(), strict=False)
        wanted = [expected[i] for i in (default if indices is None else indices)]
        with torch.inference_mode():
            actual = extractor(x)
        for a, b in zip(actual, wanted, strict=True):
            torch.testing.assert_close(a, b)
        assert extractor.feature_info.channels() == [f.shape[1] for f in wanted]
        assert extractor.feature_info.reduction() == [SIZE // f.shape[2] for f in wanted]


def check_intermediates_stop_early(create: Create) -> None:
    model = create().eval()
    called = []
    last = model.get_submodule(model.feature_info[-1]["module"])
    last.register_forward_hook(lambda *_: called.append(1))
    features = model.forward_intermediates(images(1), indices=[0, 1], stop_early=True, intermediates_only=True)
    assert len(features) == 2 and not called
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(images(1), output_fmt="NLC")


def check_classifier_arguments(create: Create) -> None:
    x = images()
    model = create(drop_rate=0.5, global_pool="max").eval()
    assert model.global_pool == "max"
    maximum = model(x)
    assert maximum.shape == (2, NUM_CLASSES)
    model.reset_classifier(NUM_CLASSES, "avg")
    assert model.global_pool == "avg"
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.num_classes == 3 and model.global_pool == "avg"
    model.reset_classifier(0)
    averaged = model(x)
    assert averaged.shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "max")
    assert not torch.allclose(model(x), averaged)
    model.reset_classifier(0, "")
    assert model(x).shape[0] == 2 and model(x).ndim == 4
    assert create(num_classes=0).eval()(x).shape == (2, model.head_hidden_size)


def check_new_classifier_joins_the_model(create: Create) -> None:
    """It has the model's dtype, device and mode, also if the previous head had no parameters."""
    model, x = create(drop_rate=0.5).double().eval(), images(1).double()
    for num_classes in (3, 0, 5):
        model.reset_classifier(num_classes)
        assert not any(module.training for module in model.modules())
        assert model(x).dtype == torch.float64
    meta = create(device="meta")
    for num_classes in (0, 3):
        meta.reset_classifier(num_classes)
    assert all(p.is_meta for p in meta.parameters())


def check_in_chans(create: Create, in_chans: int) -> None:
    assert create(in_chans=in_chans).eval()(images(in_chans=in_chans)).shape == (2, NUM_CLASSES)


def check_any_size(create: Create, size: tuple[int, int]) -> None:
    """Forward, backward and features at a size that no stride divides, also in training mode."""
    model = create()
    model(images(size=size)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    check_features(model, size)


def check_grad_checkpointing(create: Create) -> None:
    model, x = create().double().eval(), images().double()
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def check_parameter_groups(create: Create, groups: int, coarse_groups: int) -> None:
    """Every parameter is in one group; `groups` counts stem, blocks and head, `coarse_groups` stem, stages and head."""
    model = create()
    for coarse, number in ((False, groups), (True, coarse_groups)):
        grouped = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sum(map(len, grouped.values())) == len(list(model.parameters()))
        assert len(grouped) == number
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}
    assert len(param_groups_layer_decay(model, layer_decay=0.9)) >= groups


def check_half_precision_channels_last_and_gradient_to_the_image(create: Create) -> None:
    model = create().eval()
    x = images().requires_grad_()
    expected = model(x)
    expected.sum().backward()
    assert x.grad is not None and x.grad.abs().min(dim=1).values.max() > 0
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
        out.float().sum().backward()
    assert (out.float() - expected).abs().max() < 0.1 * expected.abs().max().clamp(min=1)
    model.bfloat16()
    assert model(x.bfloat16()).dtype == torch.bfloat16


def check_device_and_dtype(create: Create, size: tuple[int, int] = (97, 131)) -> None:
    model = create(device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
    assert model(torch.empty(2, 3, *size, device="meta", dtype=torch.bfloat16)).shape == (2, NUM_CLASSES)


def check_safetensors(create: Create, folder: Path) -> None:
    """Saved and loaded again through timm; a file with another number of classes is one clear error."""
    model, path = create().eval(), folder / "model.safetensors"
    save_file(model.state_dict(), path)
    loaded = create(checkpoint_path=str(path)).eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images()), model(images()), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=f"it has {NUM_CLASSES} classes, the model .* has 3: pass num_classes"):
        create(checkpoint_path=str(path), num_classes=3)


def check_export(create: Create, size: tuple[int, int] = (45, 70)) -> None:
    """torch.export gives the eager outputs, at a size that no stride divides."""
    model, x = create().eval(), images(1, size=size)
    exported = torch.export.export(model, (x,)).module()
    with torch.inference_mode():
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


def create_named(name: str, **fixed: object) -> Create:
    """A `create` for the checks: model `name` with fixed keywords, which the keywords of a call override."""
    return lambda **kwargs: timm.create_model(name, **{"num_classes": NUM_CLASSES, **fixed, **kwargs})
