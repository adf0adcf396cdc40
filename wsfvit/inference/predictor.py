"""Classifier: a model with weights, evaluation transform and class names; and the predict command."""

import argparse
import copy
import functools
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.utils import random_seed
from torch import Tensor

from wsfvit.checkpoint.io import note_on_other_model, saved_data_config
from wsfvit.data.decoders import convert_image, image_mode
from wsfvit.data.image_files import find_images, read_image
from wsfvit.data.transforms import build_eval_transform
from wsfvit.factory.data import DataConfig, resolve_data
from wsfvit.factory.model import fuse_model, load_model, wants_fusion
from wsfvit.utils.distributed import resolve_device
from wsfvit.utils.errors import UserError, first_line
from wsfvit.utils.figures import figure_path, new_panels, save_figure, show_image
from wsfvit.utils.files import open_regular, to_json
from wsfvit.utils.finite import count_nonfinite, refuse_nonfinite

MAX_DRAWN = 48
# In place of a weights file: timm's pretrained weights.
PRETRAINED = "pretrained"


@dataclass(frozen=True)
class Classifier:
    """A model ready for inference: in eval mode, on its device, with frozen parameters."""

    name: str  # of the model
    trained: bool  # whether weights were loaded; otherwise they are random
    model: Any
    data_config: DataConfig  # the evaluation setting of ``resolve_data``
    class_names: list[str]  # one per class
    device: torch.device
    input_img_mode: str | None = None  # PIL mode of the images that the model was trained on; None for grey or RGB

    @property
    def mode(self) -> str:
        """The PIL mode of the model's images; raise a ``UserError`` if none has its number of channels."""
        return image_mode(self.data_config["input_size"][0], self.input_img_mode)

    def convert(self, image: Image.Image) -> Image.Image:
        """The image in the mode of the model; a ``UserError`` if that would make up a channel, beyond grey and RGB."""
        if image.mode != self.mode and self.mode not in ("L", "RGB"):
            raise UserError(
                f"{self.name} takes {self.mode} images, this one is {image.mode}: wsfvit predict reads them"
            )
        return convert_image(image, self.mode)

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The evaluation transform: image -> (C, H, W) float32, normalised."""
        to_tensor = build_eval_transform(self.data_config, use_prefetcher=False)
        return lambda image: to_tensor(self.convert(image))

    def to_pixels(self, images: Tensor) -> np.ndarray:
        """Normalised images (B, C, H, W) as pixels (B, H, W, 1 or 3), float32 from 0 to 1; other channels left out."""
        mean, std = (torch.tensor(self.data_config[key]).view(-1, 1, 1) for key in ("mean", "std"))
        pixels: np.ndarray = (images.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        return pixels[..., : 3 if len(mean) >= 3 else 1]

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (B, K) float32 on the CPU of images (B, C, H, W).

        A size that the model does not take, and outputs that are not finite, raise a ``UserError``.
        """
        try:
            logits = self.model(images.to(self.device))
        except (AssertionError, RuntimeError, ValueError) as err:
            size = "x".join(map(str, images.shape[2:]))
            raise UserError(f"{self.name} cannot be run on images of {size} pixels: {first_line(err)}") from err
        refuse_nonfinite(int(count_nonfinite(logits)), len(logits))
        return logits.float().softmax(dim=1).cpu()


def load_classifier(
    args: argparse.Namespace, model_name: str | None, checkpoint: str | None, names: Sequence[str] | None = None
) -> Classifier:
    """Build a model and load its weights; raise a ``UserError`` where a name, value or file does not fit.

    Args:
        args: Arguments of ``add_model_input``, ``add_weights`` and ``add_image_input``.
        model_name: Name of the model, or None for the checkpoint's.
        checkpoint: Weights file, "pretrained" for timm's, or None: ``--pretrained`` weights, or random ones.
        names: Class names from the data, if the checkpoint has none; see ``resolve_class_names``.
    """
    args = copy.copy(args)
    if checkpoint == PRETRAINED and not Path(checkpoint).exists():
        args.pretrained, checkpoint = True, None
    args.model, args.checkpoint = model_name, checkpoint
    device = resolve_device(args.device)
    if checkpoint and args.pretrained:
        raise UserError("--checkpoint and --pretrained both name weights: leave one out")
    random_seed(0)  # untrained models have the same weights at every call
    args, model, meta = load_model(args, args.pretrained)
    data_config = resolve_data(args, model, saved_data_config(args.model, meta))
    if note := note_on_other_model(args, meta):
        print(note, file=sys.stderr)  # stdout may be parsed
    model.to(device).eval().requires_grad_(False)
    class_names = resolve_class_names(args.class_map, meta.get("class_names") or names, model)
    trained, mode = bool(checkpoint or args.pretrained), getattr(args, "input_img_mode", None)
    return Classifier(args.model, trained, model, data_config, class_names, device, mode)


def resolve_class_names(class_map: str, names: Sequence[str] | None, model: Any) -> list[str]:
    """One name per class: those of the file ``class_map``, else ``names``, else ImageNet's, else numbers.

    WordNet ids, the names of ImageNet's folders, are replaced by words. A file that cannot be read or has another
    number of names than the model has classes raises a ``UserError``.
    """
    if class_map:
        try:
            with open_regular(class_map) as file:
                names = file.read().decode("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as err:
            raise UserError(f"--class-map {class_map} is not a readable text file: write one name per line") from err
        names = [name.strip() for name in names if name.strip()]
        if len(names) != model.num_classes:
            raise UserError(f"--class-map {class_map} has {len(names)} names, the model {model.num_classes} classes")
    if names and len(names) == model.num_classes:
        return in_words(names)
    subset = infer_imagenet_subset(model)
    if subset:
        return in_words(ImageNetInfo(subset).label_names()[: model.num_classes])
    return [f"class {i}" for i in range(model.num_classes)]


wordnet = functools.cache(ImageNetInfo)  # reads tables of words: once, not for every image


def in_words(names: Sequence[str]) -> list[str]:
    """Replace WordNet ids by the first of their synonyms, if all names are such ids."""
    if not all(re.fullmatch(r"n\d{8}", name) for name in names):
        return list(names)
    info = wordnet()  # covers all of WordNet's nouns, whatever the subset
    try:
        return [info.label_name_to_description(name).split(",")[0] for name in names]
    except KeyError:
        return list(names)


def run_predict(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the predict command: print the most probable classes of every image, and draw them on request.

    Returns for each image ``image`` (path), ``label`` if its folder is named as a class, and ``predictions``: ``class``
    (index), ``name`` and ``probability``. An image that could not be read raises a ``UserError`` after the others are
    predicted.
    """
    if not args.checkpoint and not args.pretrained:
        raise UserError("no weights: pass --checkpoint FILE, or --pretrained")
    if args.pretrained and not (args.model or args.checkpoint):
        raise UserError("--pretrained needs --model NAME")
    out = figure_path(args.out) if args.out else None
    paths = find_images(args.images)
    classifier = load_classifier(args, args.model, args.checkpoint)
    if wants_fusion(args, classifier.model, classifier.device):
        classifier = replace(classifier, model=fuse_model(classifier.name, classifier.model))
    transform = classifier.transform()
    results: list[dict[str, Any]] = []
    drawn: list[np.ndarray] = []
    unreadable: list[str] = []
    for batch in _batches(paths, args, classifier.mode, unreadable):
        images = torch.stack([transform(image) for _, image in batch])
        probabilities = classifier.probabilities(images)
        for (path, _), row in zip(batch, probabilities, strict=True):
            (folder,) = in_words([path.parent.name])
            label = {"label": folder} if folder in classifier.class_names else {}
            results.append({"image": str(path), **label, "predictions": _top(row, args.topk, classifier.class_names)})
            print(to_json(results[-1]) if args.json else _as_text(results[-1]), flush=True)
        if out and len(drawn) < MAX_DRAWN:
            drawn += list(classifier.to_pixels(images))[: MAX_DRAWN - len(drawn)]
    if out and drawn:
        save_figure(draw_predictions(results[: len(drawn)], drawn, classifier.name), out)
        shown = f" (the first {MAX_DRAWN} images)" if len(results) > MAX_DRAWN else ""
        print(f"figure: {out}{shown}", file=sys.stderr)
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(paths)} images could not be read: {'; '.join(unreadable)}")
    return results


def draw_predictions(results: Sequence[dict[str, Any]], images: Sequence[np.ndarray], title: str) -> Any:
    """A figure with each image, as the model receives it, beside bars of its most probable classes.

    There is one image, (H, W, C) from 0 to 1, per result of ``run_predict``.
    """
    columns = 1 if len(images) == 1 else 2
    rows = -(-len(images) // columns)
    aspect = max(image.shape[0] / image.shape[1] for image in images)
    figure, panels = new_panels(rows, 2 * columns, 2.3, max(1.2, 2.1 * min(aspect, 1.5)))
    pairs = panels.reshape(-1, 2)
    for axis in pairs[len(images) :].flat:
        axis.set_axis_off()
    for (left, right), result, image in zip(pairs, results, images, strict=False):
        show_image(left, image)
        label = f"\nlabel: {result['label']}" if "label" in result else ""
        left.set_title(textwrap.fill(Path(result["image"]).name, 36) + label, fontsize=8)
        _draw_bars(right, result["predictions"])
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_bars(axis: Any, predictions: Sequence[dict[str, Any]]) -> None:
    heights = range(len(predictions), 0, -1)
    colors = ["tab:blue"] + ["lightsteelblue"] * (len(predictions) - 1)
    axis.barh(heights, [entry["probability"] for entry in predictions], height=0.4, align="edge", color=colors)
    for height, entry in zip(heights, predictions, strict=True):
        text = textwrap.fill(f"{entry['name']}  {100 * entry['probability']:.1f} %", 40)
        axis.text(0, height - 0.06, text, fontsize=7, va="top")
    axis.set_xlim(0, 1)
    axis.set_ylim(0.4, len(predictions) + 0.6)
    axis.set_axis_off()


def _batches(
    paths: Sequence[Path], args: argparse.Namespace, mode: str, unreadable: list[str]
) -> Iterator[list[tuple[Path, Image.Image]]]:
    """Batches of readable images, read by threads; messages about the others are appended to ``unreadable``."""

    def read(path: Path) -> tuple[Path, Image.Image] | None:
        try:
            return path, read_image(path, mode)
        except UserError as err:
            unreadable.append(str(err))
            return None

    remaining = iter(paths)
    with ThreadPoolExecutor(max(1, args.workers)) as pool:
        while chunk := list(islice(remaining, args.batch_size)):
            batch = [pair for pair in pool.map(read, chunk) if pair is not None]
            if batch:
                yield batch


def _top(probabilities: Tensor, topk: int, names: Sequence[str]) -> list[dict[str, Any]]:
    best = probabilities.topk(min(topk, len(probabilities)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [{"class": index, "name": names[index], "probability": value} for index, value in pairs]


def _as_text(result: dict[str, Any]) -> str:
    lines = [f"  {100 * entry['probability']:6.2f} %  {entry['name']}" for entry in result["predictions"]]
    label = f" (label: {result['label']})" if "label" in result else ""
    return "\n".join([result["image"] + label, *lines])
