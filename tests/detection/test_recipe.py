"""The published recipe: which parameters are decayed, and the learning rate at every update that matters."""

import pytest
import torch
from torch import nn

from wsfvit.detection.args import train_parser
from wsfvit.detection.train import DetectionTask, group_parameters
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError


class Parts(nn.Module):
    """One parameter of each kind that the rule tells apart."""

    def __init__(self):
        super().__init__()
        self.norms = nn.LayerNorm(2)
        self.attn = nn.ParameterDict({"relative_position_bias_table": nn.Parameter(torch.zeros(3, 2))})
        self.conv = nn.Conv2d(1, 1, 1)
        self.bn = nn.BatchNorm2d(1)


def build_task(*argv):
    return DetectionTask(train_parser().parse_args(["data", *argv]), World(torch.device("cpu")))


def test_norms_and_bias_tables_are_not_decayed_and_all_else_is():
    model = Parts()
    model.conv.bias.requires_grad_(False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    free, decayed = group_parameters(model, 0.05)
    assert free["weight_decay"] == 0 and decayed["weight_decay"] == 0.05
    assert {names[p] for p in free["params"]} == {"norms.weight", "norms.bias", "attn.relative_position_bias_table"}
    assert {names[p] for p in decayed["params"]} == {"conv.weight", "bn.weight", "bn.bias"}


def test_the_default_optimizer_is_the_published_one():
    optimizer = build_task().build_optimizer(Parts())
    assert type(optimizer).__name__ == "AdamW"
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 0.05]
    assert all(group["lr"] == 1e-4 and tuple(group["betas"]) == (0.9, 0.999) for group in optimizer.param_groups)
    with pytest.raises(UserError, match="--layer-decay"):
        build_task("--layer-decay", "0.9")


def rates(*argv, updates=100):
    """The learning rate of each update of a training of ``updates`` an epoch."""
    task = build_task(*argv)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=task.args.lr)
    scheduler, epochs = task.build_scheduler(optimizer, updates)
    found = []
    for update in range(epochs * updates):
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(update + 1)
    return found


def test_the_default_schedule_is_the_published_one():
    found = rates()
    assert len(found) == 3600
    # From 0.001 of the rate, linearly, to all of it at update 500.
    assert found[0] == pytest.approx(1e-7) and found[250] == pytest.approx(0.5005e-4) and found[500] == 1e-4
    # A tenth after 27 epochs and a hundredth after 33.
    assert found[2699] == 1e-4 and found[2700] == pytest.approx(1e-5)
    assert found[3299] == pytest.approx(1e-5) and found[3300] == pytest.approx(1e-6) == found[-1]


def test_cosine_and_constant():
    cosine = rates("--sched", "cosine", "--epochs", "10", "--warmup-updates", "0", "--min-lr", "1e-5")
    assert cosine[0] == 1e-4 and cosine[500] == pytest.approx(5.5e-5) and cosine[-1] == pytest.approx(1e-5, rel=1e-3)
    constant = rates("--sched", "constant", "--epochs", "2", "--warmup-updates", "10", "--warmup-factor", "0.5")
    assert constant[0] == pytest.approx(5e-5) and set(constant[10:]) == {1e-4}
