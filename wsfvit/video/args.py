"""Command lines of ``python -m wsfvit.video``'s train, validate and predict."""

import argparse
from collections.abc import Callable
from typing import Any

from wsfvit.cli.common import (
    Group,
    add_device,
    add_trained,
    add_workers,
    build_parser,
    fraction,
    natural_float,
    natural_int,
    positive_float,
    positive_int,
)
from wsfvit.cli.precision import add_compile, add_memory_budget
from wsfvit.cli.recipe import add_batch_norm, add_ema, add_optimizer
from wsfvit.cli.run import add_batches, add_config, add_logs, add_resume, add_running, add_training_device
from wsfvit.video.data.moving_mnist import NUM_SEQUENCES, Motion
from wsfvit.video.data.splits import MOVING_MNIST
from wsfvit.video.evaluation import SHOWN_METRICS, UNIT
from wsfvit.video.model.options import add_model_options
from wsfvit.video.pictures import ANIMATIONS

PROG = "python -m wsfvit.video"
HIGHER_IS_BETTER = ("ssim", "psnr")
RELEASED = ", or weights of the WSF-ViT release for Moving MNIST, recognised by their names"
OWN_DATA = ".npy or .npz file, a video file, a folder of videos, or a folder of pictures"


def train_parser() -> argparse.ArgumentParser:
    """Parser of the train command."""
    parser = build_parser(
        "Train SimVP with a WSF-ViT translator on Moving MNIST or your own sequences. The best epoch is chosen on the "
        "validation sequences; the test sequences are looked at once, in the end. SIGTERM, SIGUSR1 or Ctrl-C save "
        "after the current update and end with exit code 75; --resume auto continues."
    )
    parser.prog = f"{PROG} train"
    add_config(parser)
    data = parser.add_argument_group("Data parameters")
    add_data(data, defaults=True)
    _add_splits(data)
    model = parser.add_argument_group("Model parameters")
    add_model_options(model)
    model.add_argument(
        "--initial-checkpoint",
        default="",
        metavar="FILE",
        help=f"weights to start from, of the train command{RELEASED}",
    )
    add_resume(model)
    add_batches(model, UNIT, batch_size=16)
    add_compile(model)
    add_memory_budget(model)
    add_training_device(parser.add_argument_group("Device parameters"))
    add_optimizer(parser.add_argument_group("Optimizer parameters"))
    _add_schedule(parser.add_argument_group("Learning rate schedule parameters"))
    add_batch_norm(parser.add_argument_group("Batch norm parameters"))
    add_ema(parser.add_argument_group("Model exponential moving average parameters"))
    misc = parser.add_argument_group("Miscellaneous parameters")
    add_running(misc, add_workers)
    misc.add_argument(
        "--eval-metric",
        default="mse",
        choices=SHOWN_METRICS,
        help="validation figure that the best checkpoint is best at",
    )
    misc.add_argument(
        "--pictures", type=natural_int, default=2, metavar="N", help="sequences to draw after each epoch and in the end"
    )
    add_logs(parser.add_argument_group("Checkpoint and log parameters"))
    # The published optimizer; and what the engine reads that is no choice here.
    parser.set_defaults(opt="adam", weight_decay=0.0, channels_last=False, sched_on_updates=True)
    return parser


def add_data(group: Group, defaults: bool = False) -> None:
    """What sequences are made of; without ``defaults``, what was trained with, from the checkpoint."""
    motion = Motion()
    missing = "" if defaults else " (default: as in training)"
    group.add_argument(
        "--data",
        default=MOVING_MNIST,
        metavar="NAME|PATH",
        help=f"{MOVING_MNIST}, drawn from MNIST's digits, or your own: {OWN_DATA}",
    )
    group.add_argument(
        "--mnist",
        metavar="DIR",
        help="folder with MNIST's idx files, .gz or not (default: the built-in digits, a part of MNIST)",
    )
    group.add_argument(
        "--official-test",
        metavar="FILE",
        help="the authors' test sequences, mnist_test_seq.npy (default: the one in --mnist, else generated ones)",
    )
    group.add_argument(
        "--size",
        type=positive_int,
        nargs=2,
        metavar=("H", "W"),
        help="size of a frame; your own frames are resized to it"
        + (" (default: 64 64, and your own frames as they are)" if defaults else missing),
    )
    described: dict[str, tuple[Callable[[str], Any], Any, str]] = {
        "--digits": (positive_int, motion.num_digits, "digits in a sequence"),
        "--speed": (fraction, motion.speed, "way of a digit per frame, as a share of its free range"),
        "--frame-step": (positive_int, 1, "take every N-th frame of your own data"),
    }
    for flag, (convert, value, text) in described.items():
        group.add_argument(flag, type=convert, default=value if defaults else None, metavar="N", help=text + missing)
    group.add_argument(
        "--stride",
        type=positive_int,
        metavar="N",
        help="frames of your own data between the starts of two sequences (default: no overlap)",
    )
    group.add_argument(
        "--layout",
        metavar="AXES",
        help="axes of an array of your own, e.g. TNHW (default: NTHW for four axes, NTHWC for five)",
    )


def _add_splits(group: Group) -> None:
    group.add_argument(
        "--samples-per-epoch",
        type=positive_int,
        metavar="N",
        help=f"Moving MNIST sequences of an epoch, new in each (default: {NUM_SEQUENCES['train']})",
    )
    for flag, split in (("val", "validation"), ("test", "test")):
        group.add_argument(
            f"--{flag}-data", metavar="PATH", help=f"{split} sequences of your own (default: PATH/{split} of --data)"
        )
        group.add_argument(
            f"--{flag}-sequences",
            type=positive_int,
            metavar="N",
            help=f"Moving MNIST {split} sequences, the same in every run (default: {NUM_SEQUENCES[split]})",
        )


def _add_schedule(group: Group) -> None:
    group.add_argument(
        "--sched", default="onecycle", choices=("onecycle", "constant"), help="learning rate schedule, by update"
    )
    group.add_argument("--lr", type=positive_float, default=1e-3, metavar="F", help="highest learning rate")
    group.add_argument("--epochs", type=positive_int, default=200, metavar="N", help="epochs to train")
    group.add_argument("--start-epoch", type=natural_int, metavar="N", help="epoch to start at, counted from 0")
    group.add_argument("--pct-start", type=fraction, default=0.3, metavar="F", help="share of the updates of its rise")
    group.add_argument(
        "--div-factor", type=positive_float, default=25.0, metavar="F", help="onecycle starts at --lr over this"
    )
    group.add_argument(
        "--final-div-factor", type=positive_float, default=1e4, metavar="F", help="it ends at its start over this"
    )
    group.add_argument(
        "--momentum-range",
        type=natural_float,
        nargs=2,
        default=[0.85, 0.95],
        metavar=("LOW", "HIGH"),
        help="first beta, or momentum, of the optimizer at the highest rate and at both ends of onecycle",
    )


def validate_parser() -> argparse.ArgumentParser:
    """Parser of the validate command."""
    parser = build_parser(
        "Measure a checkpoint over every sequence of a split, beside the baselines, frame by frame and in all."
    )
    parser.prog = f"{PROG} validate"
    data = parser.add_argument_group("Data parameters")
    add_data(data)
    data.add_argument(
        "--split",
        default="test",
        choices=("validation", "test"),
        help="which sequences; of your own data those in PATH/validation or PATH/test, or all where there is no such "
        "folder",
    )
    data.add_argument("--sequences", type=positive_int, metavar="N", help="the first N Moving MNIST sequences")
    add_workers(data)
    _add_trained(parser.add_argument_group("Model parameters"))
    parser.add_argument(
        "-b", "--batch-size", type=positive_int, default=16, metavar="N", help="sequences of a batch of each process"
    )
    add_device(parser.add_argument_group("Device parameters"))
    results = parser.add_argument_group("Result parameters")
    results.add_argument(
        "--out", default="", metavar="DIR", help="write figures, curves over the frames and pictures to this folder"
    )
    _add_drawing(results)
    results.add_argument(
        "--log-interval", type=positive_int, default=50, metavar="N", help="batches between two progress lines"
    )
    parser.set_defaults(model_dtype=None)
    return parser


def predict_parser() -> argparse.ArgumentParser:
    """Parser of the predict command."""
    parser = build_parser("Predict how sequences go on; write a strip of frames and an animation of each.")
    parser.prog = f"{PROG} predict"
    add_data(parser)
    _add_trained(parser)
    parser.add_argument(
        "--from-end",
        action="store_true",
        help="predict what follows the last frames of each of your own clips, with no truth to compare with; always so "
        "where a clip has too few frames for one",
    )
    parser.add_argument("--out", default="output/predictions", metavar="DIR", help="folder of the pictures")
    _add_drawing(parser)
    parser.add_argument(
        "--save-npy", action="store_true", help="write the predicted frames too, float32 (N, T, C, H, W) in 0..1"
    )
    add_device(parser)
    parser.set_defaults(model_dtype=None)
    return parser


def _add_trained(group: Group) -> None:
    """A trained model, and how far it looks."""
    add_trained(group, RELEASED)
    group.add_argument(
        "--length",
        type=positive_int,
        metavar="N",
        help="frames to predict; more than in training go through its own predictions (default: as in training)",
    )


def _add_drawing(group: Group) -> None:
    group.add_argument("--count", type=positive_int, default=4, metavar="N", help="sequences to draw")
    group.add_argument("--movie", default=ANIMATIONS[0], choices=ANIMATIONS, help="format of the animations")
