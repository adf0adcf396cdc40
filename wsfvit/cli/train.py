"""Parser of train.py: timm's flags with timm's meaning, in timm's groups and order."""

import argparse
from collections.abc import Sequence

from wsfvit.cli import common, precision, recipe, refused, run
from wsfvit.cli.common import Group
from wsfvit.data.decoders import DECODERS

# Model selection metrics; only for the loss lower is better.
EVAL_METRICS = ("top1", "top5", "loss")


def parse_train_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse train.py's command line, see ``run.parse_with_config``."""
    return run.parse_with_config(train_parser(), argv)


def train_parser() -> argparse.ArgumentParser:
    """Parser of train.py."""
    parser = common.build_parser(
        "Train an image classifier. SIGTERM, SIGUSR1 or Ctrl-C save after the current update and end with exit code "
        "75; --resume auto continues."
    )
    run.add_config(parser)
    parser.add_argument("data", nargs="?", metavar="DIR", help="data folder (same as --data-dir)")
    _add_train_data(parser.add_argument_group("Dataset parameters"))
    _add_train_model(parser.add_argument_group("Model parameters"))
    run.add_training_device(parser.add_argument_group("Device parameters"))
    recipe.add_optimizer(parser.add_argument_group("Optimizer parameters"))
    recipe.add_schedule(parser.add_argument_group("Learning rate schedule parameters"))
    recipe.add_augmentation(parser.add_argument_group("Augmentation and regularization parameters"))
    recipe.add_batch_norm(parser.add_argument_group("Batch norm parameters"))
    recipe.add_ema(parser.add_argument_group("Model exponential moving average parameters"))
    _add_train_misc(parser.add_argument_group("Miscellaneous parameters"))
    run.add_logs(parser.add_argument_group("Checkpoint and log parameters"))
    refused.add_refused(parser)
    return parser


def _add_train_data(group: Group) -> None:
    add = group.add_argument
    common.add_data_source(group)
    text = "decoder of the training images; torchvision is faster for JPEG files and rounds some pixels differently"
    add("--decoder", default="pillow", choices=DECODERS, help=text)
    add("--train-split", default="train", metavar="NAME", help="training split")
    add("--val-split", default="validation", metavar="NAME", help="validation split")
    add("--train-num-samples", type=common.positive_int, metavar="N", help="training samples of a streaming dataset")
    add("--val-num-samples", type=common.positive_int, metavar="N", help="validation samples of a streaming dataset")


def _add_train_model(group: Group) -> None:
    add = group.add_argument
    add("--model", default=common.DEFAULT_MODEL, metavar="NAME", help="model name")
    common.add_switch(group, "--pretrained", "start from published weights: timm's, or see wsfvit weights")
    add("--pretrained-path", metavar="FILE", help="use this file as the pretrained weights, with a new classifier")
    text = "weights to start from; the classifier is reinitialised if the number of classes differs"
    add("--initial-checkpoint", default="", metavar="FILE", help=text)
    run.add_resume(group)
    add("--gp", metavar="POOL", help="global pooling: avg, max, avgmax, ... (default: the model's)")
    common.add_model_input(group)
    run.add_batches(group)
    common.add_switch(group, "--grad-checkpointing", "recompute activations in the backward pass: less memory, slower")
    common.add_switch(group, "--channels-last", "use the channels-last memory layout")
    common.add_switch(group, "--fast-norm", "timm's norm layers in the lower precision of --amp")
    add("--head-init-scale", type=float, metavar="F", help="factor on the new classifier's weights")
    add("--head-init-bias", type=float, metavar="F", help="value of the new classifier's biases")
    precision.add_compile(group)
    precision.add_memory_budget(group)


def _add_train_misc(group: Group) -> None:
    add = group.add_argument
    run.add_running(group)
    refused.add_accepted(group, "--worker-seeding", "all")
    add("--eval-metric", default="top1", choices=EVAL_METRICS, help="metric that selects the best checkpoint")
    add("--tta", type=int, default=0, choices=(0, 1, 2), help="2: validate on the mean of image and mirror image")
