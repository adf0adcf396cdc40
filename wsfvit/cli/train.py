"""Parser of train.py: timm's flags with timm's meaning, in timm's groups and order."""

import argparse
from collections.abc import Sequence

from wsfvit.cli.common import (
    DEFAULT_MODEL,
    Group,
    add_data_source,
    add_model_input,
    add_switch,
    build_parser,
    positive_int,
)
from wsfvit.cli.precision import add_compile, add_memory_budget
from wsfvit.cli.recipe import add_augmentation, add_batch_norm, add_ema, add_optimizer, add_schedule
from wsfvit.cli.refused import accepted, add_refused
from wsfvit.cli.run import (
    add_batches,
    add_config,
    add_logs,
    add_resume,
    add_running,
    add_training_device,
    parse_with_config,
)
from wsfvit.data.decoders import DECODERS

# Model selection metrics; only for the loss lower is better.
EVAL_METRICS = ("top1", "top5", "loss")


def parse_train_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse train.py's command line, see ``parse_with_config``."""
    return parse_with_config(train_parser(), argv)


def train_parser() -> argparse.ArgumentParser:
    """Parser of train.py."""
    parser = build_parser(
        "Train an image classifier. SIGTERM, SIGUSR1 or Ctrl-C save after the current update and end with exit code "
        "75; --resume auto continues."
    )
    add_config(parser)
    parser.add_argument("data", nargs="?", metavar="DIR", help="data folder (same as --data-dir)")
    _add_train_data(parser.add_argument_group("Dataset parameters"))
    _add_train_model(parser.add_argument_group("Model parameters"))
    add_training_device(parser.add_argument_group("Device parameters"))
    add_optimizer(parser.add_argument_group("Optimizer parameters"))
    add_schedule(parser.add_argument_group("Learning rate schedule parameters"))
    add_augmentation(parser.add_argument_group("Augmentation and regularization parameters"))
    add_batch_norm(parser.add_argument_group("Batch norm parameters"))
    add_ema(parser.add_argument_group("Model exponential moving average parameters"))
    _add_train_misc(parser.add_argument_group("Miscellaneous parameters"))
    add_logs(parser.add_argument_group("Checkpoint and log parameters"))
    add_refused(parser)
    return parser


def _add_train_data(group: Group) -> None:
    add = group.add_argument
    add_data_source(group)
    add(
        "--decoder",
        default="pillow",
        choices=DECODERS,
        help="decoder of the training images; torchvision is faster for JPEG files and rounds some pixels differently",
    )
    add("--train-split", default="train", metavar="NAME", help="training split")
    add("--val-split", default="validation", metavar="NAME", help="validation split")
    add("--train-num-samples", type=positive_int, metavar="N", help="training samples of a streaming dataset")
    add("--val-num-samples", type=positive_int, metavar="N", help="validation samples of a streaming dataset")


def _add_train_model(group: Group) -> None:
    add = group.add_argument
    add("--model", default=DEFAULT_MODEL, metavar="NAME", help="model name")
    add_switch(group, "--pretrained", "start from timm's pretrained weights, downloaded once into its cache")
    add("--pretrained-path", metavar="FILE", help="use this file as the pretrained weights, with a new classifier")
    add(
        "--initial-checkpoint",
        default="",
        metavar="FILE",
        help="weights to start from; the classifier is reinitialised if the number of classes differs",
    )
    add_resume(group)
    add("--gp", metavar="POOL", help="global pooling: avg, max, avgmax, ... (default: the model's)")
    add_model_input(group)
    add_batches(group)
    add_switch(group, "--grad-checkpointing", "recompute activations in the backward pass: less memory, slower")
    add_switch(group, "--channels-last", "use the channels-last memory layout")
    add_switch(group, "--fast-norm", "timm's norm layers in the lower precision of --amp")
    add("--head-init-scale", type=float, metavar="F", help="factor on the new classifier's weights")
    add("--head-init-bias", type=float, metavar="F", help="value of the new classifier's biases")
    add_compile(group)
    add_memory_budget(group)


def _add_train_misc(group: Group) -> None:
    add = group.add_argument
    add_running(group)
    add("--worker-seeding", type=accepted("--worker-seeding", "all"), default="all", metavar="NAME", help="only all")
    add("--eval-metric", default="top1", choices=EVAL_METRICS, help="metric that selects the best checkpoint")
    add("--tta", type=int, default=0, choices=(0, 1, 2), help="2: validate on the mean of image and mirror image")
