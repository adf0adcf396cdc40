"""Draw a photograph, the subbands that the wavelet stem sees, and class activation maps of a network, stage by stage.

PYTHONPATH=. python examples/photograph.py --checkpoint output/train/RUN/model_best.pth.tar
PYTHONPATH=. python examples/photograph.py photo.jpg --checkpoint FILE --size 224 --target 282 --out photo-maps.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms.functional import normalize, resize, to_tensor

from wsfvit.analysis.cam import compute_cams, show_cam
from wsfvit.analysis.layers import find_target_layer
from wsfvit.cli.tools import cam_parser
from wsfvit.data.image_files import read_image
from wsfvit.inference.predictor import Classifier, load_classifier
from wsfvit.utils.errors import run_main
from wsfvit.utils.figures import new_panels, save_figure, show_image, show_subband
from wsfvit.wavelets import haar_swt2d

SUBBANDS = ("LL = cA", "LH = -cH", "HL = -cV", "HH = cD")  # the published names and signs


def load_photograph(path: str | None) -> Image.Image:
    """Read an image file, or the cat that scikit-image ships (by Stefan van der Walt, CC0)."""
    if path is None:
        from skimage.data import chelsea  # pip install scikit-image

        return Image.fromarray(chelsea())
    return read_image(Path(path)).convert("RGB")


def stem_subbands(image: Image.Image) -> np.ndarray:
    """Undecimated Haar subbands (4, H, W) of the grey image, by the transform of the stem."""
    grey = to_tensor(image).mean(0, keepdim=True)[None]
    return haar_swt2d(grey, mode="zero", flip_details=True)[0, :, 0].numpy()


def stage_maps(
    classifier: Classifier, image: Image.Image, size: int, target: str | None
) -> tuple[np.ndarray, list[tuple[str, np.ndarray]], str]:
    """Grad-CAM for one class (None: the predicted one) at the last four stages.

    Returns what the network sees (h, w, 3), its shorter side ``size``; maps (h, w) with titles; class and probability.
    """
    mean, std = (classifier.data_config[key] for key in ("mean", "std"))
    x = normalize(to_tensor(resize(image, size)), mean, std)[None]
    probabilities, names = classifier.probabilities(x)[0], classifier.class_names
    index = names.index(target) if target in names else int(probabilities.argmax() if target is None else target)
    maps = []
    for entry in classifier.model.feature_info[-4:]:
        layer = find_target_layer(classifier.model, x, entry["module"])
        cam = compute_cams(classifier.model, layer, x, [index])[0]
        maps.append((f"{layer.name}, {layer.grid[0]}x{layer.grid[1]}", cam))
    return classifier.to_pixels(x)[0], maps, f"{names[index]}, {100 * probabilities[index]:.0f} %"


def draw(image: Image.Image, classifier: Classifier, size: int, target: str | None) -> Any:
    """A figure of two rows: photograph and subbands; what the network sees, and its maps."""
    pixels = np.asarray(image, dtype=np.float32) / 255
    figure, ((first, *bands), (second, *overlays)) = new_panels(2, 5, 2.1, 2.1 * image.height / image.width + 0.35)
    show_image(first, pixels)
    first.set_title(f"photograph\n{image.height}x{image.width}", fontsize=8)
    for axis, subband, name in zip(bands, stem_subbands(image), SUBBANDS, strict=True):
        show_subband(axis, subband, name)
    seen, maps, found = stage_maps(classifier, image, size, target)
    show_image(second, seen)
    second.set_title(f"what the network sees\n{seen.shape[0]}x{seen.shape[1]}", fontsize=8)
    for axis, (title, cam) in zip(overlays, maps, strict=True):
        large = interpolate(torch.from_numpy(cam)[None, None], pixels.shape[:2], mode="bilinear")[0, 0].numpy()
        show_cam(axis, pixels, large)
        axis.set_title(f"evidence for {found}\n{title}", fontsize=8)
    if not classifier.trained:
        figure.suptitle("UNTRAINED MODEL, RANDOM WEIGHTS", fontsize=10)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", nargs="?", metavar="FILE", help="image file (default: the cat of scikit-image)")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights (default: random ones of wsfvit_p0_224)")
    parser.add_argument("--size", type=int, default=64, metavar="N", help="shorter side of what the network sees")
    parser.add_argument("--target", metavar="CLASS", help="class name or index (default: what the network predicts)")
    parser.add_argument("--out", default="output/photograph.png", metavar="FILE.png", help="figure to write")
    args = parser.parse_args(argv)
    options = cam_parser().parse_args(["--device", "cpu"])
    classifier = load_classifier(options, None if args.checkpoint else "wsfvit_p0_224", args.checkpoint)
    save_figure(draw(load_photograph(args.image), classifier, args.size, args.target), Path(args.out))
    print(f"figure: {args.out}")


if __name__ == "__main__":
    run_main(main)
