"""SimVP is the published system at its defaults, and runs on any frame size, any lengths and any channels beyond it."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from video.published import FIXTURES, fill, published_shapes

from wsfvit.layers import to_nhwc
from wsfvit.video import SimVP, SimVPConfig
from wsfvit.video.checkpoint import convert_published, read_config

TINY = SimVPConfig(
    frames_in=4, frames_out=4, hid_s=8, hid_t=16, head_dim=8, inter_heads=4, window_size=4, mlp_ratio=2.0
)


def create_tiny(**fields: Any) -> SimVP:
    torch.manual_seed(0)
    model = SimVP(dataclasses.replace(TINY, **fields)).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model


def random_frames(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def test_published_parameters_keys_and_maps() -> None:
    model = SimVP().eval()
    assert sum(p.numel() for p in model.parameters()) == 37_571_249
    state = convert_published(fill(published_shapes()))
    assert read_config(state) == model.config
    model.load_state_dict(state, strict=True)
    block = model.translator[0].block
    watched = {"dwt": model.front.dwt, "front": model.front, "enc": model.encoder, "hid": model.translator}
    published_parts = {f"block0_{part}": getattr(block, f"attn_{part}") for part in ("local", "inter", "global")}
    watched |= published_parts
    watched["block0_conv"] = block.conv
    maps = {}
    for name, module in watched.items():

        def keep(module: nn.Module, args: Any, out: Any, name: str = name) -> None:
            out = (out[0] if isinstance(out, tuple) else out).clone()
            # The published attention parts keep channels last.
            maps[name] = to_nhwc(out) if name in published_parts else out

        module.register_forward_hook(keep)
    with torch.inference_mode():
        out = model(torch.randn(2, 10, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    with np.load(FIXTURES / "simvp_parity.npz") as stored:
        want = {key: stored[key] for key in stored.files}
    error = np.abs(out[..., ::2, ::2].numpy() - want["out"]).max()
    assert error < 1e-5 * want["out_stats"][2]
    for name, found in maps.items():
        found = found.flatten().numpy()[:: int(want[f"{name}_step"])][: len(want[name])]
        assert np.abs(found - want[name]).max() < 1e-5 * np.abs(want[name]).max(), name


# A reduction of 4 that divides or not, a square power of two and not, smaller than the window, a single pixel.
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (30, 27), (64, 32), (7, 9), (1, 1)])
@pytest.mark.parametrize("family", ["published", "dwt"])
def test_any_frame_size(family: str, size: tuple[int, int]) -> None:
    model = create_tiny(family=family, channels=2)
    frames = random_frames(2, 4, 2, *size)
    with torch.inference_mode():
        out = model(frames)
        # The parts by hand, on a map that is large enough and zero behind the frame.
        x = model.front(frames.flatten(0, 1))
        x = F.pad(x, (0, -size[1] % 4, 0, -size[0] % 4))
        x, skip = model.encoder(x.contiguous(memory_format=torch.channels_last))
        h, w = x.shape[2:]
        x = model.translator(x.reshape(2, -1, h, w).contiguous(memory_format=torch.channels_last))
        x = model.decoder(x.reshape(8, -1, h, w).contiguous(memory_format=torch.channels_last), skip)
    assert out.shape == frames.shape and out.isfinite().all()
    assert torch.equal(out, x[:, :, : size[0], : size[1]].reshape(frames.shape))


def test_front_end_wraps_only_square_powers_of_two() -> None:
    model = create_tiny()
    for size, wraps in (((32, 32), True), (((30, 30)), False), ((32, 64), False)):
        frame = torch.zeros(1, 1, *size)
        frame[..., 0, :] = 1
        assert bool((model.front.dwt(frame)[..., -1, :] != 0).any()) is wraps


@pytest.mark.parametrize(
    ("frames_out", "order"), [(1, [3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3]), (6, [2, 3, 0, 1, 2, 3])]
)
def test_skips_are_paired_from_the_end(frames_out: int, order: list[int]) -> None:
    model = create_tiny(frames_out=frames_out)
    seen: dict[str, Tensor] = {}
    model.encoder.register_forward_hook(lambda _m, _args, out: seen.update(encoder=out[1]))
    model.decoder.register_forward_pre_hook(lambda _m, args: seen.update(decoder=args[1]))
    with torch.no_grad():
        assert model(random_frames(2, 4, 1, 16, 16)).shape == (2, frames_out, 1, 16, 16)
    want = seen["encoder"].unflatten(0, (2, 4))[:, order]
    assert torch.equal(seen["decoder"].unflatten(0, (2, frames_out)), want)


@pytest.mark.parametrize("frames_out", [3, 4, 6])
def test_longer_horizons_feed_predictions_back(frames_out: int) -> None:
    model = create_tiny(frames_out=frames_out)
    frames = random_frames(1, 4, 1, 16, 16)
    with torch.inference_mode():
        first = model(frames)
        second = model(torch.cat((frames, first), 1)[:, -4:])
        want = torch.cat((first, second), 1)
        for length in (1, frames_out, frames_out + 1, 2 * frames_out):
            assert torch.equal(model.predict(frames, length), want[:, :length])
        with pytest.raises(ValueError, match="at least one frame"):
            model.predict(frames, 0)


def test_families_share_weights_and_differ_in_values() -> None:
    published, dwt = create_tiny(), create_tiny(family="dwt")
    dwt.load_state_dict(published.state_dict(), strict=True)
    frames = random_frames(1, 4, 1, 32, 32)
    with torch.inference_mode():
        assert (published(frames) - dwt(frames)).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["published", "dwt"])
def test_every_parameter_gets_a_gradient(family: str) -> None:
    model = create_tiny(family=family)
    model(random_frames(2, 4, 1, 30, 32)).square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]


@pytest.mark.parametrize(("n_s", "n_t"), [(1, 1), (3, 1), (2, 3)])
def test_other_depths(n_s: int, n_t: int) -> None:
    model = create_tiny(n_s=n_s, n_t=n_t, hid_t=24)
    frames = random_frames(1, 4, 1, 16, 12)
    with torch.inference_mode():
        assert model(frames).shape == frames.shape


def test_drop_path_follows_the_published_rule() -> None:
    for rate in (0.0, 0.1):
        model = SimVP(dataclasses.replace(TINY, drop_path=rate, n_t=3))
        for block, want in zip(model.translator, torch.linspace(0.01, rate, 3).tolist(), strict=True):
            found = sorted({module.drop_prob for module in block.modules() if isinstance(module, DropPath)})
            assert found == ([pytest.approx(want)] if want else [])


def test_compiles_as_one_graph() -> None:
    """With explicit subbands, padding and paired skips: everything that the other settings do, and more."""
    model = create_tiny(family="dwt", frames_out=3, n_t=1)
    frames = random_frames(1, 4, 1, 18, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(frames), model(frames))


def test_channels_last_and_autocast() -> None:
    model = create_tiny()
    frames = random_frames(2, 4, 1, 32, 32)
    with torch.no_grad():
        want = model(frames)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(frames)
        assert half.dtype == torch.bfloat16
        assert (half.float() - want).norm() < 0.05 * want.norm()
        torch.testing.assert_close(model.to(memory_format=torch.channels_last)(frames), want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :3], "takes 4 frames of 1 channels"),
        (lambda x: x[0], r"got \(4, 1, 16, 16\)"),
        (lambda x: x.repeat(1, 1, 3, 1, 1), "of 1 channels"),
        (lambda x: x[..., :0], "shape"),
        (lambda x: x.byte(), "torch.uint8"),
    ],
)
def test_wrong_frames_are_refused(change: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_tiny()(change(random_frames(1, 4, 1, 16, 16)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(frames_in=0), "frames_in must be above 0"),
        (dict(drop_path=1.0), "drop_path"),
        (dict(family="haar"), "published, dwt"),
        (dict(hid_s=7), "even"),
        (dict(head_dim=5), "head_dim 5 must divide"),
        (dict(inter_heads=3), "inter_heads 3 must divide"),
    ],
)
def test_wrong_configurations_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)


def test_configuration_is_made_of_primitives() -> None:
    assert SimVPConfig(**json.loads(json.dumps(dataclasses.asdict(TINY)))) == TINY
