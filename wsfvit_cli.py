"""The ``wsfvit`` command: the table of all commands, its help, and the one runner behind every command.

It stands beside the package because ``import wsfvit`` registers the models with timm, which takes the seconds that
torch needs to load; ``wsfvit --help`` does without.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import argparse


# Name: what it does, the function that builds its parser, and the function that runs the parsed arguments, both as
# MODULE:FUNCTION of the package and imported when the command runs.
CLASSIFICATION = {
    "train": ("train an image classifier", "cli.train:train_parser", "train.classify:run_training"),
    "validate": (
        "measure the accuracy of models",
        "cli.validate:validate_parser",
        "eval.validate:run_validation_command",
    ),
    "predict": ("print the classes of images", "cli.tools:predict_parser", "inference.predictor:run_predict"),
    "cam": ("draw class activation maps of any timm model", "cli.tools:cam_parser", "analysis.cam:run_cam"),
    "flops": ("count parameters and multiply-accumulates", "cli.tools:flops_parser", "analysis.flops:run_flops"),
    "export": ("write ONNX, torch.export or AOTInductor", "cli.tools:export_parser", "inference.export:run_export"),
    "plot": ("draw the curves of training runs", "cli.tools:plot_parser", "analysis.plot:run_plot"),
    "replay": ("find where a training step became non-finite", "cli.tools:replay_parser", "train.replay:run_replay"),
    "weights": ("list or fetch published weights", "cli.tools:weights_parser", "checkpoint.weights:run_weights"),
    "info": ("print versions, devices, backends and variables", "cli.tools:info_parser", "analysis.info:run_info"),
}
DETECTION = {
    "train": ("train Mask or Cascade Mask R-CNN", "detection.args:train_parser", "detection.train:run_training"),
    "validate": ("measure average precision", "detection.args:validate_parser", "detection.validate:run_validation"),
    "predict": ("find objects in images", "detection.args:predict_parser", "detection.predict:run_predict"),
    "export": ("write ONNX or torch.export", "detection.args:export_parser", "detection.export:run_export"),
    "shapes": ("generate data in COCO's format", "detection.args:shapes_parser", "detection.shapes:run_shapes"),
    "flops": ("count multiply-accumulates", "detection.args:flops_parser", "detection.flops:run_flops"),
}
VIDEO = {
    "train": ("train SimVP on Moving MNIST or your videos", "video.args:train_parser", "video.train:run_training"),
    "validate": ("measure a model beside baselines", "video.args:validate_parser", "video.evaluation:run_validation"),
    "predict": ("predict and draw future frames", "video.args:predict_parser", "video.predict:run_prediction"),
    "flops": ("count multiply-accumulates", "video.args:flops_parser", "video.flops:run_flops"),
}
GROUPS = {"": CLASSIFICATION, "detection": DETECTION, "video": VIDEO}
TITLES = {
    "": "image classification",
    "detection": "object detection and instance segmentation",
    "video": "video prediction",
}
EXAMPLES = """examples:
  wsfvit train --dataset digits -c configs/digits/wsfvit_p0.yaml
  wsfvit validate --dataset digits --checkpoint output/train/RUN/model_best.pth.tar
  wsfvit predict photo.jpg --checkpoint output/train/RUN/model_best.pth.tar
  wsfvit detection train /data/coco -c configs/detection/mask_rcnn_wsfvit_t.yaml
  torchrun --nproc-per-node 8 -m wsfvit train /data/imagenet -c configs/imagenet/wsfvit_t_224.yaml"""


def main(argv: Sequence[str] | None = None, prog: str = "wsfvit", group: str = "") -> None:
    """Run the command that ``argv`` names (default: the process's arguments) and end the process as it ends.

    Args:
        argv: Name of a command with its arguments; in front of it a group's name where ``group`` is "".
        prog: How the user called this, for help and errors.
        group: A key of ``GROUPS`` whose commands are meant.
    """
    dispatch(argv, prog, group, guarded=True)


def dispatch(argv: Sequence[str] | None = None, prog: str = "wsfvit", group: str = "", guarded: bool = False) -> None:
    """``main``; unless ``guarded``, exceptions are left to the caller."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not group and argv and argv[0] in GROUPS:
        group, prog = argv[0], f"{prog} {argv.pop(0)}"
    commands = GROUPS[group]
    if not argv or argv[0] in ("-h", "--help"):
        try:
            print(format_help(prog, group), flush=True)
        except BrokenPipeError:  # under `| head`; nothing is left to flush at the end of the process
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0 if argv else 2)
    name, *rest = argv
    if name not in commands:
        _refuse(prog, name, [*commands, *filter(None, [] if group else GROUPS)])

    def run() -> None:
        _, build_parser, function = commands[name]
        parser: argparse.ArgumentParser = _load(build_parser)()
        parser.prog = f"{prog} {name}"
        run_command(parser, _load(function), rest)

    if guarded:
        from wsfvit.utils.errors import run_main

        run_main(run)
    else:
        run()


def run_command(
    parser: "argparse.ArgumentParser", run: Callable[["argparse.Namespace"], Any], argv: Sequence[str] | None = None
) -> None:
    """Parse a command line, run the command, and turn its result into the exit code of the process.

    A result whose ``finished`` is false is that of a training which was asked to stop: exit code 75. A result that is
    an integer is the exit code. Everything else is success.
    """
    from wsfvit.cli.run import parse_with_config
    from wsfvit.data.workers import ignore_stop_signals
    from wsfvit.train.run_dir import read_arguments
    from wsfvit.train.signals import STOPPED_EXIT_CODE

    add_import(parser)
    args = parse_with_config(parser, argv, read_arguments)
    for file in vars(args).pop("imports"):  # not in checkpoints and args.yaml: a file must not name code to run
        import_file(file)
    result = run(args)
    code = STOPPED_EXIT_CODE if not getattr(result, "finished", True) else result if isinstance(result, int) else 0
    if code == STOPPED_EXIT_CODE:
        ignore_stop_signals()  # all is saved, and a repeated one must not change the exit code
    if code:
        sys.exit(code)


def add_import(parser: "argparse.ArgumentParser") -> None:
    """Add --import, which every command has."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE.py",
        help="run FILE.py first, which registers models of your own with timm (may be repeated)",
    )


def import_file(name: str) -> None:
    """Run a Python file as the module of its name.

    Raises:
        UserError: It is missing, ends in an error, or a module of that name is imported already.
    """
    from pathlib import Path

    from wsfvit.utils.errors import UserError, first_line

    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--import {name}: there is no such .py file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or path.stem in sys.modules:
        raise UserError(f"--import {name}: a module '{path.stem}' is imported already: rename the file")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as err:
        raise UserError(f"--import {name}: {type(err).__name__}: {first_line(err)}") from err


def format_help(prog: str = "wsfvit", group: str = "") -> str:
    """The commands of one group, or of all of them, with one line for each."""
    lines = [f"usage: {prog} COMMAND ..."]
    for key, commands in GROUPS.items():
        if key == group or not group:
            lines += ["", f"{TITLES[key]}:"]
            prefix = f"{key} " if key and not group else ""
            lines += [f"  {prefix + name:<20}{text}" for name, (text, *_) in commands.items()]
    return "\n".join(
        [*lines, "", f"{prog} COMMAND --help lists the flags of a command.", *([] if group else ["", EXAMPLES])]
    )


def _load(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(f"wsfvit.{module}"), name)
    return found


def _refuse(prog: str, name: str, known: Sequence[str]) -> NoReturn:
    from wsfvit.utils.errors import did_you_mean

    hint = did_you_mean(name, known, otherwise=f" ({prog} --help lists the commands)")
    print(f"error: unknown command '{name}'{hint}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
