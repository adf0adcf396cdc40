"""Flags of train.py that make up a recipe: optimizer, schedule, augmentation, batch norm and EMA."""

import argparse

from wsfvit.cli import common
from wsfvit.cli.common import Group, add_switch, fraction, natural_float, natural_int, positive_float, positive_int

# timm's defaults: a value equal to them counts as not given.
SCALE, RATIO = [0.08, 1.0], [3 / 4, 4 / 3]
SCHEDULES = ("cosine", "tanh", "step", "multistep", "constant", "plateau", "poly", "wsd", "rsqrt", "none")


def repeats(text: str) -> int:
    """Parse timm's number of augmentation repeats, an integer that may be written as 3.0."""
    value = float(text)
    if value < 0 or value != int(value):
        raise argparse.ArgumentTypeError(f"must be an integer of 0 or more, not {text}")
    return int(value)


def add_optimizer(group: Group) -> None:
    """Optimizer, weight decay and clipping."""
    add = group.add_argument
    add("--opt", default="sgd", metavar="NAME", help="optimizer, by timm's name")
    add("--opt-eps", type=positive_float, metavar="F", help="optimizer epsilon (default: the optimizer's)")
    add("--opt-betas", type=float, nargs="+", metavar="F", help="optimizer betas (default: the optimizer's)")
    add("--momentum", type=natural_float, default=0.9, metavar="F", help="momentum")
    add("--weight-decay", type=natural_float, default=2e-5, metavar="F", help="weight decay")
    add("--clip-grad", type=positive_float, metavar="F", help="gradient clipping value (default: none)")
    add("--clip-mode", default="norm", choices=("norm", "value", "agc"), help="gradient clipping mode")
    add("--layer-decay", type=positive_float, metavar="F", help="learning rate decay from layer to layer")
    add("--opt-kwargs", nargs="*", default={}, action=common.KeyValues, metavar="K=V", help="optimizer arguments")


def add_schedule(group: Group) -> None:
    """Learning rate and its schedule."""
    add = group.add_argument
    add("--sched", default="cosine", choices=SCHEDULES, help="learning rate schedule")
    add_switch(group, "--sched-on-updates", "step the schedule per update, not per epoch")
    add("--lr", type=positive_float, metavar="F", help="learning rate (default: --lr-base scaled to the global batch)")
    add("--lr-base", type=positive_float, default=0.1, metavar="F", help="learning rate at --lr-base-size")
    add("--lr-base-size", type=positive_int, default=256, metavar="N", help="batch size that --lr-base is for")
    text = "default: sqrt for ada* and lamb, else linear"
    add("--lr-base-scale", default="", choices=("", "linear", "sqrt"), help=text)
    add("--lr-noise", type=fraction, nargs="+", metavar="F", help="noise, on and off at these fractions of the run")
    add("--lr-noise-pct", type=positive_float, default=0.67, metavar="F", help="bound of the noise")
    add("--lr-noise-std", type=positive_float, default=1.0, metavar="F", help="standard deviation of the noise")
    add("--lr-cycle-mul", type=float, default=1.0, metavar="F", help="cycle length multiplier")
    add("--lr-cycle-decay", type=float, default=0.5, metavar="F", help="decay from cycle to cycle")
    add("--lr-cycle-limit", type=positive_int, default=1, metavar="N", help="number of cycles")
    add("--lr-k-decay", type=float, default=1.0, metavar="F", help="k-decay of cosine and poly")
    add("--warmup-lr", type=natural_float, default=1e-5, metavar="F", help="learning rate at the start of the warm-up")
    add("--min-lr", type=natural_float, default=0, metavar="F", help="lowest learning rate")
    add("--epochs", type=positive_int, default=300, metavar="N", help="epochs to train")
    add("--epoch-repeats", type=natural_float, default=0.0, metavar="F", help="passes over streaming data per epoch")
    add("--start-epoch", type=natural_int, metavar="N", help="epoch to start at, counted from 0")
    add("--decay-milestones", type=int, nargs="+", default=[90, 180, 270], metavar="N", help="multistep epochs")
    add("--decay-epochs", type=positive_float, default=90, metavar="N", help="epochs between two decays (step)")
    add("--warmup-epochs", type=natural_int, default=5, metavar="N", help="epochs of warm-up")
    add_switch(group, "--warmup-prefix", "do not count the warm-up as part of --epochs")
    add("--cooldown-epochs", type=natural_int, default=0, metavar="N", help="epochs at --min-lr after the schedule")
    add("--patience-epochs", type=natural_int, default=10, metavar="N", help="patience of plateau")
    add("--decay-rate", "--dr", type=float, default=0.1, metavar="F", help="decay factor (step, multistep, plateau)")


def add_augmentation(group: Group) -> None:
    """Augmentation, mixing, erasing, label smoothing and drop rates."""
    add = group.add_argument
    add("--no-aug", action="store_true", help="train without augmentation")
    add("--train-crop-mode", choices=("rrc", "rkrc", "rkrr"), help="training crop (default: rrc)")
    add("--scale", type=float, nargs="+", default=SCALE, metavar="F", help="range of the random crop's area")
    add("--ratio", type=float, nargs="+", default=RATIO, metavar="F", help="range of the random crop's aspect ratio")
    text = "pad with N black pixels on each side and crop at random instead of the random resized crop, as most "
    text += "recipes for CIFAR do with N = 4 (0: off)"
    add("--crop-padding", type=natural_int, default=0, metavar="N", help=text)
    add("--hflip", type=fraction, default=0.5, metavar="P", help="horizontal flip probability")
    add("--vflip", type=fraction, default=0.0, metavar="P", help="vertical flip probability")
    add("--color-jitter", type=natural_float, default=0.4, metavar="F", help="color jitter factor")
    add("--color-jitter-prob", type=fraction, metavar="P", help="color jitter probability (default: always)")
    add("--grayscale-prob", type=fraction, metavar="P", help="grey image probability (default: never)")
    add("--gaussian-blur-prob", type=fraction, metavar="P", help="blur probability (default: never)")
    add("--aa", metavar="POLICY", help="AutoAugment policy, e.g. rand-m9-mstd0.5-inc1")
    add("--aug-repeats", type=repeats, default=0, metavar="N", help="augmented copies of an image per batch")
    add_switch(group, "--bce-loss", "binary cross-entropy per class")
    add_switch(group, "--bce-sum", "sum the binary cross-entropy over the classes instead of averaging")
    add("--bce-target-thresh", type=fraction, metavar="F", help="soft labels above it count as 1 (default: kept soft)")
    add("--bce-pos-weight", type=positive_float, metavar="F", help="weight of the positive labels")
    add("--reprob", type=fraction, default=0.0, metavar="P", help="random erasing probability")
    add("--remode", default="pixel", choices=("pixel", "rand", "const"), help="random erasing fill")
    add("--recount", type=positive_int, default=1, metavar="N", help="random erasing regions")
    add("--mixup", type=natural_float, default=0.0, metavar="ALPHA", help="mixup alpha, on above 0")
    add("--cutmix", type=natural_float, default=0.0, metavar="ALPHA", help="cutmix alpha, on above 0")
    add("--cutmix-minmax", type=float, nargs="+", metavar="F", help="range of the cutmix box; overrides alpha")
    add("--mixup-prob", type=fraction, default=1.0, metavar="P", help="probability of either per batch")
    add("--mixup-switch-prob", type=fraction, default=0.5, metavar="P", help="probability of cutmix if both are on")
    add("--mixup-mode", default="batch", choices=("batch", "pair", "elem"), help="what shares one mixing coefficient")
    add("--mixup-off-epoch", type=natural_int, default=0, metavar="N", help="epoch from which mixing is off (0: never)")
    add("--smoothing", type=fraction, default=0.1, metavar="F", help="label smoothing")
    add("--train-interpolation", default="random", metavar="NAME", help="training interpolation")
    add("--drop", type=fraction, default=0.0, metavar="P", help="dropout rate")
    add("--drop-path", type=fraction, metavar="P", help="drop path rate (default: the model's)")
    add("--drop-block", type=fraction, metavar="P", help="drop block rate (default: the model's)")


def add_batch_norm(group: Group) -> None:
    """Constants of batch norm, and its statistics with several processes."""
    add = group.add_argument
    add("--bn-momentum", type=fraction, metavar="F", help="momentum of all batch norms")
    add("--bn-eps", type=positive_float, metavar="F", help="epsilon of all batch norms")
    add_switch(group, "--sync-bn", "batch statistics over all processes (CUDA only)")
    text = "running statistics after an epoch: averaged, taken from rank 0, or unchanged"
    add("--dist-bn", default="reduce", choices=("reduce", "broadcast", ""), help=text)


def add_ema(group: Group) -> None:
    """EMA of the weights."""
    add_switch(group, "--model-ema", "maintain an EMA of the weights and evaluate the EMA model")
    add_switch(group, "--model-ema-force-cpu", "keep the EMA in host memory; the raw weights are then evaluated")
    group.add_argument("--model-ema-decay", type=fraction, default=0.9998, metavar="F", help="decay of the EMA")
    add_switch(group, "--model-ema-warmup", "raise the EMA decay from 0 at the start")
