"""Everything that computes, on a device beside the CPU: what is made or left in the wrong place is an error here.

What is CUDA's alone (autocast, and the branches on its name) is seen with torch's fake tensors, which have shapes, data
types and devices, and no numbers.
"""

import pytest
import timm
import torch
from pretend_device import DeviceMismatch, PretendDevice
from tiny_data import write_folder
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import wsfvit  # noqa: F401  registers the models
from wsfvit.cli.train import parse_train_args
from wsfvit.cli.validate import parse_validate_args
from wsfvit.eval.validate import run_validation
from wsfvit.train.classify import run_training
from wsfvit.wavelets import haar_dwt2d, haar_idwt2d

WSFVIT = dict(embed_dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), inter_heads=(2, 2, 4, 4), head_dim=8, stem_width=8)
VIT = dict(embed_dim=24, depth=1, groups=(4, 6), num_blocks=4, num_heads=4)
FAMILIES = [
    ("wsfvit_p0_224", WSFVIT),
    ("wsfvit_dwt_p0_224", WSFVIT),
    ("wavemix_lite_144_7", dict(depth=1)),
    ("wacnn_resnet18", dict(wavelet="db2")),
    ("mwa_vit_xs_patch4_32", VIT | dict(wavelet="db2")),
    ("afno_vit_xs_patch4_32", VIT),
    ("gfn_vit_xs_patch4_32", VIT),
    ("sa_vit_xs_patch4_32", VIT),
]
# No family's own size: windows are padded, filters resampled.
SIZE = 36


def create(name: str, options: dict[str, object]) -> nn.Module:
    model: nn.Module = timm.create_model(name, num_classes=3, **options).train()
    return model.to(memory_format=torch.channels_last)


def test_the_pretended_device_is_strict():
    """What a GPU refuses is refused, and numbers come out as on the CPU."""
    weight = torch.randn(2, 3, 3, 3)
    with PretendDevice():
        there = weight.to("lazy").requires_grad_()
        images = torch.ones(1, 3, 5, 5, device="lazy")
        nn.functional.conv2d(images, there).square().sum().backward()
        assert there.grad.device.type == "lazy"
        with pytest.raises(DeviceMismatch, match="tensors on lazy:0 and on cpu"):
            images * torch.ones(5)
        with pytest.raises(RuntimeError, match="numpy"):
            images.numpy()
    here = weight.requires_grad_()
    nn.functional.conv2d(torch.ones(1, 3, 5, 5), here).square().sum().backward()
    assert torch.equal(there.grad.inner, here.grad)


@pytest.mark.parametrize(("name", "options"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_families_stay_on_their_device(name, options):
    model = create(name, options)
    with PretendDevice():
        model.to("lazy")
        model(torch.randn(2, 3, SIZE, SIZE, device="lazy")).square().mean().backward()
        assert {parameter.grad.device.type for parameter in model.parameters()} == {"lazy"}


@pytest.mark.parametrize(("name", "options"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_families_run_under_cuda_autocast(name, options, monkeypatch):
    # Both ask for a driver, and switch autocast off where there is none.
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *args, **kwargs: True)
    model, fake = create(name, options), FakeTensorMode()
    with fake:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                found = {key: x for key, x in tensors.items() if x is not None}
                tensors.update({key: fake.from_tensor(x).detach().to("cuda") for key, x in found.items()})
        images = torch.empty(2, 3, SIZE, SIZE, device="cuda").to(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            logits = model(images)
    assert (logits.device.type, logits.dtype) == ("cuda", torch.bfloat16)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_eager_haar_transforms_of_cuda_tensors(layout):
    with FakeTensorMode():
        x = torch.empty(2, 3, 5, 6, device="cuda", dtype=torch.bfloat16).to(memory_format=layout)
        y = haar_dwt2d(x)
        back = haar_idwt2d(y, (5, 6))
    assert y.shape == (2, 4, 3, 3, 3) and {y.device, back.device} == {torch.device("cuda", 0)}
    assert back.dtype == torch.bfloat16 and back.is_contiguous(memory_format=layout)


def test_training_resuming_and_validating(tmp_path):
    """With all that a recipe can put on the device: erasing, mixing, clipping, a moving average, gathered gradients."""
    data = [str(write_folder(tmp_path / "data")), "--device", "lazy", "-j", "0"]
    flags = [*data, "--model", "test_resnet", "--num-classes", "4", "--img-size", "32", "-b", "4", "--lr", "1e-3"]
    flags += ["--warmup-epochs", "0", "--opt", "adamw", "--no-tensorboard", "--output", str(tmp_path)]
    flags += ["--experiment", "run", "--model-ema", "--mixup", "0.4", "--reprob", "1", "--remode", "pixel"]
    flags += ["--clip-grad", "1", "--grad-accum-steps", "2", "--log-interval", "1", "--channels-last"]
    with PretendDevice():
        run_training(parse_train_args([*flags, "--epochs", "1"]))
        more = ["--epochs", "2", "--resume", "auto", "--clip-mode", "agc", "--smoothing", "0.1", "--mixup", "0"]
        resumed = run_training(parse_train_args([*flags, *more, "--no-prefetcher", "--tta", "2"]))
        assert [row["epoch"] for row in resumed.rows] == [0, 1]
        checkpoint = str(tmp_path / "run" / "last.pth.tar")
        [row] = run_validation(parse_validate_args([*data, "--checkpoint", checkpoint, "--use-ema", "-b", "3"]))
    assert row["images"] == 16
