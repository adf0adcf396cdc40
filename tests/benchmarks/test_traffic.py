"""What is counted in the compiler's plans is what can be counted by hand, and torch is as before afterwards."""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

import wsfvit  # noqa: F401  (registers the models)
from wsfvit.benchmarks import pretend_gpu as pretend
from wsfvit.benchmarks import traffic, traffic_count
from wsfvit.benchmarks.backward_walk import run_backward
from wsfvit.benchmarks.kernel_code import CARDS
from wsfvit.benchmarks.traffic_count import Kernel, Plan, part_of, plan_inference, plan_training
from wsfvit.engine.compiling import GPU_TRAINING_OPTIONS
from wsfvit.engine.flop_counter import count_complexity
from wsfvit.errors import UserError
from wsfvit.layers import ChannelAttention, MBConv, WaveletStem
from wsfvit.layers.conv import TanhGELU

CARD = CARDS["H200"]
# One stage: the compiler takes seconds for each.
TINY = dict(
    embed_dims=(16,), depths=(1,), inter_heads=(2,), head_dim=8, stem_width=8, head_hidden_size=16, stage_strides=(2,)
)


class Apply(nn.Module):
    """A function as a model."""

    def __init__(self, function: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def half(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def count(model: nn.Module, x: Tensor) -> list[tuple[str, int]]:
    """Kind and bytes of the kernels of an inference in bfloat16."""
    kernels = plan_inference(model.bfloat16(), x, CARD).graphs["inference"]
    return [(kernel.kind, kernel.bytes) for kernel in kernels]


def test_a_linear_layer_and_its_activation() -> None:
    x, w, b, y = 32 * 64, 64 * 128, 128, 32 * 128
    found = count(nn.Sequential(nn.Linear(64, 128), nn.GELU()), half(32, 64))
    assert found == [("product", 2 * (x + w + b + y)), ("generated", 2 * (y + y))]


def test_elementwise_operators_are_one_kernel() -> None:
    found = count(Apply(lambda self, x: (x.sin() * 2 + x.abs()).tanh()), half(32, 64))
    assert found == [("generated", 2 * 2 * 32 * 64)]


def test_a_layer_norm_reads_once() -> None:
    assert count(nn.LayerNorm(256), half(64, 256)) == [("generated", 2 * (64 * 256 + 2 * 256 + 64 * 256))]


@pytest.mark.parametrize("side", [24, 32])  # zeros beyond the border; an image that wraps around
def test_the_stems_transform_writes_half_precision_once(side: int) -> None:
    """Then norm and activation read that and write it in the convolutions' layout."""
    stem, x = WaveletStem(3, 8), half(2, 3, side, side).to(memory_format=torch.channels_last)
    model = Apply(lambda self, x: self.norm(self.dwt(x)).contiguous(memory_format=torch.channels_last))
    model.dwt, model.norm = stem.dwt_l2, stem.norm1
    *transform, rest = (size for _, size in count(model, x))
    assert sum(transform) <= 2 * (3 + 4) * x.numel()  # a kernel per colour, for each of which the image counts
    assert rest == 2 * (2 * 4 * x.numel() + 4 * 12)  # four statistics of 12 channels


def test_moments_of_many_tokens_move_less_than_half(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = ChannelAttention(64, 2), half(2, 56, 56, 64)
    by_moments = sum(size for _, size in count(model, x))
    monkeypatch.setattr(ChannelAttention, "_attend_by_moments", ChannelAttention._attend)
    assert by_moments < sum(size for _, size in count(ChannelAttention(64, 2), x)) / 2


def test_the_gradient_of_batch_norm_and_gelu_takes_five_passes() -> None:
    """Two of its sums read the map and the gradient; the gradient that is passed on is read, read and written."""
    backward = {}
    for name, options in (("own", GPU_TRAINING_OPTIONS), ("torch's", {})):
        norm = BatchNormAct2d(64, act_layer=TanhGELU)
        model = Apply(lambda self, x: self.after(self.norm(self.before(x))), norm=norm)
        model.before, model.after = (nn.Conv2d(64, 64, 1, bias=False) for _ in range(2))
        with torch._inductor.config.patch(options):
            graphs = plan_training(model, torch.empty(16, 64, 32, 32), CARD, torch.bfloat16).graphs
        backward[name] = sum(kernel.bytes for kernel in graphs["backward"] if kernel.kind == "generated")
    size = 2 * 16 * 64 * 32 * 32
    assert 5 <= backward["own"] / size < 5.3 and backward["torch's"] > 3 * backward["own"]


def test_less_is_saved_of_a_smaller_budget() -> None:
    plans = []
    for share in (1.0, 0.5):
        with torch._functorch.config.patch(activation_memory_budget=share):
            plans.append(plan_training(MBConv(16, 16), torch.empty(4, 16, 24, 24), CARD, torch.bfloat16))
    full, half_saved = (plan.saved for plan in plans)
    assert 0 < half_saved <= 0.55 * full
    assert len({sum(kernel.macs for kernel in plan.graphs["forward"]) for plan in plans}) == 1


def test_convolutions_stay_channels_last() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = half(2, 16, 8, 8).to(memory_format=torch.channels_last)
    model = Apply(lambda self, x: self.conv(x).relu().permute(0, 2, 3, 1).reshape(-1, 16), conv=conv)
    values = 2 * 16 * 8 * 8
    # The tokens behind the convolution are a view: nothing is copied.
    assert count(model, x) == [("convolution", 2 * (2 * values + 16 * 16 * 9)), ("generated", 2 * 2 * values)]


@pytest.mark.parametrize("tokens", [16, 49])
def test_attention_is_fused(tokens: int) -> None:
    model = Apply(lambda self, x: F.scaled_dot_product_attention(x, x, x, self.mask))
    model.mask = nn.Parameter(torch.empty(1, 4, tokens, tokens))
    x, mask = half(2, 4, tokens, 8), 4 * tokens**2
    # Rows of 49 are copied to where those of 56 begin; what lies between is not written.
    aligned = [] if tokens % 8 == 0 else [("generated", 2 * (mask + mask))]
    assert count(model, x) == [*aligned, ("attention", 2 * (x.numel() + mask + x.numel()))]


def test_attention_without_a_mask_keeps_sums_for_the_backward() -> None:
    model = Apply(lambda self, x: F.scaled_dot_product_attention(*3 * [self.qkv(x)]), qkv=nn.Linear(8, 8))
    plan = plan_training(model, torch.empty(2, 4, 32, 8), CARD, autocast=torch.bfloat16)
    kinds = [Counter(kernel.kind for kernel in kernels)["attention"] for kernels in plan.graphs.values()]
    assert kinds == [1, 1]
    tokens = 2 * 4 * 32
    # In bfloat16 the input (cast) and what the attention takes, in float32 one logarithm per token, and the state of
    # the random numbers, three of eight bytes. What it gives is the model's own output.
    assert plan.saved == 2 * 2 * tokens * 8 + 4 * tokens + 3 * 8


def test_training_saves_what_the_backward_reads() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 32))
    x, w1, b1, h, w2, b2, y = (4 * each for each in (16 * 64, 64 * 128, 128, 16 * 128, 128 * 32, 32, 16 * 32))
    plan = plan_training(model, torch.empty(16, 64), CARD, autocast=None)
    forward, backward = ([(kernel.kind, kernel.bytes) for kernel in kernels] for kernels in plan.graphs.values())
    assert forward == [("product", x + w1 + b1 + h), ("product", h + w2 + b2 + y)]
    products = [y + w2 + h, y + h + w2, h + x + w1]
    assert sorted(backward) == sorted(
        [("product", each) for each in products] + [("generated", h + b1), ("generated", y + b2)]
    )
    assert plan.saved == h
    assert [sum(kernel.macs for kernel in kernels) for kernels in plan.graphs.values()] == [
        16 * (64 * 128 + 128 * 32),
        16 * (64 * 128 + 2 * 128 * 32),
    ]


def test_macs_of_grouped_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False))
    plan = plan_training(model, torch.empty(2, 8, 8, 8), CARD, autocast=torch.bfloat16)
    pixels = 2 * 8 * 8
    macs = [sum(kernel.macs for kernel in kernels) for kernels in plan.graphs.values()]
    assert macs == [pixels * (8 * 16 + 16 * 9), pixels * (8 * 16 + 2 * 16 * 9)]


def test_parts_add_up_and_macs_agree() -> None:
    model = timm.create_model("wsfvit_p0_224", img_size=64, num_classes=10, **TINY)
    complexity = count_complexity(model, torch.empty(1, 3, 64, 64))
    kernels = plan_inference(model.bfloat16(), half(2, 3, 64, 64), CARD).graphs["inference"]
    summary, parts = traffic.summarise(kernels, CARD), traffic.summarise_parts(kernels, CARD)
    for key in ("kernels", "bytes", "macs"):
        assert sum(part[key] for part in parts.values()) == summary[key]
        assert sum(kind[key] for kind in summary["kinds"].values()) == summary[key]
    stage = {f"stages.0.blocks.*.{name}" for name in ("conv", "attn_local", "attn_inter", "attn_global")}
    assert stage | {"stem", "head"} <= parts.keys() and traffic_count.REST not in parts
    # The rest are norms and transforms.
    assert 0.8 < summary["macs"] / 2 / complexity.macs <= 1


def test_the_code_of_the_plan_launches_what_was_counted() -> None:
    """Lets inductor write its code, too, and looks for the launches in it."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    written: list[tuple[Any, int, int]] = []
    read = traffic_count._read

    def read_and_write(graph: Any, code_for: Any) -> Any:
        found = read(graph, code_for)
        graph.wrapper_code.push_codegened_graph(graph)
        graph.scheduler.codegen()
        code = graph.wrapper_code.generate(graph.is_inference)[0].value
        graph.wrapper_code.pop_codegened_graph()
        generated = len(re.findall(r"^ +triton_\w+\.run\(", code, re.MULTILINE))
        written.append((found, generated, len(re.findall(r"(?:extern_kernels|torch\.ops\.aten)\.[\w.]+\(", code))))
        return found

    conv = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.GELU())
    model = Apply(lambda self, x: self.norm(self.conv(x).flatten(2).mT).softmax(1), conv=conv, norm=nn.LayerNorm(8))
    target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", CARD.capability, 32))
    with mock.patch.object(driver, "_active", target), mock.patch.object(traffic_count, "_read", read_and_write):
        plan_training(model, torch.empty(2, 8, 16, 16), CARD, autocast=torch.bfloat16)
    assert len(written) == 2
    for found, generated, of_libraries in written:
        kinds = Counter(kernel.kind == "generated" for kernel in found.kernels)
        assert (kinds[True], kinds[False]) == (generated, of_libraries) and generated and of_libraries


def test_the_walk_gives_autograds_gradients() -> None:
    model = timm.create_model("wsfvit_dwt_p0_224", img_size=64, num_classes=10, **TINY).double()
    weights = [*model.parameters(), nn.Parameter(torch.zeros(2))]
    loss = model(torch.randn(2, 3, 64, 64, dtype=torch.double)).square().mean()
    want = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    with mock.patch.object(torch.autograd, "_engine_run_backward", run_backward):
        found = torch.autograd.grad(loss, weights, allow_unused=True)
    assert found[-1] is None and all(torch.equal(a, b) for a, b in zip(found[:-1], want[:-1], strict=True))


def test_torch_is_as_before_and_compiles_for_the_cpu() -> None:
    with pretend.pretend_gpu(CARD):
        answers = pretend._answers(CARD)
        inside = [vars(owner)[name] for owner, name, _ in answers]
        assert torch.cuda.get_device_capability() == (9, 0)
    before = [vars(owner)[name] for owner, name, _ in answers]
    with pytest.raises(ValueError, match="stop"), pretend.pretend_gpu(CARDS["A100"]):
        assert torch.cuda.get_device_capability() == (8, 0)
        raise ValueError("stop")
    after = [vars(owner)[name] for owner, name, _ in answers]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert not any(a is b for a, b in zip(before, inside, strict=True))


def test_another_torch_is_refused_in_one_line() -> None:
    missing = [(torch._C, "_no_such_internal", None)]
    with mock.patch.object(pretend, "_answers", lambda card: missing), pytest.raises(UserError, match="_no_such_in"):
        with pretend.pretend_gpu(CARD):
            pass


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("stem.conv1", "stem"),
        ("stages.0.blocks.1.attn_local.mlp.fc1", "stages.0.blocks.*.attn_local"),
        ("layers.3.downsample.norm", "layers.3.downsample.norm"),
        ("stages.2", "stages.2"),
        ("", traffic_count.REST),
    ],
)
def test_part_of(path: str, part: str) -> None:
    assert part_of(path) == part


def test_program_writes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    planned: list[Any] = []

    def plan(model: nn.Module, x: Tensor, *asked: Any) -> Plan:
        budget = torch._functorch.config.activation_memory_budget
        planned.append((x.dtype, x.shape, *asked[1:], budget, torch._inductor.config.realize_opcount_threshold))
        kernels = [Kernel("product", "stem.conv", 3 * 10**9, 7), Kernel("generated", "", 10**9, 0)]
        return Plan({"forward": kernels, "backward": kernels}, 5) if model.training else Plan({"inference": kernels})

    monkeypatch.setattr(traffic, "plan_inference", lambda model, *asked: plan(model.eval(), *asked))
    monkeypatch.setattr(traffic, "plan_training", plan)
    out, names = tmp_path / "run.json", ["wsfvit_p0_224", "baseline:wsfvit_p0_224"]
    argv = ["--model", *names, "--batch-size", "2", "--img-size", "64", "--out", str(out)]
    traffic.main([*argv, "--fuse", "--parts"])
    results = json.loads(out.read_text())["results"]
    assert [result["model"] for result in results] == [*names, "fused:wsfvit_p0_224"]
    assert results[0]["bytes"] == 4 * 10**9 and results[0]["least_seconds"] == pytest.approx(4e9 / 4.8e12)
    assert results[0]["parts"]["stem"]["macs"] == 7 and results[0]["kinds"]["generated"]["bytes"] == 10**9
    assert "Counted, not measured" in (said := capsys.readouterr().out) and "stem" in said
    traffic.main(
        [*argv, "--train", "--machine-code", "--memory-budget", "0.5", "--compile-options", "realize_reads_threshold=4"]
    )
    results = json.loads(out.read_text())["results"]
    wanted = [(name, *each) for name in names for each in (("forward", 5), ("backward", None))]
    assert [(result["model"], result["pass"], result["saved_bytes"]) for result in results] == wanted
    shape = (2, 3, 64, 64)
    inference = (torch.bfloat16, shape, False, 1.0, 30)
    assert planned == [inference] * 3 + [(torch.float32, shape, torch.bfloat16, True, 0.5, 64)] * 2
    assert torch._functorch.config.activation_memory_budget == 1


def test_mistakes_end_in_one_line() -> None:
    with pytest.raises(SystemExit):
        traffic.parse_args(["--train", "--model", "fused:wsfvit_t_224"])
    with pytest.raises(UserError, match="unknown model"):
        traffic.create_model("wsfvit_t_225", 64)
    with pytest.raises(UserError, match="no published computation"):
        traffic.create_model("baseline:resnet10t", 64)
