"""Flags of every training command: classification, detection and video.

The trainer reads them and those of ``recipe.add_optimizer``, ``recipe.add_schedule`` (or the command's own --lr,
--epochs, --start-epoch and --sched-on-updates), ``recipe.add_batch_norm``, ``recipe.add_ema``,
``precision.add_compile`` and --channels-last.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from wsfvit.cli.common import Group, add_device, add_loader, add_switch, add_trust, natural_int, positive_int
from wsfvit.cli.config import apply_config, read_config
from wsfvit.cli.precision import add_precision


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add -c/--config, which ``parse_with_config`` reads."""
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file of defaults, such as batch_size: 64")


def parse_with_config(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    read_arguments: Callable[[str, set[str]], dict[str, Any]] | None = None,
) -> argparse.Namespace:
    """Parse a command line over the YAML file that ``-c`` names, over the arguments of the run that is resumed.

    Args:
        parser: Of the command.
        argv: Command line (default: the process's).
        read_arguments: Maps the value of ``--resume`` (not ``auto``) and the names of the arguments that are given
            again to those of the earlier run; None leaves them out.

    Raises:
        UserError: The YAML file is missing, malformed, or holds an unknown key or a value of the wrong kind.
    """
    if any(action.dest == "config" for action in parser._actions):
        early_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        early_parser.add_argument("-c", "--config")
        early_parser.add_argument("--resume")
        early, _ = early_parser.parse_known_args(argv)
        config = read_config(early.config) if early.config else {}
        apply_config(parser, config, f"config '{early.config}'")
        resume = parser.get_default("resume") if early.resume is None else early.resume
        if read_arguments is not None and resume not in (None, "", "auto"):
            saved = read_arguments(resume, _given(parser, argv) | config.keys())
            known = {action.dest for action in parser._actions if action.default is not argparse.SUPPRESS}
            apply_config(parser, {key: saved[key] for key in saved.keys() & known}, f"the arguments of '{resume}'")
            apply_config(parser, config, f"config '{early.config}'")
    return parser.parse_args(argv)


def _given(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """Names of the arguments that a command line holds."""
    absent: list[Any] = []  # of this type because --import appends to a copy
    names = {action.dest for action in parser._actions}
    found = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, absent))))
    # A positional argument that is left out is set to its default.
    left_out = {action.dest for action in parser._actions if not action.option_strings}
    return {name for name in names if found[name] is not absent and not (name in left_out and found[name] is None)}


def add_resume(group: Group) -> None:
    """Resuming an earlier run."""
    text = "resume a checkpoint file in a new run folder, or a run folder in place, with the arguments of that run "
    text += "(flags given again win); auto: the run in the folder of --experiment, if there is one, with the arguments "
    text += "given here"
    group.add_argument("--resume", default="", metavar="RUN", help=text)
    group.add_argument("--no-resume-opt", action="store_true", help="do not resume the optimizer state")
    add_trust(group)


def add_batches(group: Group, unit: str = "images", batch_size: int = 128) -> None:
    """Batch size and gradient accumulation; ``unit`` names what a batch holds, in the plural."""
    add = group.add_argument
    text = "training batch size per process"
    add("-b", "--batch-size", type=positive_int, default=batch_size, metavar="N", help=text)
    add("-vb", "--validation-batch-size", type=positive_int, metavar="N", help="default: the training batch size")
    add("--grad-accum-steps", type=positive_int, default=1, metavar="N", help="batches per optimizer update")
    text = f"{unit} per optimizer update over all processes; sets --grad-accum-steps accordingly"
    add("--global-batch-size", type=positive_int, metavar="N", help=text)


def add_training_device(group: Group) -> None:
    """Device, precision and distributed training."""
    add_device(group)
    add_precision(group)
    group.add_argument("--no-ddp-bb", action="store_true", help="do not broadcast rank 0's buffers at every step")
    add_switch(group, "--synchronize-step", "synchronize with the device after every update")
    group.add_argument("--device-modules", nargs="+", metavar="MODULE", help="modules that register a device type")
    text = "bit-exact repeatability on a GPU: only deterministic kernels, no autotuning, an error where there is no "
    add_switch(group, "--deterministic", text + "such kernel; slower (a CPU is bit-exact without it)")


def add_running(group: Group, add_data_loading: Callable[[Group], None] = add_loader) -> None:
    """Seed, data loading (the flags that ``add_data_loading`` adds), validation and non-finite steps."""
    add = group.add_argument
    add("--seed", type=natural_int, default=42, metavar="N", help="random seed")
    add_data_loading(group)
    text = "epochs between validations, beside the last"
    add("--eval-interval", type=positive_int, default=1, metavar="N", help=text)
    text = "stop after N updates in a row with a non-finite loss or gradient; such updates are skipped and counted, "
    text += "and the first ones are dumped for wsfvit replay (0: stop at the first)"
    add("--max-bad-steps", type=natural_int, default=10, metavar="N", help=text)
    add_switch(group, "--dry-run", "run one update and one validation batch and keep nothing, to check the setup")


def add_logs(group: Group) -> None:
    """Run folder, checkpoints and logs."""
    add = group.add_argument
    add("--output", default="", metavar="DIR", help="folder of all runs (default: output/train)")
    add("--experiment", default="", metavar="NAME", help="folder of this run (default: time, model and size)")
    add("--log-interval", type=positive_int, default=50, metavar="N", help="batches between two progress lines")
    add("--recovery-interval", type=natural_int, default=0, metavar="N", help="batches between saves within an epoch")
    add("--checkpoint-hist", type=positive_int, default=10, metavar="N", help="best epochs to keep")
    add_switch(group, "--save-images", "write a batch of augmented training images at every progress line")
    add("--no-tensorboard", action="store_true", help="write no TensorBoard events")
    add_switch(group, "--log-wandb", "also log to Weights & Biases")
    add("--wandb-project", metavar="NAME", help="Weights & Biases project")
    add("--wandb-tags", nargs="+", default=[], metavar="TAG", help="Weights & Biases tags")
    add("--wandb-resume-id", default="", metavar="ID", help="Weights & Biases run to resume")
    add_switch(group, "--log-trackio", "also log to Trackio")
    add("--trackio-project", default="wsfvit", metavar="NAME", help="Trackio project")
