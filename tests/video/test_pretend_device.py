"""The video model, its metrics and its baselines on a device beside the CPU."""

import torch
from pretend_device import PretendDevice
from video.tiny import TINY_MODEL

from wsfvit.cli.run import parse_with_config
from wsfvit.utils.distributed import World
from wsfvit.video.args import build_config, train_parser
from wsfvit.video.metrics import VideoMetrics, copy_last_frame
from wsfvit.video.model.simvp import SimVP
from wsfvit.video.train import VideoPrediction


def test_a_training_step_and_the_metrics():
    args = parse_with_config(train_parser(), [*TINY_MODEL, "--frames-out", "3"])
    model, task = SimVP(build_config(args)), VideoPrediction(args, World(torch.device("cpu")))
    with PretendDevice():
        world = World(torch.device("lazy"))
        model.to(world.device)
        batch = task.prepare((torch.rand(2, 3, 1, 30, 32), torch.rand(2, 3, 1, 30, 32)), world.device)
        loss, _ = task.loss(model, batch)
        loss.backward()
        assert {parameter.grad.device.type for parameter in model.parameters()} == {"lazy"}
        metrics = VideoMetrics(4, 1, (30, 32), world.device)
        future = torch.cat((batch[1], batch[1][:, :1]), 1)
        with torch.no_grad():
            metrics.update(model.eval().predict(batch[0], 4), future)
        metrics.update(copy_last_frame(batch[0], 4), future)
        figures = metrics.compute(world.sum(metrics.sums()))
    assert figures["sequences"] == 4 and 0 < figures["mse_pixel"] < 10
