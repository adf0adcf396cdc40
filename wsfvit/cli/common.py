"""What the command lines share: readers of values, and the groups of flags that several commands take."""

import argparse
import math
import re
from typing import Any, NoReturn

from timm.utils import ParseKwargs

DEFAULT_MODEL = "wsfvit_p0_224"

# Both argparse's parser and its groups take arguments; it has no public name for that.
Group = argparse._ActionsContainer


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not '{text}'") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not '{text}'") from None


def positive_int(text: str) -> int:
    """Reads an integer of 1 or more."""
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def natural_int(text: str) -> int:
    """Reads an integer of 0 or more."""
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {value}")
    return value


def natural_float(text: str) -> float:
    """Reads a finite number of 0 or more."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of 0 or more, not {text}")
    return value


def positive_float(text: str) -> float:
    """Reads a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return value


def fraction(text: str) -> float:
    """Reads a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {value}")
    return value


class KeyValues(ParseKwargs):
    """timm's ``key=value`` arguments, which complains about others as argparse does."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        for value in values:
            if "=" not in value:
                raise argparse.ArgumentError(self, f"{value!r} is not written as key=value")
        super().__call__(parser, namespace, values, option_string)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, without the list of all flags."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the flags)\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each flag once: its value, or else what the text says of it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        given_once = isinstance(action, argparse._StoreTrueAction)  # it could only say False
        if action.help is None or given_once or action.default in (None, "", [], {}):
            return action.help
        action.help = re.sub(r" \(default: [^()]*\)$", "", action.help)
        return super()._get_help_string(action)


def build_parser(description: str) -> argparse.ArgumentParser:
    """A parser with timm's habits: no abbreviated flags, defaults in the help."""
    return Parser(description=description, allow_abbrev=False, formatter_class=HelpFormatter)


def add_switch(group: Group, flag: str, text: str) -> None:
    """Adds an on-switch, off by default, with a ``--no-`` form so that the command line can overrule a YAML file."""
    group.add_argument(flag, action=argparse.BooleanOptionalAction, default=False, help=text)


def add_data_source(group: Group) -> None:
    group.add_argument("--data-dir", metavar="DIR", help="data folder; the cache folder of hfds/ datasets")
    group.add_argument(
        "--dataset",
        default="",
        metavar="NAME",
        help="digits or synthetic (built in), or timm's: '' folder, hfds/PATH, ...",
    )
    add_switch(group, "--dataset-download", "let torch/ and tfds/ datasets download")
    group.add_argument("--class-map", default="", metavar="FILE", help="class to index mapping file")
    group.add_argument(
        "--input-img-mode", metavar="MODE", help="PIL mode images are converted to (default: by channel count)"
    )
    group.add_argument("--input-key", metavar="KEY", help="field of the image (hfds/)")
    group.add_argument("--target-key", metavar="KEY", help="field of the label (hfds/)")


def add_model_input(group: Group, data_config: bool = True) -> None:
    group.add_argument("--num-classes", type=positive_int, metavar="N", help="number of classes (default: the model's)")
    group.add_argument("--img-size", type=positive_int, metavar="N", help="image size (default: the model's)")
    group.add_argument("--in-chans", type=positive_int, metavar="N", help="image channels (default: the model's)")
    group.add_argument("--input-size", type=positive_int, nargs=3, metavar=("C", "H", "W"), help="all input dimensions")
    group.add_argument("--model-kwargs", nargs="*", default={}, action=KeyValues, metavar="K=V", help="model arguments")
    if not data_config:
        return
    group.add_argument("--crop-pct", type=float, metavar="F", help="evaluation crop, share of the resized image")
    group.add_argument("--mean", type=float, nargs="+", metavar="F", help="pixel mean, one value or one per channel")
    group.add_argument("--std", type=float, nargs="+", metavar="F", help="pixel standard deviation, likewise")
    group.add_argument(
        "--interpolation", default="", metavar="NAME", help="resize interpolation (default: the model's)"
    )


def add_trust(group: Group) -> None:
    group.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="unpickle checkpoints without restrictions: they can run any code",
    )


def add_trained(group: Group, other: str = "") -> None:
    """A checkpoint that a command of another task than classification uses; ``other``: what else it reads."""
    group.add_argument("--checkpoint", required=True, metavar="FILE", help=f"checkpoint of the train command{other}")
    group.add_argument("--use-ema", action="store_true", help="use the moving average of the weights if there is one")
    add_trust(group)


def add_fuse(group: Group) -> None:
    group.add_argument(
        "--fuse",
        action="store_true",
        help="use the model's copy for inference: BatchNorms folded into convolutions, and on a CPU in float32 GELUs "
        "computed with the layer before; for wsfvit models, others are refused",
    )


def add_device_name(group: Group) -> None:
    group.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where there is one, else cpu)"
    )


def add_device(group: Group) -> None:
    add_device_name(group)
    add_switch(group, "--amp", "mixed precision (autocast)")
    group.add_argument(
        "--amp-dtype", default="float16", choices=("float16", "bfloat16"), help="lower precision of --amp"
    )


def add_workers(group: Group) -> None:
    group.add_argument("-j", "--workers", type=natural_int, default=4, metavar="N", help="data loading processes")
    add_switch(group, "--pin-mem", "page-locked host memory for faster transfers to a GPU")


def add_loader(group: Group) -> None:
    add_workers(group)
    group.add_argument("--no-prefetcher", action="store_true", help="normalise on the CPU, not on the device")
    add_on_bad_image(group)


def add_on_bad_image(group: Group) -> None:
    group.add_argument(
        "--on-bad-image",
        default="raise",
        choices=("raise", "skip"),
        help="an unreadable image ends the run, or is left out, named and counted",
    )
