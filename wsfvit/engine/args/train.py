"""Command line of train.py: timm's flags with timm's meaning, in timm's groups and order."""

import argparse
from collections.abc import Sequence

from timm.utils import ParseKwargs

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
    fraction,
    positive_int,
)
from wsfvit.engine.config import apply_config

SCHEDULES = ("cosine", "tanh", "step", "multistep", "constant", "plateau", "poly", "wsd", "rsqrt", "none")


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
    parser = build_parser("Train an image classifier.")
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="YAML file of defaults, one key per flag (batch_size: 64)"
    )
    parser.add_argument("data", nargs="?", metavar="DIR", help="data folder (same as --data-dir)")
    _add_train_data(parser.add_argument_group("Dataset parameters"))
    _add_train_model(parser.add_argument_group("Model parameters"))
    add_device(parser.add_argument_group("Device parameters"))
    _add_optimizer(parser.add_argument_group("Optimizer parameters"))
    _add_schedule(parser.add_argument_group("Learning rate schedule parameters"))
    _add_augmentation(parser.add_argument_group("Augmentation and regularization parameters"))
    _add_ema(parser.add_argument_group("Model exponential moving average parameters"))
    _add_train_misc(parser.add_argument_group("Miscellaneous parameters"))
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
    group.add_argument("--initial-checkpoint", default="", metavar="FILE", help="weights to start from")
    add_trust(group)
    add_model_input(group)
    group.add_argument("-b", "--batch-size", type=positive_int, default=128, metavar="N", help="training batch size")
    group.add_argument(
        "-vb", "--validation-batch-size", type=positive_int, metavar="N", help="default: the training batch size"
    )
    group.add_argument(
        "--grad-accum-steps", type=positive_int, default=1, metavar="N", help="batches per optimizer update"
    )
    add_switch(group, "--channels-last", "use the channels-last memory layout")


def _add_optimizer(group: Group) -> None:
    group.add_argument("--opt", default="sgd", metavar="NAME", help="optimizer, by timm's name")
    group.add_argument("--opt-eps", type=float, metavar="F", help="optimizer epsilon (default: the optimizer's)")
    group.add_argument(
        "--opt-betas", type=float, nargs="+", metavar="F", help="optimizer betas (default: the optimizer's)"
    )
    group.add_argument("--momentum", type=float, default=0.9, metavar="F", help="momentum")
    group.add_argument("--weight-decay", type=float, default=2e-5, metavar="F", help="weight decay")
    group.add_argument("--clip-grad", type=float, metavar="F", help="gradient clipping value (default: none)")
    group.add_argument("--clip-mode", default="norm", choices=("norm", "value", "agc"), help="gradient clipping mode")
    group.add_argument("--layer-decay", type=float, metavar="F", help="learning rate decay from layer to layer")
    group.add_argument(
        "--opt-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V", help="optimizer arguments"
    )


def _add_schedule(group: Group) -> None:
    group.add_argument("--sched", default="cosine", choices=SCHEDULES, help="learning rate schedule")
    add_switch(group, "--sched-on-updates", "step the schedule on updates, not on epochs")
    group.add_argument(
        "--lr", type=float, metavar="F", help="learning rate (default: --lr-base scaled to the global batch)"
    )
    group.add_argument("--lr-base", type=float, default=0.1, metavar="F", help="learning rate at --lr-base-size")
    group.add_argument(
        "--lr-base-size", type=positive_int, default=256, metavar="N", help="batch size --lr-base is meant for"
    )
    group.add_argument(
        "--lr-base-scale",
        default="",
        choices=("", "linear", "sqrt"),
        help="scaling (default: sqrt for ada*, lamb, else linear)",
    )
    group.add_argument("--lr-cycle-mul", type=float, default=1.0, metavar="F", help="cycle length multiplier")
    group.add_argument("--lr-cycle-decay", type=float, default=0.5, metavar="F", help="decay from cycle to cycle")
    group.add_argument("--lr-cycle-limit", type=positive_int, default=1, metavar="N", help="number of cycles")
    group.add_argument("--lr-k-decay", type=float, default=1.0, metavar="F", help="k-decay of cosine and poly")
    group.add_argument(
        "--warmup-lr", type=float, default=1e-5, metavar="F", help="learning rate where the warm-up starts"
    )
    group.add_argument("--min-lr", type=float, default=0, metavar="F", help="lowest learning rate")
    group.add_argument("--epochs", type=positive_int, default=300, metavar="N", help="epochs to train")
    group.add_argument(
        "--decay-milestones", type=int, nargs="+", default=[90, 180, 270], metavar="N", help="multistep epochs"
    )
    group.add_argument("--decay-epochs", type=float, default=90, metavar="N", help="epochs between two decays (step)")
    group.add_argument("--warmup-epochs", type=int, default=5, metavar="N", help="epochs of warm-up")
    add_switch(group, "--warmup-prefix", "do not count the warm-up as part of --epochs")
    group.add_argument(
        "--cooldown-epochs", type=int, default=0, metavar="N", help="epochs at --min-lr after the schedule"
    )
    group.add_argument("--patience-epochs", type=int, default=10, metavar="N", help="patience of plateau")
    group.add_argument(
        "--decay-rate", "--dr", type=float, default=0.1, metavar="F", help="decay factor (step, multistep, plateau)"
    )


def _add_augmentation(group: Group) -> None:
    add_switch(group, "--no-aug", "train without augmentation")
    group.add_argument("--train-crop-mode", choices=("rrc", "rkrc", "rkrr"), help="training crop (default: rrc)")
    group.add_argument(
        "--scale", type=float, nargs="+", default=[0.08, 1.0], metavar="F", help="random crop area, from to"
    )
    group.add_argument(
        "--ratio", type=float, nargs="+", default=[3 / 4, 4 / 3], metavar="F", help="random crop aspect, from to"
    )
    group.add_argument("--hflip", type=fraction, default=0.5, metavar="P", help="horizontal flip probability")
    group.add_argument("--vflip", type=fraction, default=0.0, metavar="P", help="vertical flip probability")
    group.add_argument("--color-jitter", type=float, default=0.4, metavar="F", help="color jitter factor")
    group.add_argument("--aa", metavar="POLICY", help="AutoAugment policy, e.g. rand-m9-mstd0.5-inc1")
    group.add_argument("--reprob", type=fraction, default=0.0, metavar="P", help="random erasing probability")
    group.add_argument("--remode", default="pixel", choices=("pixel", "rand", "const"), help="random erasing fill")
    group.add_argument("--recount", type=positive_int, default=1, metavar="N", help="random erasing regions")
    group.add_argument("--mixup", type=float, default=0.0, metavar="ALPHA", help="mixup alpha, on above 0")
    group.add_argument("--cutmix", type=float, default=0.0, metavar="ALPHA", help="cutmix alpha, on above 0")
    group.add_argument(
        "--cutmix-minmax", type=float, nargs="+", metavar="F", help="cutmix box share, from to; overrules alpha"
    )
    group.add_argument("--mixup-prob", type=fraction, default=1.0, metavar="P", help="probability of either per batch")
    group.add_argument(
        "--mixup-switch-prob", type=fraction, default=0.5, metavar="P", help="probability of cutmix where both are on"
    )
    group.add_argument(
        "--mixup-mode", default="batch", choices=("batch", "pair", "elem"), help="what shares one mixing value"
    )
    group.add_argument(
        "--mixup-off-epoch", type=int, default=0, metavar="N", help="epoch from which mixing is off (0: never)"
    )
    group.add_argument("--smoothing", type=fraction, default=0.1, metavar="F", help="label smoothing")
    group.add_argument("--train-interpolation", default="random", metavar="NAME", help="training interpolation")
    group.add_argument("--drop", type=fraction, default=0.0, metavar="P", help="dropout rate")
    group.add_argument("--drop-path", type=fraction, metavar="P", help="drop path rate (default: the model's)")


def _add_ema(group: Group) -> None:
    add_switch(group, "--model-ema", "keep a moving average of the weights, and judge by it")
    group.add_argument(
        "--model-ema-decay", type=fraction, default=0.9998, metavar="F", help="decay of the moving average"
    )
    add_switch(group, "--model-ema-warmup", "raise the decay from 0 at the start")


def _add_train_misc(group: Group) -> None:
    group.add_argument("--seed", type=int, default=42, metavar="N", help="random seed")
    group.add_argument(
        "--log-interval", type=positive_int, default=50, metavar="N", help="batches between two progress lines"
    )
    add_loader(group)
    group.add_argument("--output", default="", metavar="DIR", help="folder of all runs (default: output/train)")
    group.add_argument(
        "--experiment", default="", metavar="NAME", help="folder of this run (default: time, model and size)"
    )
