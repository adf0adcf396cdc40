"""Parsers of the video commands, and the model that their arguments describe."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args

from wsfvit.cli import common, precision, recipe, run
from wsfvit.cli.common import Group, build_parser, fraction, natural_float, natural_int, positive_float, positive_int
from wsfvit.utils.errors import UserError
from wsfvit.video.data.loader import MOVING_MNIST
from wsfvit.video.data.moving_mnist import NUM_SEQUENCES, Motion
from wsfvit.video.evaluation import SHOWN_METRICS, UNIT
from wsfvit.video.figures import ANIMATIONS
from wsfvit.video.model.simvp import Family, SimVPConfig

HIGHER_IS_BETTER = ("ssim", "psnr")
RELEASED = ", or weights of the WSF-ViT release for Moving MNIST, recognised by their names"
OWN_DATA = ".npy or .npz file, a video file, a folder of videos, or a folder of images"
# Field of SimVPConfig: type of the option, help.
MODEL_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "frames_in": (positive_int, "input frames"),
    "frames_out": (positive_int, "frames predicted in one pass"),
    "channels": (positive_int, "channels of a frame"),
    "hid_s": (positive_int, "width of encoder and decoder"),
    "hid_t": (positive_int, "width of the translator after its first block"),
    "n_s": (positive_int, "convolutions of the encoder and of the decoder; every second one changes the resolution"),
    "n_t": (positive_int, "WSF blocks of the translator"),
    "mlp_ratio": (positive_float, "hidden over outer width of the inter-subband MLP"),
    "attn_mlp_ratio": (positive_float, "hidden over outer width of the MLPs of local and global attention"),
    "head_dim": (positive_int, "head width of local and global attention"),
    "inter_heads": (positive_int, "heads of the inter-subband attention"),
    "window_size": (positive_int, "side of attention window and grid"),
    "drop_path": (float, "stochastic depth of the translator's last block, rising from 0.01 in its first one"),
}


def train_parser() -> argparse.ArgumentParser:
    """Parser of the train command."""
    parser = build_parser(
        "Train SimVP with a WSF-ViT translator on Moving MNIST or your own sequences. The best epoch is selected on "
        "the validation sequences; the test sequences are evaluated once, at the end. SIGTERM, SIGUSR1 or Ctrl-C save "
        "after the current update and end with exit code 75; --resume auto continues."
    )
    run.add_config(parser)
    data = parser.add_argument_group("Data parameters")
    add_data(data, defaults=True)
    _add_splits(data)
    model = parser.add_argument_group("Model parameters")
    _add_model(model)
    initial = f"weights to start from, of the train command{RELEASED}"
    model.add_argument("--initial-checkpoint", default="", metavar="FILE", help=initial)
    run.add_resume(model)
    run.add_batches(model, UNIT, batch_size=16)
    precision.add_compile(model)
    precision.add_memory_budget(model)
    run.add_training_device(parser.add_argument_group("Device parameters"))
    recipe.add_optimizer(parser.add_argument_group("Optimizer parameters"))
    _add_schedule(parser.add_argument_group("Learning rate schedule parameters"))
    recipe.add_batch_norm(parser.add_argument_group("Batch norm parameters"))
    recipe.add_ema(parser.add_argument_group("Model EMA parameters"))
    misc = parser.add_argument_group("Miscellaneous parameters")
    run.add_running(misc, common.add_workers)
    metric = "validation metric that selects the best checkpoint"
    misc.add_argument("--eval-metric", default="mse", choices=SHOWN_METRICS, help=metric)
    drawn = "sequences to draw after each epoch and at the end"
    misc.add_argument("--pictures", type=natural_int, default=2, metavar="N", help=drawn)
    run.add_logs(parser.add_argument_group("Checkpoint and log parameters"))
    # The published optimizer, and what the trainer reads but this command does not offer.
    parser.set_defaults(opt="adam", weight_decay=0.0, channels_last=False, sched_on_updates=True)
    return parser


def add_data(group: Group, defaults: bool = False) -> None:
    """Arguments that define the sequences; without ``defaults`` they come from the checkpoint."""
    add, motion = group.add_argument, Motion()
    missing = "" if defaults else " (default: as in training)"
    source = f"{MOVING_MNIST}, generated from MNIST's digits, or your own: {OWN_DATA}"
    add("--data", default=MOVING_MNIST, metavar="NAME|PATH", help=source)
    mnist = "folder with MNIST's idx files, .gz or not (default: the built-in digits, a part of MNIST)"
    add("--mnist", metavar="DIR", help=mnist)
    official = "the authors' test sequences, mnist_test_seq.npy (default: the file in --mnist, else generated ones)"
    add("--official-test", metavar="FILE", help=official)
    size = "size of a frame; your own frames are resized to it"
    size += " (default: 64 64; your own frames keep their size)" if defaults else missing
    add("--size", type=positive_int, nargs=2, metavar=("H", "W"), help=size)
    for flag, convert, value, text in (
        ("--digits", positive_int, motion.num_digits, "digits in a sequence"),
        ("--speed", fraction, motion.speed, "distance of a digit per frame, as a share of its free range"),
        ("--frame-step", positive_int, 1, "take every N-th frame of your own data"),
    ):
        add(flag, type=convert, default=value if defaults else None, metavar="N", help=text + missing)
    stride = "frames of your own data between the starts of two sequences (default: no overlap)"
    add("--stride", type=positive_int, metavar="N", help=stride)
    layout = "axes of your own array, e.g. TNHW "
    layout += "(default: recognised and logged, else NTHW for four axes, NTHWC for five)"
    add("--layout", metavar="AXES", help=layout)


def _add_model(group: Group) -> None:
    """Add one option per field of ``SimVPConfig``, with its default."""
    for field in fields(SimVPConfig):
        flag = f"--{field.name.replace('_', '-')}"
        if field.name == "family":
            text = "attention in the pixel domain (published) or on explicit Haar subbands (dwt)"
            group.add_argument(flag, choices=get_args(Family), default=field.default, help=text)
        else:
            convert, text = MODEL_OPTIONS[field.name]
            group.add_argument(flag, type=convert, default=field.default, metavar="N", help=text)


def _add_splits(group: Group) -> None:
    text = f"Moving MNIST sequences per epoch, new in each (default: {NUM_SEQUENCES['train']})"
    group.add_argument("--samples-per-epoch", type=positive_int, metavar="N", help=text)
    for flag, split in (("val", "validation"), ("test", "test")):
        text = f"your own {split} sequences (default: PATH/{split} of --data)"
        group.add_argument(f"--{flag}-data", metavar="PATH", help=text)
        text = f"Moving MNIST {split} sequences, the same in every run (default: {NUM_SEQUENCES[split]})"
        group.add_argument(f"--{flag}-sequences", type=positive_int, metavar="N", help=text)


def _add_schedule(group: Group) -> None:
    add = group.add_argument
    add("--sched", default="onecycle", choices=("onecycle", "constant"), help="learning rate schedule, by update")
    add("--lr", type=positive_float, default=1e-3, metavar="F", help="highest learning rate")
    add("--epochs", type=positive_int, default=200, metavar="N", help="epochs to train")
    add("--start-epoch", type=natural_int, metavar="N", help="epoch to start at, counted from 0")
    add("--pct-start", type=fraction, default=0.3, metavar="F", help="share of updates with a rising rate")
    add("--div-factor", type=positive_float, default=25.0, metavar="F", help="onecycle starts at --lr over this")
    final = "onecycle ends at its initial rate over this"
    add("--final-div-factor", type=positive_float, default=1e4, metavar="F", help=final)
    momentum = "momentum (or first beta) at the highest rate, and at both ends of onecycle"
    low_high = ("LOW", "HIGH")
    add("--momentum-range", type=natural_float, nargs=2, default=[0.85, 0.95], metavar=low_high, help=momentum)


def validate_parser() -> argparse.ArgumentParser:
    """Parser of the validate command."""
    parser = build_parser("Evaluate a checkpoint and the baselines on a split, per predicted frame and on average.")
    data = parser.add_argument_group("Data parameters")
    add_data(data)
    split = "sequences to evaluate; of your own data those in PATH/validation or PATH/test, or all without such folders"
    data.add_argument("--split", default="test", choices=("validation", "test"), help=split)
    data.add_argument("--sequences", type=positive_int, metavar="N", help="the first N Moving MNIST sequences")
    common.add_workers(data)
    _add_trained(parser.add_argument_group("Model parameters"))
    batch = "sequences per batch of each process"
    parser.add_argument("-b", "--batch-size", type=positive_int, default=16, metavar="N", help=batch)
    common.add_device(parser.add_argument_group("Device parameters"))
    results = parser.add_argument_group("Result parameters")
    out = "write metrics, their curves, strips and animations to this folder"
    results.add_argument("--out", default="", metavar="DIR", help=out)
    _add_drawing(results)
    interval = "batches between two progress lines"
    results.add_argument("--log-interval", type=positive_int, default=50, metavar="N", help=interval)
    parser.set_defaults(model_dtype=None)
    return parser


def predict_parser() -> argparse.ArgumentParser:
    """Parser of the predict command."""
    parser = build_parser("Predict the next frames of sequences; write a strip of frames and an animation of each.")
    add_data(parser)
    _add_trained(parser)
    text = "predict what follows the last frames of each of your own clips, without a truth to compare with (always so "
    parser.add_argument("--from-end", action="store_true", help=text + "where a clip has too few frames for a truth)")
    out = "folder of strips and animations"
    parser.add_argument("--out", default="output/predictions", metavar="DIR", help=out)
    _add_drawing(parser)
    save = "also write the predicted frames, float32 (N, T, C, H, W) in 0..1"
    parser.add_argument("--save-npy", action="store_true", help=save)
    common.add_device(parser)
    parser.set_defaults(model_dtype=None)
    return parser


def _add_trained(group: Group) -> None:
    """A trained model and its horizon."""
    common.add_trained(group, RELEASED)
    length = "frames to predict; beyond those of training it is fed its own predictions (default: as in training)"
    group.add_argument("--length", type=positive_int, metavar="N", help=length)


def _add_drawing(group: Group) -> None:
    group.add_argument("--count", type=positive_int, default=4, metavar="N", help="sequences to draw")
    group.add_argument("--movie", default=ANIMATIONS[0], choices=ANIMATIONS, help="format of the animations")


def flops_parser() -> argparse.ArgumentParser:
    """Parser of the flops command."""
    parser = build_parser("Count parameters and multiply-accumulates of the video model, part by part.")
    _add_model(parser.add_argument_group("model"))
    add = parser.add_argument
    add("--size", type=positive_int, nargs=2, default=Motion.size, metavar=("H", "W"), help="size of a frame")
    add("-b", "--batch-size", type=positive_int, default=1, metavar="N", help="count a batch of N sequences")
    text = "write to .csv and .md files instead of the terminal"
    add("--output", nargs="+", default=[], metavar="FILE", help=text)
    return parser


def build_config(args: argparse.Namespace) -> SimVPConfig:
    """Build the configuration, or raise a ``UserError`` where the options do not fit each other."""
    try:
        return SimVPConfig(**{field.name: getattr(args, field.name) for field in fields(SimVPConfig)})
    except ValueError as err:
        raise UserError(f"this model cannot be built: {err}") from err
