"""Class activation maps of any timm model with the grad-cam package, as a gallery; and the cam command."""

import argparse
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision import transforms

from wsfvit.analysis.layers import TargetLayer, find_target_layer, model_layout, to_maps
from wsfvit.cli.common import DEFAULT_MODEL
from wsfvit.cli.tools import METHODS
from wsfvit.data import dataset_class_names
from wsfvit.data.image_files import find_images, read_image, write_sample_images
from wsfvit.factory.data import build_dataset
from wsfvit.inference.predictor import PRETRAINED, Classifier, in_words, load_classifier
from wsfvit.utils.errors import UserError, did_you_mean
from wsfvit.utils.figures import draw_subbands, figure_path, new_panels, save_figure, show_image
from wsfvit.utils.progress import Progress

SAMPLE_FOLDER = "images"
MAX_PANELS_ABREAST = 8
MAX_ROWS_OF_ONE = 4


@dataclass(frozen=True)
class Sample:
    """An image to explain, its name, and its label or the name of its class if known."""

    name: str
    image: Image.Image
    label: int | None = None
    class_name: str | None = None

    def is_correct(self, predicted: int, names: Sequence[str]) -> bool | None:
        """Whether ``predicted``, one of ``names``, is the class of the image; None if that is unknown."""
        if self.class_name is not None:
            return names[predicted] == self.class_name if self.class_name in names else None
        return None if self.label is None else predicted == self.label


@dataclass(frozen=True)
class Column:
    """One model and method of the gallery, with an entry per image: the model's input, its map and the caption.

    ``pixels`` are (H, W, C) and ``cams`` (H, W), from 0 to 1; captions hold class and probability; ``correct`` is
    whether the predicted class is the label, None if that is unknown.
    """

    title: str
    pixels: list[np.ndarray]
    cams: list[np.ndarray]
    captions: list[str]
    correct: list[bool | None]


def compute_cams(
    model: Any, layer: TargetLayer, images: Tensor, classes: Sequence[int], method: str = "gradcam"
) -> np.ndarray:
    """Class activation maps of a batch.

    Args:
        model: Maps images to logits (B, K); in eval mode.
        layer: The module to explain, from ``find_target_layer``.
        images: (B, C, H, W), normalised, on the model's device.
        classes: One class index per image.
        method: A key of ``METHODS``.

    Returns:
        (B, H, W) float32, each map scaled to 0..1 (all zeros without evidence for the class).
    """
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    size, layout = (images.shape[2], images.shape[3]), model_layout(model)

    def reshape(x: Tensor) -> Tensor:
        maps = to_maps(x, size, **layout)
        assert maps is not None  # find_target_layer only returns layers with a layout
        return maps.clone()  # the model may modify its activations in place

    # The images require a gradient, so the parameters do not have to.
    images = images.detach().clone().requires_grad_()
    cam = getattr(pytorch_grad_cam, METHODS[method])(model, [layer.module], reshape_transform=reshape)
    try:  # not the package's own context manager, which swallows IndexErrors
        maps: np.ndarray = cam(input_tensor=images, targets=[ClassifierOutputTarget(index) for index in classes])
    finally:
        cam.activations_and_grads.release()
    return maps


def run_cam(args: argparse.Namespace) -> Path:
    """Run cam_image.py: write the gallery, and the subbands on request; returns the path of the gallery.

    Raises:
        UserError: A model, weights file, image, layer, class or value does not fit.
    """
    out = figure_path(args.out)
    pairs = _pair_models(args)
    dataset = build_dataset(args, args.split, None, in_chans=3) if args.dataset else None
    names = None if dataset is None else dataset_class_names(dataset)
    classifiers = [load_classifier(args, model_name, checkpoint, names) for model_name, checkpoint in pairs]
    stems = [classifier for classifier in classifiers if _stem_transform(classifier) is not None]
    if args.subbands and not stems:
        raise UserError("--subbands: none of the models has a wavelet stem, as wsfvit models do")
    samples = load_samples(args, dataset, {name for classifier in classifiers for name in classifier.class_names})
    columns = [column for classifier in classifiers for column in explain(args, classifier, samples)]
    title = "Evidence for the class named below each image"
    if untrained := [classifier.name for classifier in classifiers if not classifier.trained]:
        print(f"note: {', '.join(untrained)} untrained, random weights: pass --checkpoint FILE or --pretrained")
        title += "\nUNTRAINED MODELS, RANDOM WEIGHTS" if len(untrained) == len(classifiers) else ""
    save_figure(draw_gallery(samples, columns, title), out)
    print(f"figure: {out}")
    if args.subbands:
        path = out.with_name(f"{out.stem}-subbands{out.suffix}")
        save_figure(draw_stem(args, stems[0], samples), path)
        print(f"subbands: {path}")
    return out


def load_samples(args: argparse.Namespace, dataset: Any, classes: Collection[str] = ()) -> list[Sample]:
    """The images to explain, spread evenly over the data set, or over the folder where that is None.

    In a folder, the name of an image's own folder is its class if it is one of ``classes``. No image or an unreadable
    one raises a ``UserError``.
    """
    if dataset is None:
        return _load_folder(args.data_dir or args.data or SAMPLE_FOLDER, args.num_images, args.workers, classes)
    names = dataset_class_names(dataset)
    if not hasattr(dataset, "__getitem__"):
        raise UserError(f"dataset '{args.dataset}' is a stream without random access: pass a folder")
    samples = []
    for index in _spread(len(dataset), args.num_images):
        try:
            image, label = dataset[index]
        except (OSError, ValueError) as err:
            raise UserError(f"image {index} of dataset '{args.dataset}' cannot be read: {err}") from err
        shown = names[label] if names else label
        samples.append(Sample(f"{args.split} {index}\nclass {shown}", image, int(label)))
    return samples


def explain(args: argparse.Namespace, classifier: Classifier, samples: Sequence[Sample]) -> list[Column]:
    """One column of the gallery per method for one model."""
    inputs = _transform(args, classifier, samples)
    # Whole images differ in size and cannot be batched.
    step = 1 if args.no_crop else args.batch_size
    batches = [torch.stack(inputs[i : i + step]).to(classifier.device) for i in range(0, len(inputs), step)]
    target = None if args.target is None else _find_class(args.target, classifier.class_names)
    pixels = [image for batch in batches for image in classifier.to_pixels(batch)]
    try:
        probabilities = torch.cat([classifier.probabilities(batch) for batch in batches])
    except UserError as err:
        raise UserError(f"{err}; leave out --no-crop" if args.no_crop else str(err)) from err
    layer = find_target_layer(classifier.model, batches[0][:1], args.layer)
    print(f"{classifier.name}: layer {layer.name}, map {layer.grid[0]}x{layer.grid[1]}")
    predicted = probabilities.argmax(1).tolist()
    classes = predicted if target is None else [target] * len(samples)
    names, pairs = classifier.class_names, zip(classes, probabilities, strict=True)
    captions = [f"{names[index][:26]}  {100 * row[index]:.1f} %" for index, row in pairs]
    correct = [sample.is_correct(guess, names) for sample, guess in zip(samples, predicted, strict=True)]
    columns = []
    for method in args.method:
        cams: list[np.ndarray] = []
        with Progress(f"{classifier.name} {method}", len(batches), interval=10) as progress:
            for batch in batches:
                here = classes[len(cams) : len(cams) + len(batch)]
                cams += list(compute_cams(classifier.model, layer, batch, here, method))
                progress.step(len(batch))
        title = f"{classifier.name}\n{METHODS[method]}" + ("" if classifier.trained else ", untrained")
        notes = ("" if cam.any() else "\nno positive evidence" for cam in cams)
        marked = [text + note for text, note in zip(captions, notes, strict=True)]
        columns.append(Column(title, pixels, cams, marked, correct))
    return columns


def draw_gallery(samples: Sequence[Sample], columns: Sequence[Column], title: str) -> Any:
    """A figure of the images, each followed by one panel per model and method; many images share rows."""
    originals = [np.asarray(sample.image, dtype=np.float32) / 255 for sample in samples]
    width = 1 + len(columns)
    blocks = max(1, MAX_PANELS_ABREAST // width) if len(samples) > MAX_ROWS_OF_ONE else 1
    rows = -(-len(samples) // blocks)
    shown = originals + [image for column in columns for image in column.pixels]
    aspect = max(image.shape[0] / image.shape[1] for image in shown)
    figure, panels = new_panels(rows, width * blocks, 2.1, 2.1 * aspect + 0.45)
    groups = panels.reshape(rows * blocks, width)
    overlay: Any = None
    for index, (sample, axes) in enumerate(zip(samples, groups, strict=False)):
        show_image(axes[0], originals[index])
        axes[0].set_xlabel(sample.name, fontsize=8)
        for column, axis in zip(columns, axes[1:], strict=True):
            overlay = show_cam(axis, column.pixels[index], column.cams[index])
            color = {None: "black", True: "darkgreen", False: "firebrick"}[column.correct[index]]
            axis.set_xlabel(column.captions[index], fontsize=8, color=color)
            if index < blocks:
                longest = max(map(len, column.title.split("\n")))
                axis.set_title(column.title, fontsize=min(8, 240 / longest))
    for axis in groups[len(samples) :].flat:
        axis.set_axis_off()
    height = figure.get_size_inches()[1]
    place = {"orientation": "horizontal", "shrink": 0.4, "fraction": 0.3 / height, "pad": 0.1 / height}
    bar = figure.colorbar(overlay, ax=panels, ticks=[0, 1], **place)
    bar.ax.set_xticklabels(["least evidence", "most"], fontsize=8)
    bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure


def show_cam(axis: Any, pixels: np.ndarray, cam: np.ndarray) -> Any:
    """Draw the map over the grey image; returns what a colour bar needs."""
    show_image(axis, pixels.mean(2))
    # Transparent without evidence, translucent with it.
    return axis.imshow(cam, cmap="turbo", vmin=0, vmax=1, alpha=0.65 * np.sqrt(cam), interpolation="bilinear")


def draw_stem(args: argparse.Namespace, classifier: Classifier, samples: Sequence[Sample]) -> Any:
    """A figure of the subbands of each image in the model's wavelet stem."""
    transform = _stem_transform(classifier)
    rows = []
    for sample, image in zip(samples, _transform(args, classifier, samples), strict=True):
        with torch.no_grad():
            subbands = transform(image[None].to(classifier.device)).cpu().unflatten(1, (4, -1)).mean(2)[0]
        rows.append((sample.name, classifier.to_pixels(image[None])[0], subbands.numpy()))
    # Names and signs of the release; the mean over channels is the subband of the grey image.
    names = ("LL = cA", "LH = -cH", "HL = -cV", "HH = cD")
    return draw_subbands(rows, names, f"Haar subbands in the stem of {classifier.name}")


def _stem_transform(classifier: Classifier) -> Any:
    return getattr(getattr(classifier.model, "stem", None), "dwt_l2", None)


def _pair_models(args: argparse.Namespace) -> list[tuple[str | None, str | None]]:
    """Models and weights files, paired in the given order."""
    models, files = args.models, args.checkpoint
    if not files:
        return [(name, None) for name in models or [DEFAULT_MODEL]]
    if models and len(models) != len(files):
        raise UserError(
            f"--models names {len(models)}, --checkpoint {len(files)}: give one weights file per model, or 'pretrained'"
        )
    if not models and PRETRAINED in files:
        raise UserError("--checkpoint pretrained needs --models: it does not name its model")
    return list(zip(models or [None] * len(files), files, strict=True))


def _load_folder(folder: str, count: int, workers: int, classes: Collection[str]) -> list[Sample]:
    if Path(folder) == Path(SAMPLE_FOLDER) and not Path(folder).exists():
        write_sample_images(folder)
        print(f"created {SAMPLE_FOLDER}/ with two sample photographs of scikit-learn; add your own there")
    paths = find_images([folder])
    if count < len(paths):
        print(f"{count} of {len(paths)} images: --num-images shows more")
    paths = [paths[index] for index in _spread(len(paths), count)]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        images = list(pool.map(read_image, paths))
    samples = []
    for path, image in zip(paths, images, strict=True):
        (shown,) = in_words([path.parent.name])
        known = next((name for name in (path.parent.name, shown) if name in classes), None)
        samples.append(Sample(path.name + (f"\nclass {known}" if known else ""), image, class_name=known))
    return samples


def _spread(length: int, count: int) -> list[int]:
    """Up to ``count`` indices spread evenly over ``length``, so that sorted data shows all its classes."""
    count = min(length, count)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def _find_class(target: str, names: Sequence[str]) -> int:
    lowered = [name.lower() for name in names]
    if target.lower() in lowered:
        return lowered.index(target.lower())
    if target.isdecimal() and int(target) < len(names):
        return int(target)
    advice = f": pass 0 to {len(names) - 1}, or a class name"
    raise UserError(f"--target {target}{did_you_mean(target.lower(), lowered, n=3, otherwise=advice)}")


def _transform(args: argparse.Namespace, classifier: Classifier, samples: Sequence[Sample]) -> list[Tensor]:
    """The model's input for each image, (C, H, W): its evaluation transform.

    With ``--no-crop`` the shorter side is resized to the input size and the aspect ratio is kept.
    """
    transform: Any = classifier.transform()
    if args.no_crop:
        config = classifier.data_config
        resize = transforms.Resize(min(config["input_size"][1:]), str_to_interp_mode(config["interpolation"]))
        normalize = transforms.Normalize(config["mean"], config["std"])
        transform = transforms.Compose([classifier.convert, resize, transforms.ToTensor(), normalize])
    return [transform(sample.image) for sample in samples]
