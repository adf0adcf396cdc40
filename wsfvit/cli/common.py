"""Parser, value types and the groups of flags that several commands share."""

import argparse
import ast
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from wsfvit.utils.errors import did_you_mean

DEFAULT_MODEL = "wsfvit_p0_224"
# Two spellings of one flag: a command that has either takes both.
SPELLINGS = (
    ("--log-interval", "--log-freq"),
    ("--out", "--output"),
    ("--size", "--img-size"),
    ("--score", "--score-threshold"),
    ("--model", "-m"),
)

# Both argparse's parser and its groups take arguments; it has no public name for that.
Group = argparse._ActionsContainer


def _parse(text: str, kind: Callable[[str], Any], fits: Callable[[Any], bool], rule: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        name = "an integer" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {name}, not '{text[:30]}'") from None
    if kind is int and value >= 1 << 32:  # NumPy's largest seed
        raise argparse.ArgumentTypeError(f"must be below 2**32, not {text[:30]}")
    if not fits(value):
        raise argparse.ArgumentTypeError(f"must {rule}, not {text}")
    return value


def positive_int(text: str) -> int:
    """Parse an integer of 1 or more."""
    return int(_parse(text, int, lambda value: value >= 1, "be 1 or more"))


def natural_int(text: str) -> int:
    """Parse an integer of 0 or more."""
    return int(_parse(text, int, lambda value: value >= 0, "be 0 or more"))


def natural_float(text: str) -> float:
    """Parse a finite number of 0 or more."""
    return float(_parse(text, float, lambda value: 0 <= value < math.inf, "be a number of 0 or more"))


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    return float(_parse(text, float, lambda value: 0 < value < math.inf, "be a number above 0"))


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    return float(_parse(text, float, lambda value: 0 <= value <= 1, "lie between 0 and 1"))


class KeyValues(argparse.Action):
    """``key=value`` arguments as a dictionary; values are Python literals, anything else is text (as timm does)."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        pairs = {}
        for item in values:
            key, equals, value = item.partition("=")
            if not equals:
                raise argparse.ArgumentError(self, f"{item!r} is not written as key=value")
            try:
                pairs[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                pairs[key] = value
        setattr(namespace, self.dest, pairs)


class Parser(argparse.ArgumentParser):
    """A parser with errors of one line, suggestions for misspelled flags, and the aliases of ``SPELLINGS``."""

    def parse_known_args(self, args: Any = None, namespace: Any = None, **options: Any) -> Any:
        self._add_spellings()
        return super().parse_known_args(args, namespace, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            shown = [flag for flag, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS]
            flag = next((text for text in unknown if text.startswith("-")), "").partition("=")[0]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(flag, shown)}")
        return parsed

    def format_help(self) -> str:
        """argparse's help with a usage of one line: the flags follow below it."""
        shapes: dict[object, str] = {None: "{}", "?": "[{}]"}
        places: list[str] = []
        for action in self._actions:
            if action.required or not action.option_strings:
                places += action.option_strings[:1]
                places.append(shapes.get(action.nargs, "{}...").format(action.metavar or action.dest))
        self.usage = " ".join(["%(prog)s", *places, "[flags]"])
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the flags)\n")

    def _add_spellings(self) -> None:
        for one, other in SPELLINGS:
            for flag, alias in ((one, other), (other, one)):
                if flag in self._option_string_actions and alias not in self._option_string_actions:
                    action = self._option_string_actions[alias] = self._option_string_actions[flag]
                    action.option_strings = [*action.option_strings, alias]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show the default of each flag once: its value, or what the help text says about it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        given_once = isinstance(action, argparse._StoreTrueAction)  # it could only say False
        if action.help is None or given_once or action.default in (None, "", [], {}):
            return action.help
        action.help = re.sub(r" \(default: [^()]*\)$", "", action.help)
        return super()._get_help_string(action)


def build_parser(description: str) -> argparse.ArgumentParser:
    """A parser as timm's scripts have it: no abbreviated flags, defaults in the help."""
    return Parser(description=description, allow_abbrev=False, formatter_class=HelpFormatter)


def add_switch(group: Group, flag: str, text: str, default: bool = False) -> None:
    """Add a switch with a ``--no-`` form so that the command line can override a YAML file."""
    group.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)


def add_data_source(group: Group) -> None:
    add = group.add_argument
    add("--data-dir", metavar="DIR", help="data folder; the cache folder of hfds/ datasets")
    text = "digits, synthetic (built in), or timm's: '' folder, hfds/PATH, ..."
    add("--dataset", default="", metavar="NAME", help=text)
    add_switch(group, "--dataset-download", "download torch/ and tfds/ datasets")
    add("--class-map", default="", metavar="FILE", help="class to index mapping file")
    add("--input-img-mode", metavar="MODE", help="PIL mode to convert images to (default: by number of channels)")
    add("--input-key", metavar="KEY", help="field of the image (hfds/)")
    add("--target-key", metavar="KEY", help="field of the label (hfds/)")


def add_model_input(group: Group, data_config: bool = True) -> None:
    add = group.add_argument
    add("--num-classes", type=positive_int, metavar="N", help="number of classes (default: the model's)")
    add("--img-size", type=positive_int, metavar="N", help="image size (default: the model's)")
    add("--in-chans", type=positive_int, metavar="N", help="image channels (default: the model's)")
    add("--input-size", type=positive_int, nargs=3, metavar=("C", "H", "W"), help="all input dimensions")
    add("--model-kwargs", nargs="*", default={}, action=KeyValues, metavar="K=V", help="model arguments")
    if not data_config:
        return
    add("--crop-pct", type=float, metavar="F", help="evaluation crop as a fraction of the resized image")
    add("--mean", type=float, nargs="+", metavar="F", help="pixel mean, one value or one per channel")
    add("--std", type=float, nargs="+", metavar="F", help="pixel standard deviation, one value or one per channel")
    add("--interpolation", default="", metavar="NAME", help="resize interpolation (default: the model's)")


def add_trust(group: Group) -> None:
    text = "unpickle checkpoints without restrictions: they can run any code"
    group.add_argument("--trust-checkpoint", action="store_true", help=text)


def add_use_ema(group: Group) -> None:
    group.add_argument("--use-ema", action="store_true", help="use the EMA weights if the checkpoint has them")


def add_trained(group: Group, other: str = "") -> None:
    """Add the checkpoint of a detection or video command; ``other`` describes what else it reads."""
    group.add_argument("--checkpoint", required=True, metavar="FILE", help=f"checkpoint of the train command{other}")
    add_use_ema(group)
    add_trust(group)


def add_fuse(group: Group, automatic: bool = False) -> None:
    """Add --fuse, and --no-fuse where `wants_fusion` decides without it."""
    text = "optimize for inference (only wsfvit models): fold BatchNorm into convolutions and, on a CPU in float32, "
    text += "fuse GELU with the layer before it"
    default = " (default: on a CPU in float32; figures agree up to rounding)" if automatic else ""
    either = group.add_mutually_exclusive_group()
    either.add_argument("--fuse", action="store_true", help=text + default)
    if automatic:
        either.add_argument("--no-fuse", action="store_true", help="run the model as it is trained")


def add_device_name(group: Group) -> None:
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda if available, else cpu)")


def add_device(group: Group) -> None:
    add_device_name(group)
    add_switch(group, "--amp", "mixed precision (autocast)")
    group.add_argument("--amp-dtype", default="float16", choices=("float16", "bfloat16"), help="autocast dtype")


def add_workers(group: Group) -> None:
    group.add_argument("-j", "--workers", type=natural_int, default=4, metavar="N", help="dataloader workers")
    text = "seconds without a batch of a dataloader worker until the run ends (0: it is only named)"
    group.add_argument("--loader-timeout", type=natural_float, default=0.0, metavar="S", help=text)
    add_switch(group, "--pin-mem", "pin host memory for faster transfers to the GPU")


def add_loader(group: Group) -> None:
    add_workers(group)
    group.add_argument("--no-prefetcher", action="store_true", help="normalise on the CPU, not on the device")
    add_on_bad_image(group)


def add_on_bad_image(group: Group) -> None:
    text = "stop at an unreadable image, or skip it"
    group.add_argument("--on-bad-image", default="raise", choices=("raise", "skip"), help=text)
