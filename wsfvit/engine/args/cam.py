"""Command line of cam_image.py."""

import argparse
from collections.abc import Sequence

from wsfvit.engine.args.common import DEFAULT_MODEL, add_data_source, add_model_input, build_parser, positive_int
from wsfvit.engine.args.predict import add_picture_input, add_weights

# Names on the command line, and the classes of the grad-cam package behind them.
METHODS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "xgradcam": "XGradCAM",
    "elementwise": "GradCAMElementWise",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
}


def parse_cam_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses cam_image.py's command line."""
    return cam_parser().parse_args(argv)


def cam_parser() -> argparse.ArgumentParser:
    """Parser of cam_image.py."""
    parser = build_parser("Draw where a model sees the evidence for a class (class activation maps).")
    parser.add_argument(
        "data",
        nargs="?",
        metavar="DIR",
        help="folder of images (same as --data-dir; default: ./images, made on first use)",
    )
    add_data_source(parser)
    parser.add_argument("--split", default="validation", help="split of --dataset")
    parser.add_argument(
        "--num-images",
        type=positive_int,
        default=8,
        metavar="N",
        help="images to draw, spread evenly over what there is",
    )
    parser.add_argument(
        "--models",
        "--model",
        "-m",
        nargs="+",
        metavar="NAME",
        help=f"models, side by side; default what the checkpoints name, else {DEFAULT_MODEL}",
    )
    parser.add_argument("--checkpoint", nargs="+", default=[], metavar="FILE", help="one weights file per model")
    add_weights(parser)
    add_model_input(parser)
    add_picture_input(parser)
    parser.add_argument(
        "--no-crop",
        action="store_true",
        help="show the model the whole image at its own aspect ratio (any-size models)",
    )
    parser.add_argument("--method", nargs="+", default=["gradcam"], choices=METHODS, help="methods, side by side")
    parser.add_argument(
        "--layer", metavar="NAME", help="module whose output is explained (default: the last useful stage)"
    )
    parser.add_argument("--target", metavar="CLASS", help="class index or name (default: what the model predicts)")
    parser.add_argument(
        "--subbands", action="store_true", help="also draw the wavelet subbands that the stem sees, to OUT-subbands.png"
    )
    parser.add_argument("--out", default="output/cam.png", metavar="FILE.png", help="picture to write")
    return parser
