"""Command line of train.py: timm's flags with timm's meaning, in timm's groups and order."""

import argparse
from collections.abc import Sequence

from wsfvit.engine.args.common import (
    DEFAULT_MODEL,
    Group,
    add_data_source,
    add_device,
    add_loader,
    add_model_input,
    add_switch,
    add_trust,
    build_parser,
    natural_int,
    positive_int,
)
from wsfvit.engine.args.precision import add_compile, add_precision
from wsfvit.engine.args.recipe import add_augmentation, add_batch_norm, add_ema, add_optimizer, add_schedule
from wsfvit.engine.args.refused import accepted, add_refused
from wsfvit.engine.config import apply_config

# What an epoch can be judged by; of these the loss alone is better where it is lower.
EVAL_METRICS = ("top1", "top5", "loss")


def parse_train_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses train.py's command line; a YAML file named by ``-c`` changes defaults, and the command line wins over it.

    Raises:
        UserError: the YAML file is missing, malformed, or holds an unknown key or a value of the wrong kind.
    """
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("-c", "--config")
    config, _ = config_parser.parse_known_args(argv)
    parser = train_parser()
    if config.config:
        apply_config(parser, config.config)
    return parser.parse_args(argv)


def train_parser() -> argparse.ArgumentParser:
    """Parser of train.py."""
    parser = build_parser(
        "Train an image classifier. SIGTERM, SIGUSR1 or Ctrl-C save after the current update and end with exit code "
        "75; --resume auto continues."
    )
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="YAML file of defaults, one key per flag (batch_size: 64)"
    )
    parser.add_argument("data", nargs="?", metavar="DIR", help="data folder (same as --data-dir)")
    _add_train_data(parser.add_argument_group("Dataset parameters"))
    _add_train_model(parser.add_argument_group("Model parameters"))
    _add_train_device(parser.add_argument_group("Device parameters"))
    add_optimizer(parser.add_argument_group("Optimizer parameters"))
    add_schedule(parser.add_argument_group("Learning rate schedule parameters"))
    add_augmentation(parser.add_argument_group("Augmentation and regularization parameters"))
    add_batch_norm(parser.add_argument_group("Batch norm parameters"))
    add_ema(parser.add_argument_group("Model exponential moving average parameters"))
    _add_train_misc(parser.add_argument_group("Miscellaneous parameters"))
    _add_logs(parser.add_argument_group("Checkpoint and log parameters"))
    add_refused(parser)
    return parser


def _add_train_data(group: Group) -> None:
    add_data_source(group)
    group.add_argument("--train-split", default="train", metavar="NAME", help="training split")
    group.add_argument("--val-split", default="validation", metavar="NAME", help="validation split")
    group.add_argument(
        "--train-num-samples", type=positive_int, metavar="N", help="train samples of a streaming dataset"
    )
    group.add_argument(
        "--val-num-samples", type=positive_int, metavar="N", help="validation samples of a streaming dataset"
    )


def _add_train_model(group: Group) -> None:
    group.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="model name")
    add_switch(group, "--pretrained", "start from timm's pretrained weights, downloaded once into its cache")
    group.add_argument(
        "--pretrained-path",
        metavar="FILE",
        help="start from this file as the pretrained weights, with a new classifier",
    )
    group.add_argument(
        "--initial-checkpoint",
        default="",
        metavar="FILE",
        help="weights to start from; the classifier is new where the number of classes differs",
    )
    group.add_argument(
        "--resume",
        default="",
        metavar="FILE",
        help="continue the run that wrote FILE; auto: the run in the folder of --experiment, if there is one",
    )
    group.add_argument(
        "--no-resume-opt", action="store_true", help="resume the weights and the epoch, not the optimizer's state"
    )
    add_trust(group)
    group.add_argument("--gp", metavar="POOL", help="global pooling: avg, max, avgmax, ... (default: the model's)")
    add_model_input(group)
    group.add_argument(
        "-b", "--batch-size", type=positive_int, default=128, metavar="N", help="training batch size of each process"
    )
    group.add_argument(
        "-vb", "--validation-batch-size", type=positive_int, metavar="N", help="default: the training batch size"
    )
    group.add_argument(
        "--grad-accum-steps", type=positive_int, default=1, metavar="N", help="batches per optimizer update"
    )
    group.add_argument(
        "--global-batch-size",
        type=positive_int,
        metavar="N",
        help="images per optimizer update over all processes; sets --grad-accum-steps to what that takes",
    )
    add_switch(group, "--grad-checkpointing", "compute activations again in the backward pass: less memory, slower")
    add_switch(group, "--channels-last", "use the channels-last memory layout")
    add_switch(group, "--fast-norm", "timm's norm layers in the lower precision of --amp")
    group.add_argument("--head-init-scale", type=float, metavar="F", help="factor on the new classifier's weights")
    group.add_argument("--head-init-bias", type=float, metavar="F", help="value of the new classifier's biases")
    add_compile(group)


def _add_train_device(group: Group) -> None:
    add_device(group)
    add_precision(group)
    group.add_argument(
        "--no-ddp-bb", action="store_true", help="do not send rank 0's buffers to all processes at every step"
    )
    add_switch(group, "--synchronize-step", "wait for the device after every update")
    group.add_argument(
        "--device-modules", nargs="+", metavar="MODULE", help="modules to import that bring a device of their own"
    )
    add_switch(
        group,
        "--deterministic",
        "same run, same bits, on a GPU too: slower there, as only deterministic kernels run and none are tried out for "
        "speed, and an operator that has none ends the run; a CPU repeats bit for bit without it",
    )


def _add_train_misc(group: Group) -> None:
    group.add_argument("--seed", type=natural_int, default=42, metavar="N", help="random seed")
    group.add_argument(
        "--worker-seeding", type=accepted("--worker-seeding", "all"), default="all", metavar="NAME", help="all alone"
    )
    add_loader(group)
    group.add_argument(
        "--max-bad-steps",
        type=natural_int,
        default=10,
        metavar="N",
        help="end the run after N updates in a row with a loss or gradient that is not finite; such updates are "
        "skipped, counted, and the first ones dumped for python -m wsfvit replay (0: end at the first)",
    )
    group.add_argument(
        "--eval-metric", default="top1", choices=EVAL_METRICS, help="what the best checkpoint is best at"
    )
    group.add_argument(
        "--tta",
        type=int,
        default=0,
        choices=(0, 1, 2),
        help="2: validate on the mean of each image and its mirror image",
    )
    add_switch(group, "--dry-run", "one update and one validation batch, nothing kept, to see that all of it works")


def _add_logs(group: Group) -> None:
    group.add_argument("--output", default="", metavar="DIR", help="folder of all runs (default: output/train)")
    group.add_argument(
        "--experiment", default="", metavar="NAME", help="folder of this run (default: time, model and size)"
    )
    group.add_argument(
        "--log-interval", type=positive_int, default=50, metavar="N", help="batches between two progress lines"
    )
    group.add_argument(
        "--recovery-interval", type=natural_int, default=0, metavar="N", help="batches between two saves in an epoch"
    )
    group.add_argument("--checkpoint-hist", type=positive_int, default=10, metavar="N", help="best epochs to keep")
    add_switch(group, "--save-images", "write a batch of training images at every progress line, as the model sees it")
    group.add_argument("--no-tensorboard", action="store_true", help="write no TensorBoard events")
    add_switch(group, "--log-wandb", "log to Weights & Biases too")
    group.add_argument("--wandb-project", metavar="NAME", help="its project")
    group.add_argument("--wandb-tags", nargs="+", default=[], metavar="TAG", help="its tags")
    group.add_argument("--wandb-resume-id", default="", metavar="ID", help="its run to continue")
    add_switch(group, "--log-trackio", "log to Trackio too")
    group.add_argument("--trackio-project", default="wsfvit", metavar="NAME", help="its project")
