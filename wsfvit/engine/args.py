"""Command-line arguments: timm's flags with timm's meaning, in timm's groups."""

import argparse
from collections.abc import Sequence

from timm.utils import ParseKwargs

from wsfvit.engine.config import apply_config

SCHEDULES = ("cosine", "tanh", "step", "multistep", "constant", "plateau", "poly", "wsd", "rsqrt", "none")
DEFAULT_MODEL = "wsfvit_p0_224"


def positive_int(text: str) -> int:
    """Reads an integer of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def fraction(text: str) -> float:
    """Reads a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {value}")
    return value


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


def parse_validate_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses validate.py's command line."""
    return validate_parser().parse_args(argv)


def parse_flops_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses get_flops.py's command line."""
    return flops_parser().parse_args(argv)


def train_parser() -> argparse.ArgumentParser:
    """Parser of train.py."""
    parser = _parser("Train an image classifier.")
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="YAML file of defaults, one key per flag (batch_size: 64)"
    )
    parser.add_argument("data", nargs="?", metavar="DIR", help="data folder (same as --data-dir)")
    _add_train_data(parser.add_argument_group("Dataset parameters"))
    _add_train_model(parser.add_argument_group("Model parameters"))
    _add_device(parser.add_argument_group("Device parameters"))
    _add_optimizer(parser.add_argument_group("Optimizer parameters"))
    _add_schedule(parser.add_argument_group("Learning rate schedule parameters"))
    _add_augmentation(parser.add_argument_group("Augmentation and regularization parameters"))
    _add_ema(parser.add_argument_group("Model exponential moving average parameters"))
    _add_train_misc(parser.add_argument_group("Miscellaneous parameters"))
    return parser


def validate_parser() -> argparse.ArgumentParser:
    """Parser of validate.py."""
    parser = _parser("Measure a checkpoint's accuracy over every image of a split.")
    parser.add_argument("data", nargs="?", metavar="DIR", help="data folder (same as --data-dir)")
    _add_data_source(parser)
    parser.add_argument("--split", default="validation", help="dataset split")
    parser.add_argument("--num-samples", type=positive_int, metavar="N", help="sample count of a streaming dataset")
    parser.add_argument("--model", "-m", metavar="NAME", help="model name (default: what the checkpoint names)")
    _add_model_input(parser)
    parser.add_argument("--crop-mode", choices=("center", "squash", "border"), help="how the evaluation crop is made")
    parser.add_argument("-b", "--batch-size", type=positive_int, default=256, metavar="N", help="batch size")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=".pth.tar, .pth, .pt or .safetensors file")
    _add_trust(parser)
    parser.add_argument(
        "--use-ema", action="store_true", help="use the moving average of the weights where the file has it"
    )
    parser.add_argument("--channels-last", action="store_true", help="use the channels-last memory layout")
    _add_device(parser)
    _add_loader(parser)
    parser.add_argument(
        "--log-freq", type=positive_int, default=10, metavar="N", help="batches between two progress lines"
    )
    parser.add_argument("--results-file", default="", metavar="FILE", help="write the result to FILE.json or FILE.csv")
    return parser


def flops_parser() -> argparse.ArgumentParser:
    """Parser of get_flops.py."""
    parser = _parser("Count a model's parameters, multiply-accumulates and activations.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="model name")
    which.add_argument(
        "--all", action="store_true", help="table of every registered wsfvit model at its own input size"
    )
    _add_model_input(parser, data_config=False)
    parser.add_argument(
        "-b", "--batch-size", type=positive_int, default=1, metavar="N", help="count a batch of N images"
    )
    return parser


# Both argparse's parser and its groups take arguments; it has no public name for that.
_Group = argparse._ActionsContainer


def _parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def _add_switch(group: _Group, flag: str, text: str) -> None:
    """Adds an on-switch, off by default, with a ``--no-`` form so that the command line can overrule a YAML file."""
    group.add_argument(flag, action=argparse.BooleanOptionalAction, default=False, help=text)


def _add_data_source(group: _Group) -> None:
    group.add_argument("--data-dir", metavar="DIR", help="data folder; the cache folder of hfds/ datasets")
    group.add_argument(
        "--dataset", default="", metavar="NAME", help="digits (built in), or timm's: '' folder, hfds/PATH, ..."
    )
    _add_switch(group, "--dataset-download", "let torch/ and tfds/ datasets download")
    group.add_argument("--class-map", default="", metavar="FILE", help="class to index mapping file")
    group.add_argument(
        "--input-img-mode", metavar="MODE", help="PIL mode images are converted to (default: by channel count)"
    )
    group.add_argument("--input-key", metavar="KEY", help="field of the image (hfds/)")
    group.add_argument("--target-key", metavar="KEY", help="field of the label (hfds/)")


def _add_train_data(group: _Group) -> None:
    _add_data_source(group)
    group.add_argument("--train-split", default="train", metavar="NAME", help="training split")
    group.add_argument("--val-split", default="validation", metavar="NAME", help="validation split")
    group.add_argument(
        "--train-num-samples", type=positive_int, metavar="N", help="train samples of a streaming dataset"
    )
    group.add_argument(
        "--val-num-samples", type=positive_int, metavar="N", help="validation samples of a streaming dataset"
    )


def _add_model_input(group: _Group, data_config: bool = True) -> None:
    group.add_argument("--num-classes", type=positive_int, metavar="N", help="number of classes (default: the model's)")
    group.add_argument("--img-size", type=positive_int, metavar="N", help="image size (default: the model's)")
    group.add_argument("--in-chans", type=positive_int, metavar="N", help="image channels (default: the model's)")
    group.add_argument("--input-size", type=positive_int, nargs=3, metavar=("C", "H", "W"), help="all input dimensions")
    group.add_argument(
        "--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V", help="model arguments"
    )
    if not data_config:
        return
    group.add_argument("--crop-pct", type=float, metavar="F", help="evaluation crop, share of the resized image")
    group.add_argument("--mean", type=float, nargs="+", metavar="F", help="pixel mean, one value or one per channel")
    group.add_argument("--std", type=float, nargs="+", metavar="F", help="pixel standard deviation, likewise")
    group.add_argument(
        "--interpolation", default="", metavar="NAME", help="resize interpolation (default: the model's)"
    )


def _add_trust(group: _Group) -> None:
    group.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="unpickle checkpoints without restrictions: they can run any code",
    )


def _add_train_model(group: _Group) -> None:
    group.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="model name")
    group.add_argument("--initial-checkpoint", default="", metavar="FILE", help="weights to start from")
    _add_trust(group)
    _add_model_input(group)
    group.add_argument("-b", "--batch-size", type=positive_int, default=128, metavar="N", help="training batch size")
    group.add_argument(
        "-vb", "--validation-batch-size", type=positive_int, metavar="N", help="default: the training batch size"
    )
    group.add_argument(
        "--grad-accum-steps", type=positive_int, default=1, metavar="N", help="batches per optimizer update"
    )
    _add_switch(group, "--channels-last", "use the channels-last memory layout")


def _add_device(group: _Group) -> None:
    group.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where there is one, else cpu)"
    )
    _add_switch(group, "--amp", "mixed precision (autocast)")
    group.add_argument(
        "--amp-dtype", default="float16", choices=("float16", "bfloat16"), help="lower precision of --amp"
    )


def _add_optimizer(group: _Group) -> None:
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


def _add_schedule(group: _Group) -> None:
    group.add_argument("--sched", default="cosine", choices=SCHEDULES, help="learning rate schedule")
    _add_switch(group, "--sched-on-updates", "step the schedule on updates, not on epochs")
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
    _add_switch(group, "--warmup-prefix", "do not count the warm-up as part of --epochs")
    group.add_argument(
        "--cooldown-epochs", type=int, default=0, metavar="N", help="epochs at --min-lr after the schedule"
    )
    group.add_argument("--patience-epochs", type=int, default=10, metavar="N", help="patience of plateau")
    group.add_argument(
        "--decay-rate", "--dr", type=float, default=0.1, metavar="F", help="decay factor (step, multistep, plateau)"
    )


def _add_augmentation(group: _Group) -> None:
    _add_switch(group, "--no-aug", "train without augmentation")
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


def _add_ema(group: _Group) -> None:
    _add_switch(group, "--model-ema", "keep a moving average of the weights, and judge by it")
    group.add_argument(
        "--model-ema-decay", type=fraction, default=0.9998, metavar="F", help="decay of the moving average"
    )
    _add_switch(group, "--model-ema-warmup", "raise the decay from 0 at the start")


def _add_loader(group: _Group) -> None:
    group.add_argument("-j", "--workers", type=int, default=4, metavar="N", help="data loading processes")
    _add_switch(group, "--pin-mem", "page-locked host memory for faster transfers to a GPU")
    group.add_argument("--no-prefetcher", action="store_true", help="normalise on the CPU, not on the device")


def _add_train_misc(group: _Group) -> None:
    group.add_argument("--seed", type=int, default=42, metavar="N", help="random seed")
    group.add_argument(
        "--log-interval", type=positive_int, default=50, metavar="N", help="batches between two progress lines"
    )
    _add_loader(group)
    group.add_argument("--output", default="", metavar="DIR", help="folder of all runs (default: output/train)")
    group.add_argument(
        "--experiment", default="", metavar="NAME", help="folder of this run (default: time, model and size)"
    )
