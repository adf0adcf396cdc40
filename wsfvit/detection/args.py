"""Command lines of ``python -m wsfvit.detection``: one parser per command, from shared argument groups."""

import argparse
from typing import Any

from wsfvit.cli import common, recipe, run
from wsfvit.cli.common import Group, build_parser, fraction, natural_float, natural_int, positive_float, positive_int
from wsfvit.cli.tools import add_export_file
from wsfvit.detection.data.transforms import PUBLISHED_LONG_SIDE, TrainSizes
from wsfvit.detection.model.config import KINDS

EVAL_METRICS = ("bbox_AP", "bbox_AP50", "bbox_AP75", "segm_AP", "segm_AP50", "segm_AP75")
DATA_HELP = (
    "data folder: DIR/annotations/instances_train2017.json with DIR/train2017 and the same for val, as COCO comes, or "
    "DIR/train/instances.json with DIR/train/images; or leave it out and name files and folders below"
)


def _add_number(group: Group, *flags: str, help: str, **options: Any) -> None:
    group.add_argument(*flags, **{"type": positive_int, "metavar": "N", "help": help, **options})


def _add_key_values(group: Group, flag: str, help: str) -> None:
    group.add_argument(flag, nargs="*", default={}, action=common.KeyValues, metavar="K=V", help=help)


def train_parser() -> argparse.ArgumentParser:
    """Parser of the train command."""
    parser = build_parser(
        "Train Mask R-CNN or Cascade Mask R-CNN on data in COCO's format. SIGTERM, SIGUSR1 or Ctrl-C save after the "
        "current update and end with exit code 75; --resume auto continues."
    )
    run.add_config(parser)
    parser.add_argument("data", nargs="?", metavar="DIR", help=DATA_HELP)
    _add_train_data(parser.add_argument_group("Data parameters"))
    _add_detector(parser.add_argument_group("Detector parameters"))
    _add_sizes(parser.add_argument_group("Image size and augmentation parameters, in pixels"))
    run.add_training_device(parser.add_argument_group("Device parameters"))
    recipe.add_optimizer(parser.add_argument_group("Optimizer parameters"))
    _add_schedule(parser.add_argument_group("Learning rate schedule parameters"))
    recipe.add_batch_norm(parser.add_argument_group("Batch norm parameters"))
    recipe.add_ema(parser.add_argument_group("Model EMA parameters"))
    misc = parser.add_argument_group("Miscellaneous parameters")
    run.add_running(misc, _add_data_loading)
    text = "COCO metric that selects the best checkpoint"
    misc.add_argument("--eval-metric", default="bbox_AP", choices=EVAL_METRICS, help=text)
    _add_backend(misc)
    run.add_logs(parser.add_argument_group("Checkpoint and log parameters"))
    # The published optimizer, and arguments of the trainer that have no flag here: batches differ in shape.
    parser.set_defaults(opt="adamw", opt_betas=[0.9, 0.999], weight_decay=0.05)
    parser.set_defaults(torchcompile=None, sched_on_updates=True)
    return parser


def _add_train_data(group: Group) -> None:
    for split, name in (("train", "training"), ("val", "validation")):
        group.add_argument(f"--{split}-images", metavar="DIR", help=f"folder of the {name} images")
        group.add_argument(f"--{split}-annotations", metavar="FILE", help=f"JSON file of their {name} annotations")
    _add_on_bad_annotation(group)
    common.add_switch(group, "--keep-empty", "also train on images without any annotation")


def _add_on_bad_annotation(group: Group) -> None:
    text = "end at a malformed annotation, or one of a missing image or category, or leave it out"
    group.add_argument("--on-bad-annotation", default="raise", choices=("raise", "skip"), help=text)
    common.add_switch(group, "--boxes-only", "ignore the masks: train and evaluate boxes only")
    common.add_switch(group, "--boxes-from-masks", "ignore the boxes of the annotations: take them from the masks")


def _add_data_loading(group: Group) -> None:
    common.add_workers(group)
    common.add_on_bad_image(group)


def _add_kind(group: Group, with_model: str = "") -> None:
    group.add_argument("--detector", default="mask_rcnn", choices=KINDS, help=f"kind of detector{with_model}")


def _add_detector(group: Group) -> None:
    group.add_argument("--model", default="wsfvit_t_224", metavar="NAME", help="backbone: any timm model")
    _add_key_values(group, "--model-kwargs", "arguments of the backbone, such as inter_heads=(4,8,16,32)")
    _add_kind(group)
    text = "other settings of the detector, such as fpn_width=128; wsfvit/detection/model/config.py lists them"
    _add_key_values(group, "--detector-kwargs", text)
    text = "proposals per image, and candidates per level (default: the published; fewer are faster)"
    _add_number(group, "--proposals", help=text)
    _add_number(group, "--max-detections", default=100, help="detections per image")
    text = "freeze the batch norm statistics of the backbone; switch off without pretrained weights"
    common.add_switch(group, "--frozen-stats", text, default=True)
    group.add_argument("--drop-path", type=fraction, default=0.0, metavar="P", help="drop path rate of the backbone")
    group.add_argument("--pretrained-path", metavar="FILE", help="start the backbone from this classifier's checkpoint")
    common.add_switch(group, "--pretrained", "start the backbone from timm's pretrained weights, downloaded once")
    common.add_switch(group, "--resize-bias-tables", "let --pretrained-path have bias tables of another window")
    text = "start from this detector; its last layers are new where the number of categories differs"
    group.add_argument("--initial-checkpoint", default="", metavar="FILE", help=text)
    common.add_switch(group, "--grad-checkpointing", "recompute the backbone in the backward pass: less memory, slower")
    common.add_switch(group, "--channels-last", "use the channels-last memory layout")
    run.add_resume(group)
    run.add_batches(group, batch_size=2)


def _add_sizes(group: Group) -> None:
    published = TrainSizes()

    def listed(sides: tuple[int, ...]) -> str:
        return f"(published: {' '.join(map(str, sides))})"

    text = "longest long side; the defaults of the sizes below are the published ones, scaled to it"
    _add_number(group, "--long-side", default=PUBLISHED_LONG_SIDE, help=text)
    _add_number(group, "--short-sides", nargs="+", help=f"short sides to draw from {listed(published.short_sides)}")
    text = f"short sides before a crop {listed(published.crop_short_sides)}"
    _add_number(group, "--crop-short-sides", nargs="+", help=text)
    text = f"range of a crop's sides {listed(published.crop_range)}"
    _add_number(group, "--crop-range", nargs=2, metavar=("LOW", "HIGH"), help=text)
    group.add_argument("--crop-prob", type=fraction, default=0.5, metavar="P", help="probability of a crop")
    group.add_argument("--hflip", type=fraction, default=0.5, metavar="P", help="horizontal flip probability")
    _add_number(group, "--val-short-side", help="in validation (default: the largest of --short-sides)")
    text = "pad batches to a multiple of it (default: what the backbone needs; published: 224)"
    _add_number(group, "--pad-multiple", help=text)


def _add_schedule(group: Group) -> None:
    schedules = ("multistep", "cosine", "constant")
    group.add_argument("--lr", type=positive_float, default=1e-4, metavar="F", help="learning rate")
    group.add_argument("--sched", default="multistep", choices=schedules, help="learning rate schedule")
    _add_number(group, "--epochs", default=36, help="epochs to train")
    _add_number(group, "--start-epoch", type=natural_int, help="epoch to start at, counted from 0")
    _add_number(group, "--decay-milestones", nargs="+", default=[27, 33], help="multistep epochs")
    group.add_argument("--decay-rate", type=positive_float, default=0.1, metavar="F", help="decay factor of multistep")
    group.add_argument("--min-lr", type=natural_float, default=0.0, metavar="F", help="where cosine ends")
    _add_number(group, "--warmup-updates", type=natural_int, default=500, help="updates of linear warm-up")
    text = "warm-up starts at this share of --lr"
    group.add_argument("--warmup-factor", type=fraction, default=0.001, metavar="F", help=text)


def _add_backend(group: Group) -> None:
    text = "package that computes the average precision; faster needs faster-coco-eval and gives the same numbers"
    group.add_argument("--backend", default="pycocotools", choices=("pycocotools", "faster"), help=text)


def validate_parser() -> argparse.ArgumentParser:
    """Parser of the validate command."""
    parser = build_parser("Evaluate the boxes and masks of a detector on every image of a split: average precision.")
    parser.add_argument("data", nargs="?", metavar="DIR", help=DATA_HELP)
    data = parser.add_argument_group("Data parameters")
    data.add_argument("--split", default="val", choices=("train", "val"), help="part of DIR")
    data.add_argument("--images", metavar="DIR", help="folder of the images")
    data.add_argument("--annotations", metavar="FILE", help="JSON file of their annotations")
    _add_on_bad_annotation(data)
    _add_data_loading(data)
    model = parser.add_argument_group("Detector parameters")
    _add_trained(model)
    _add_number(model, "-b", "--batch-size", default=2, help="batch size of each process")
    common.add_switch(model, "--channels-last", "use the channels-last memory layout")
    common.add_device(parser.add_argument_group("Device parameters"))
    results = parser.add_argument_group("Result parameters")
    _add_backend(results)
    _add_number(results, "--log-freq", default=50, help="batches between two progress lines")
    results.add_argument("--results-file", default="", metavar="FILE", help="write the metrics to FILE, .json or .csv")
    results.add_argument("--categories-file", default="", metavar="FILE", help="write the table of categories likewise")
    results.add_argument("--detections", default="", metavar="FILE", help="write all detections to FILE, COCO's JSON")
    parser.set_defaults(model_dtype=None)
    return parser


def predict_parser() -> argparse.ArgumentParser:
    """Parser of the predict command."""
    parser = build_parser(
        "Detect objects in images; write a drawing of each image, enlarged if small, and one JSON file of all."
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or a folder: every image below it")
    _add_trained(parser)
    parser.add_argument("--out", default="output/detections", metavar="DIR", help="folder of drawings and JSON file")
    text = "leave out detections with a lower score"
    parser.add_argument("--score", type=fraction, default=0.3, metavar="F", help=text)
    parser.add_argument("--no-masks", action="store_true", help="draw only boxes")
    common.add_device(parser)
    parser.set_defaults(model_dtype=None)
    return parser


def _add_trained(group: Group) -> None:
    """A trained detector, and the settings that may differ from its training."""
    common.add_trained(group)
    _add_number(group, "--short-side", help="default: as validated in training")
    _add_number(group, "--long-side", help="default: as validated in training")
    _add_number(group, "--max-detections", help="default: as in training")


def export_parser() -> argparse.ArgumentParser:
    """Parser of the export command."""
    parser = build_parser(
        "Export a detector as a function of one image of a fixed size, suppression and masks included."
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="checkpoint of the train command")
    parser.add_argument("--use-ema", action="store_true", help="use the EMA of the weights if there is one")
    common.add_trust(parser)
    parser.add_argument("--model", metavar="NAME", help="backbone of a detector with random weights: any timm model")
    _add_kind(parser, ", with --model")
    _add_number(parser, "--num-classes", default=80, metavar="K", help="categories, with --model")
    text = "file to write, .onnx or .pt2; FILE.json describes input, outputs and categories"
    add_export_file(parser, ("onnx", "torch"), text)
    text = "height and width of the image (default: those of validation, on its long side, padded)"
    _add_number(parser, "--size", nargs=2, metavar=("H", "W"), help=text)
    text = "leave out detections that score no higher (default: as in training; 0 for random weights)"
    parser.add_argument("--score-threshold", type=fraction, metavar="F", help=text)
    _add_number(parser, "--max-detections", help="default: as in training")
    text = "compare the export with PyTorch on two images before anything is written"
    common.add_switch(parser, "--check", text, default=True)
    return parser


def flops_parser() -> argparse.ArgumentParser:
    """Parser of the flops command."""
    parser = build_parser("Count a detector's parameters and multiply-accumulates, part by part.")
    text = "the four published detectors, whatever --detector and --model say"
    parser.add_argument("--all", action="store_true", help=text)
    _add_kind(parser)
    parser.add_argument("--model", default="wsfvit_t_224", metavar="NAME", help="backbone: any timm model")
    _add_number(parser, "--num-classes", default=80, metavar="K", help="number of categories")
    _add_number(parser, "--img-size", nargs=2, default=(1120, 896), metavar=("H", "W"), help="height and width")
    _add_number(parser, "--box-rois", default=1000, help="RoIs of each box head")
    _add_number(parser, "--mask-rois", default=100, help="RoIs of each mask head")
    parser.add_argument("--output", default="", metavar="FOLDER", help="also write flops.md and flops.csv there")
    return parser


def shapes_parser() -> argparse.ArgumentParser:
    """Parser of the shapes command."""
    parser = build_parser(
        "Write generated images of circles, squares and triangles in COCO's format, as training data."
    )
    parser.add_argument("folder", metavar="DIR", help="gets DIR/train and DIR/val")
    _add_number(parser, "--train-count", default=64, help="training images")
    _add_number(parser, "--val-count", default=16, help="validation images")
    _add_number(parser, "--size", nargs=2, default=[96, 128], metavar=("SHORT", "LONG"), help="sides in pixels")
    _add_number(parser, "--seed", type=natural_int, default=0, help="random seed")
    return parser
