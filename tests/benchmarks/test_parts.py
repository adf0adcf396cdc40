"""The split of a pass over its parts: known costs come back, nothing counts twice, and shares are of the limits."""

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks import part_timer, parts
from benchmarks.part_timer import BACKWARD, FORWARD, REST, PartTimer, average_middle
from wsfvit.analysis.flop_counter import count_complexity
from wsfvit.utils.errors import UserError

CPU = torch.device("cpu")
TINY = {"embed_dims": (8, 8, 16, 16), "depths": (1, 2, 1, 1), "inter_heads": (2, 2, 2, 2), "head_dim": 8}


class HandCranked:
    """A clock that goes on only where a `Slow` layer turns it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class TakesTime(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, clock, cost):
        ctx.clock, ctx.cost = clock, cost
        clock.now += cost
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        ctx.clock.now += 10 * ctx.cost
        return 2 * grad, None, None


class Slow(nn.Module):
    """Costs so much forward and ten times as much backward; with a weight, as the first layer of a network has one."""

    def __init__(self, clock: HandCranked, cost: float) -> None:
        super().__init__()
        self.clock, self.cost = clock, cost
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return TakesTime.apply(self.weight * x, self.clock, self.cost)


class Residual(nn.Module):
    """A residual around a part that lies inside, with costs before it and behind it."""

    def __init__(self, clock: HandCranked) -> None:
        super().__init__()
        self.norm, self.mlp, self.scale = Slow(clock, 2), Slow(clock, 40), Slow(clock, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale(self.mlp(self.norm(x)))


class EndsWithPart(nn.Module):
    """What goes in is what the inner part `first` gets, and what the inner part `last` gives is what comes out."""

    def __init__(self, clock: HandCranked) -> None:
        super().__init__()
        self.first, self.own, self.last = Slow(clock, 100), Slow(clock, 5), Slow(clock, 200)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.own(self.first(x)))


def test_known_costs_come_back_forward_and_backward() -> None:
    clock = HandCranked()
    model = nn.Sequential(
        Slow(clock, 1000), nn.Identity(), Residual(clock), Slow(clock, 7), Residual(clock), EndsWithPart(clock)
    )
    labels = {
        **{"0": "stem", "1": "handed through", "2": "block", "2.mlp": "mlp", "4": "block", "4.mlp": "mlp"},
        **{"5": "tail", "5.first": "first", "5.last": "last"},
    }
    loss = Slow(clock, 60)
    timer = PartTimer(model, labels, CPU, clock)
    for _ in range(2):  # nothing stays from the pass before
        before = clock.now
        found = timer.time_pass(lambda: loss(model(torch.ones(3))).sum(), torch.autograd.backward)
        want = {"stem": 1000, "handed through": 0, "block": 2 * (2 + 3), "mlp": 2 * 40}
        want |= {"tail": 5, "first": 100, "last": 200, REST: 7 + 60}
        assert found == {FORWARD: want, BACKWARD: {label: 10 * cost for label, cost in want.items()}}
        assert sum(sum(phase.values()) for phase in found.values()) == clock.now - before
    with torch.inference_mode():
        assert timer.time_pass(lambda: model(torch.ones(3))) == {FORWARD: want | {REST: 7}}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_side_branch_that_shares_its_input() -> None:
    """As the shortcut of an MBConv: its input's gradient is complete only when both branches are done."""
    clock = HandCranked()

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shortcut, self.main = Slow(clock, 1), Slow(clock, 10)

        def forward(self, x: Tensor) -> Tensor:
            shortcut = self.shortcut(x)
            return self.main(x) + shortcut

    model = nn.Sequential(Slow(clock, 100), Branches(), Slow(clock, 1000))
    timer = PartTimer(model, {"0": "stem", "1": "main", "1.shortcut": "shortcut", "2": "head"}, CPU, clock)
    found = timer.time_pass(lambda: model(torch.ones(2)).sum(), torch.autograd.backward)
    costs = {"stem": 100.0, "main": 10.0, "shortcut": 1.0, "head": 1000.0, REST: 0.0}
    assert found == {FORWARD: costs, BACKWARD: {label: 10 * cost for label, cost in costs.items()}}


def test_timing_changes_no_gradient_in_place_activations_included() -> None:
    model = timm.create_model("resnet10t", num_classes=3).eval()
    assert any(getattr(module, "inplace", False) for module in model.modules())
    x = torch.randn(2, 3, 32, 32)
    plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    timer = PartTimer(model, parts.find_parts(model), CPU)
    found = timer.time_pass(lambda: model(x).square().sum(), torch.autograd.backward)
    assert all(torch.equal(p.grad, want) for p, want in zip(model.parameters(), plain, strict=True))
    assert all(found[phase][label] > 0 for phase in found for label in ("conv1.0", "layer1.0", "layer4.0", "fc"))


def test_cuda_is_waited_for_at_the_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = HandCranked(), []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("mark")
            self.at = 1e3 * clock.now

        def elapsed_time(self, end: "Event") -> float:
            assert log[-1] == "wait"
            return end.at - self.at

    monkeypatch.setattr(part_timer.torch.cuda, "Event", Event)
    monkeypatch.setattr(part_timer.torch.cuda, "synchronize", lambda device: log.append("wait"))
    model = nn.Sequential(Slow(clock, 1), Slow(clock, 4))
    timer = PartTimer(model, {"1": "second"}, torch.device("cuda"))
    found = timer.time_pass(lambda: model(torch.ones(2)).sum(), torch.autograd.backward)
    assert found == {FORWARD: {"second": 4, REST: 1}, BACKWARD: {"second": 40, REST: 10}}
    assert log.count("wait") == 1


def test_average_leaves_the_extremes_out_and_adds_up() -> None:
    passes = [{FORWARD: {"a": a, REST: rest}} for a, rest in ((1, 2), (100, 0), (2, 2), (0, 0), (3, 5))]
    assert average_middle(passes) == {FORWARD: {"a": 2, REST: 3}}
    assert average_middle(passes[:1]) == passes[0]


@pytest.mark.parametrize("name", ["wsfvit_p0_224", "wsfvit_dwt_p0_224"])
def test_parts_of_our_models_hold_all_the_arithmetic_once(name: str) -> None:
    model = timm.create_model(name, img_size=64, num_classes=3, **TINY)
    found = parts.find_parts(model)
    labels = set(found.values())
    wanted = {"stem: transform", "stem: convolutions", "MBConv", "downsampling shortcuts", "head"}
    attention = {f"{kind} attention{inner}" for kind in ("local", "inter-subband", "global") for inner in ("", ": MLP")}
    assert wanted | attention <= labels and ("DWT and IDWT" in labels) == ("dwt" in name)
    macs = parts.count_macs(model, found, 64)
    total = count_complexity(copy.deepcopy(model).to("meta"), torch.empty(1, 3, 64, 64, device="meta")).macs
    assert sum(macs.values()) == total and min(macs.values()) >= 0
    assert macs[REST] == macs["stem: transform"] == 0
    blocks = [block for stage in model.stages for block in stage.blocks]
    # Two linear layers on every token; stage i has (16 / 2**i)**2 of them.
    mlps = sum(2 * 4 * dim**2 * (16 // 2**i) ** 2 * TINY["depths"][i] for i, dim in enumerate(TINY["embed_dims"]))
    assert len(blocks) == 5 and macs["local attention: MLP"] == mlps


def test_bytes_of_the_transforms() -> None:
    model = timm.create_model("wsfvit_dwt_p0_224", img_size=96, num_classes=3, **TINY).eval().bfloat16()
    x = torch.randn(2, 3, 96, 96).bfloat16()
    with torch.no_grad():
        moved = parts.count_transform_bytes(model, lambda: model(x))
    # Maps of 24, 12 and 6 pixels have subbands of half the size; the last stage, of 3 pixels, has no transform.
    values = 2 * (24**2 * 8 * 1 + 12**2 * 8 * 2 + 6**2 * 16 * 1)
    assert moved == {"stem: transform": 2 * 5 * x.numel(), "DWT and IDWT": 2 * 4 * values}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_other_models_by_the_names_of_their_children() -> None:
    model = timm.create_model("test_vit")
    found = parts.find_parts(model)
    assert {"patch_embed", "blocks.0", "blocks.5", "head"} <= set(found) and "blocks" not in found
    macs = parts.count_macs(model, found, 160)
    assert macs["blocks.0"] == macs["blocks.5"] > macs[REST] == 0


def test_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(parts, "LIMIT_SIZES", {"cpu": (64, 2**12)})
    out = tmp_path / "run.json"
    argv = ["--model", "wsfvit_dwt_p0_224", "--img-size", "64", "--batch-size", "2", "--train", "--threads", "1"]
    parts.main([*argv, "--amp", "--dtype", "bfloat16", "--warmup", "1", "--repeats", "1", "--out", str(out)])
    run = json.loads(out.read_text())
    assert run["clock"] == "CPU time" and run["environment"]["threads"] == 1
    phases = [("inference", FORWARD), ("training", FORWARD), ("training", BACKWARD)]
    for mode, phase in phases:
        *each, total = [r for r in run["results"] if (r["mode"], r["phase"]) == (mode, phase)]
        assert total["part"] == "total" and each[-1]["part"] == REST
        assert sum(r["seconds"] for r in each) == pytest.approx(total["seconds"])
        by_part = {r["part"]: r for r in each}
        assert by_part["DWT and IDWT"]["share_of_bandwidth"] > 0 and by_part["MBConv"]["share_of_matrix_speed"] > 0
        # The image needs no gradient: the stem's transform is never differentiated.
        assert (by_part["stem: transform"]["seconds"] == 0) == (phase == BACKWARD)
    inference, training = run["whole_passes"]
    with torch.device("meta"):
        flops = 2 * count_complexity(timm.create_model(argv[1], img_size=64), torch.zeros(1, 3, 64, 64)).macs
    assert (inference["flops_per_image"], training["flops_per_image"]) == (flops, 3 * flops)
    speed = run["limits"]["matrix_flops_per_second"]
    assert training["share_of_matrix_speed"] == pytest.approx(3 * flops * training["images_per_second"] / speed)
    assert "training, backward pass" in capsys.readouterr().out


def test_settings_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--amp"], ["--repeats", "0"]):
        with pytest.raises(SystemExit):
            parts.parse_args(wrong)
    assert "--amp needs --dtype" in capsys.readouterr().err
    with pytest.raises(UserError, match="only cuda and cpu are supported"):
        parts.main(["--device", "meta"])
    with pytest.raises(UserError, match="unknown model 'wsfvit_x_224': did you mean"):
        parts.main(["--model", "wsfvit_x_224"])
    with torch.device("meta"):
        fixed = timm.create_model("vit_tiny_patch16_224")
    with pytest.raises(UserError, match="images of 32 pixels"):
        parts.count_macs(fixed, {}, 32)
