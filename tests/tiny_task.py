"""A task in milliseconds: a plane fitted to points."""

import torch

from wsfvit.cli.common import build_parser
from wsfvit.cli.precision import add_compile
from wsfvit.cli.recipe import add_batch_norm, add_ema, add_optimizer, add_schedule
from wsfvit.cli.run import add_batches, add_logs, add_resume, add_running, add_training_device
from wsfvit.train.task import Task

SLOPES = torch.tensor([[2.0], [-3.0]])


class Points:
    """Six batches of four points on a plane; the third one of the second epoch can ask for a stop."""

    bad_images = ()

    def __init__(self, stop=None):
        self.stop, self.epoch, self.first = stop, 0, 0

    def __len__(self):
        return 6

    def set_position(self, epoch, batch=0):
        self.epoch, self.first = epoch, batch

    def batch_indices(self, batch):
        return [4 * batch + place for place in range(4)]

    def __iter__(self):
        for batch in range(self.first, 6):
            if self.stop and (self.epoch, batch) == (1, 3):
                self.stop()
            points = torch.randn(4, 2, generator=torch.Generator().manual_seed(10 * self.epoch + batch))
            yield points, points @ SLOPES


class Regression(Task):
    unit = "points"
    metric, lower_is_better = "mse", True

    def build_model(self, start):
        torch.manual_seed(0)
        return torch.nn.Linear(2, 1)

    def build_loaders(self, model):
        return Points(), Points()

    def prepare(self, batch, device):
        return [part.to(device) for part in batch]

    def count(self, batch):
        return len(batch[0])

    def loss(self, forward, batch):
        error = (forward(batch[0]) - batch[1]).square().mean(0)
        return error.mean(), {"rmse": error.mean().detach().sqrt()}

    def evaluate(self, model, loader, title):
        with torch.no_grad():
            errors = [(model(points) - heights).square().mean().item() for points, heights in loader]
        return {"mse": sum(errors) / len(errors)}

    def name(self):
        return "plane"

    def describe(self):
        return {"task": "regression", "config": {"inputs": 2}}


def parse(tmp_path, *argv):
    parser = build_parser("Fit a plane.")
    recipe = (add_optimizer, add_schedule, add_batch_norm, add_ema)
    for add in (*recipe, add_batches, add_training_device, add_compile, add_resume, add_running, add_logs):
        add(parser)
    parser.set_defaults(channels_last=False)
    fixed = ["--device", "cpu", "--lr", "0.1", "--output", str(tmp_path), "--experiment", "plane", "--epochs", "3"]
    return parser.parse_args([*fixed, "--warmup-epochs", "0", "--log-interval", "2", *argv])
