"""Command lines of ``python -m wsfvit.detection``'s train, validate, predict and shapes."""

import argparse

from wsfvit.cli.common import (
    Group,
    KeyValues,
    add_device,
    add_on_bad_image,
    add_switch,
    add_trained,
    add_workers,
    build_parser,
    fraction,
    natural_float,
    natural_int,
    positive_float,
    positive_int,
)
from wsfvit.cli.recipe import add_batch_norm, add_ema, add_optimizer
from wsfvit.cli.run import add_batches, add_config, add_logs, add_resume, add_running, add_training_device
from wsfvit.detection.data.transforms import PUBLISHED_LONG_SIDE, TrainSizes
from wsfvit.detection.model.config import KINDS

METRICS = ("bbox_AP", "bbox_AP50", "bbox_AP75", "segm_AP", "segm_AP50", "segm_AP75")
SCHEDULES = ("multistep", "cosine", "constant")
PUBLISHED = TrainSizes()
LAYOUT = (
    "folder of the data: DIR/annotations/instances_train2017.json with DIR/train2017 and the same for val, as COCO "
    "comes, or DIR/train/instances.json with DIR/train/images; or leave it out and name files and folders below"
)


def train_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Parser of the train command."""
    parser = build_parser(
        "Train Mask R-CNN or Cascade Mask R-CNN on data in COCO's format. SIGTERM, SIGUSR1 or Ctrl-C save after the "
        "current update and end with exit code 75; --resume auto continues."
    )
    parser.prog = prog or parser.prog
    add_config(parser)
    parser.add_argument("data", nargs="?", metavar="DIR", help=LAYOUT)
    _add_train_data(parser.add_argument_group("Data parameters"))
    _add_detector(parser.add_argument_group("Detector parameters"))
    _add_sizes(parser.add_argument_group("Image size and augmentation parameters, in pixels"))
    add_training_device(parser.add_argument_group("Device parameters"))
    add_optimizer(parser.add_argument_group("Optimizer parameters"))
    _add_schedule(parser.add_argument_group("Learning rate schedule parameters"))
    add_batch_norm(parser.add_argument_group("Batch norm parameters"))
    add_ema(parser.add_argument_group("Model exponential moving average parameters"))
    _add_misc(parser.add_argument_group("Miscellaneous parameters"))
    add_logs(parser.add_argument_group("Checkpoint and log parameters"))
    # The published optimizer; and what the engine reads that makes no sense here: shapes change from batch to batch.
    parser.set_defaults(opt="adamw", opt_betas=[0.9, 0.999], weight_decay=0.05)
    parser.set_defaults(torchcompile=None, sched_on_updates=True)
    return parser


def _add_train_data(group: Group) -> None:
    for split, name in (("train", "training"), ("val", "validation")):
        group.add_argument(f"--{split}-images", metavar="DIR", help=f"folder of the {name} images")
        group.add_argument(f"--{split}-annotations", metavar="FILE", help=f"JSON file of their {name} annotations")
    _add_on_bad_annotation(group)
    add_switch(group, "--keep-empty", "also learn from images without any annotation")


def _add_on_bad_annotation(group: Group) -> None:
    group.add_argument(
        "--on-bad-annotation",
        default="raise",
        choices=("raise", "skip"),
        help="a malformed annotation, or one of a missing image or category, ends the command, or is left out",
    )


def _add_data_loading(group: Group) -> None:
    add_workers(group)
    add_on_bad_image(group)


def _add_detector(group: Group) -> None:
    group.add_argument("--model", default="wsfvit_t_224", metavar="NAME", help="backbone, ours or any other of timm's")
    group.add_argument(
        "--model-kwargs",
        nargs="*",
        default={},
        action=KeyValues,
        metavar="K=V",
        help="arguments of the backbone, such as inter_heads=(4,8,16,32)",
    )
    group.add_argument("--detector", default="mask_rcnn", choices=KINDS, help="kind of detector")
    group.add_argument(
        "--detector-kwargs",
        nargs="*",
        default={},
        action=KeyValues,
        metavar="K=V",
        help="other settings of the detector, such as fpn_width=128; wsfvit/detection/config.py lists them",
    )
    group.add_argument(
        "--proposals",
        type=positive_int,
        metavar="N",
        help="proposals per image, and candidates per level (default: the published; fewer are faster)",
    )
    group.add_argument("--max-detections", type=positive_int, default=100, metavar="N", help="detections per image")
    group.add_argument(
        "--frozen-stats",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the batch norm statistics of the backbone as they are; switch off without pretrained weights",
    )
    group.add_argument("--drop-path", type=fraction, default=0.0, metavar="P", help="drop path rate of the backbone")
    group.add_argument(
        "--pretrained-path", metavar="FILE", help="start the backbone from this image classifier's checkpoint"
    )
    add_switch(group, "--pretrained", "start the backbone from timm's pretrained weights, downloaded once")
    add_switch(group, "--resize-bias-tables", "let --pretrained-path have bias tables of another window")
    group.add_argument(
        "--initial-checkpoint",
        default="",
        metavar="FILE",
        help="start from this detector; its last layers are new where the number of categories differs",
    )
    add_switch(group, "--grad-checkpointing", "compute the backbone again in the backward pass: less memory, slower")
    add_switch(group, "--channels-last", "use the channels-last memory layout")
    add_resume(group)
    add_batches(group, batch_size=2)


def _add_sizes(group: Group) -> None:
    group.add_argument(
        "--long-side",
        type=positive_int,
        default=PUBLISHED_LONG_SIDE,
        metavar="N",
        help="longest long side; the defaults of the sizes below are the published ones, scaled to it",
    )
    group.add_argument(
        "--short-sides",
        type=positive_int,
        nargs="+",
        metavar="N",
        help=f"short sides to draw from (published: {_listed(PUBLISHED.short_sides)})",
    )
    group.add_argument(
        "--crop-short-sides",
        type=positive_int,
        nargs="+",
        metavar="N",
        help=f"short sides before a crop (published: {_listed(PUBLISHED.crop_short_sides)})",
    )
    group.add_argument(
        "--crop-range",
        type=positive_int,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help=f"range of a crop's sides (published: {_listed(PUBLISHED.crop_range)})",
    )
    group.add_argument("--crop-prob", type=fraction, default=0.5, metavar="P", help="probability of a crop")
    group.add_argument("--hflip", type=fraction, default=0.5, metavar="P", help="horizontal flip probability")
    group.add_argument(
        "--val-short-side", type=positive_int, metavar="N", help="in validation (default: the largest of --short-sides)"
    )
    group.add_argument(
        "--pad-multiple",
        type=positive_int,
        metavar="N",
        help="pad batches to a multiple of it (default: what the backbone needs; published: 224)",
    )


def _listed(sides: tuple[int, ...]) -> str:
    return " ".join(map(str, sides))


def _add_schedule(group: Group) -> None:
    group.add_argument("--lr", type=positive_float, default=1e-4, metavar="F", help="learning rate")
    group.add_argument("--sched", default="multistep", choices=SCHEDULES, help="learning rate schedule")
    group.add_argument("--epochs", type=positive_int, default=36, metavar="N", help="epochs to train")
    group.add_argument("--start-epoch", type=natural_int, metavar="N", help="epoch to start at, counted from 0")
    group.add_argument(
        "--decay-milestones", type=positive_int, nargs="+", default=[27, 33], metavar="N", help="multistep epochs"
    )
    group.add_argument("--decay-rate", type=positive_float, default=0.1, metavar="F", help="decay factor of multistep")
    group.add_argument("--min-lr", type=natural_float, default=0.0, metavar="F", help="where cosine ends")
    group.add_argument("--warmup-updates", type=natural_int, default=500, metavar="N", help="updates of linear warm-up")
    group.add_argument(
        "--warmup-factor", type=fraction, default=0.001, metavar="F", help="it starts at this share of --lr"
    )


def _add_misc(group: Group) -> None:
    add_running(group, _add_data_loading)
    group.add_argument(
        "--eval-metric", default="bbox_AP", choices=METRICS, help="figure of COCO that the best checkpoint is best at"
    )
    _add_backend(group)


def _add_backend(group: Group) -> None:
    group.add_argument(
        "--backend",
        default="pycocotools",
        choices=("pycocotools", "faster"),
        help="who computes the average precision; faster needs faster-coco-eval and gives the same numbers",
    )


def validate_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Parser of the validate command."""
    parser = build_parser("Measure the average precision of a detector's boxes and masks over every image of a split.")
    parser.prog = prog or parser.prog
    parser.add_argument("data", nargs="?", metavar="DIR", help=LAYOUT)
    data = parser.add_argument_group("Data parameters")
    data.add_argument("--split", default="val", choices=("train", "val"), help="part of DIR")
    data.add_argument("--images", metavar="DIR", help="folder of the images")
    data.add_argument("--annotations", metavar="FILE", help="JSON file of their annotations")
    _add_on_bad_annotation(data)
    _add_data_loading(data)
    model = parser.add_argument_group("Detector parameters")
    _add_trained(model)
    model.add_argument(
        "-b", "--batch-size", type=positive_int, default=2, metavar="N", help="batch size of each process"
    )
    add_switch(model, "--channels-last", "use the channels-last memory layout")
    add_device(parser.add_argument_group("Device parameters"))
    results = parser.add_argument_group("Result parameters")
    _add_backend(results)
    results.add_argument(
        "--log-freq", type=positive_int, default=50, metavar="N", help="batches between two progress lines"
    )
    results.add_argument("--results-file", default="", metavar="FILE", help="write the figures to FILE, .json or .csv")
    results.add_argument("--categories-file", default="", metavar="FILE", help="write the table of categories likewise")
    results.add_argument("--detections", default="", metavar="FILE", help="write all detections to FILE, COCO's JSON")
    parser.set_defaults(model_dtype=None)
    return parser


def predict_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Parser of the predict command."""
    parser = build_parser("Find objects in pictures; write a drawing of each picture, and one JSON file of all.")
    parser.prog = prog or parser.prog
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or a folder: every image below it")
    _add_trained(parser)
    parser.add_argument("--out", default="output/detections", metavar="DIR", help="folder of drawings and JSON file")
    parser.add_argument(
        "--score", type=fraction, default=0.3, metavar="F", help="leave out detections with a lower score"
    )
    parser.add_argument("--no-masks", action="store_true", help="draw boxes alone")
    add_device(parser)
    parser.set_defaults(model_dtype=None)
    return parser


def _add_trained(group: Group) -> None:
    """A trained detector, and what may be changed about it."""
    add_trained(group)
    group.add_argument("--short-side", type=positive_int, metavar="N", help="default: as validated in training")
    group.add_argument("--long-side", type=positive_int, metavar="N", help="default: as validated in training")
    group.add_argument("--max-detections", type=positive_int, metavar="N", help="default: as in training")


def shapes_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Parser of the shapes command."""
    parser = build_parser("Write pictures of circles, squares and triangles in COCO's format, as data of train.")
    parser.prog = prog or parser.prog
    parser.add_argument("folder", metavar="DIR", help="gets DIR/train and DIR/val")
    parser.add_argument("--train-count", type=positive_int, default=64, metavar="N", help="training pictures")
    parser.add_argument("--val-count", type=positive_int, default=16, metavar="N", help="validation pictures")
    parser.add_argument(
        "--size", type=positive_int, nargs=2, default=[96, 128], metavar=("SHORT", "LONG"), help="sides in pixels"
    )
    parser.add_argument("--seed", type=natural_int, default=0, metavar="N", help="random seed")
    return parser
