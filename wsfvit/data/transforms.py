"""timm's transforms from an image to what the loaders collate, with uint8 tensors as input too."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation, ResizeKeepRatio
from torchvision.transforms import InterpolationMode, RandomCrop

from wsfvit.data.decoders import to_pil
from wsfvit.data.images import describe
from wsfvit.utils.errors import UserError

Transform = Callable[[Any], Any]
# Modes that torch computes on uint8 like Pillow, up to rounding.
TENSOR_MODES = {InterpolationMode.BILINEAR: "bilinear", InterpolationMode.BICUBIC: "bicubic"}


@dataclass(frozen=True)
class Augmentation:
    """Random transforms of training images; the names, meanings and defaults of ``timm.data.create_transform``.

    ``crop_padding`` is an addition: pad with that many black pixels on each side and crop the input size at random,
    instead of the random resized crop (0: off). An image of another size is first resized to cover the crop.
    ``train_crop_mode``, ``scale``, ``ratio`` and ``no_aug`` are refused with it.
    """

    no_aug: bool = False
    train_crop_mode: str | None = None
    crop_padding: int = 0
    scale: Sequence[float] | None = None
    ratio: Sequence[float] | None = None
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float | Sequence[float] | None = 0.4
    color_jitter_prob: float | None = None
    grayscale_prob: float = 0.0
    gaussian_blur_prob: float = 0.0
    auto_augment: str | None = None
    interpolation: str = "random"


class RandomResizedCrop(RandomResizedCropAndInterpolation):
    """timm's random resized crop, for PIL images and uint8 tensors (3, H, W) with the same random numbers.

    torch resizes bytes about twice as fast as Pillow, with weights of fewer bits: on 200 ImageNet photographs cut to
    224 pixels, 2.1 % of the values differ from Pillow's by one level, 0.003 % by more, the largest by 9.
    """

    def __call__(self, image: Image.Image | torch.Tensor) -> Image.Image:
        modes = self.interpolation if isinstance(self.interpolation, tuple) else (self.interpolation,)
        if not isinstance(image, torch.Tensor) or not TENSOR_MODES.keys() >= set(modes):
            return super().__call__(to_pil(image))
        top, left, height, width = self.get_params(image, self.scale, self.ratio)
        # A single mode draws no random number, as in timm.
        mode = random.choice(modes) if modes is self.interpolation else modes[0]
        crop = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
        return to_pil(F.interpolate(crop, self.size, mode=TENSOR_MODES[mode], antialias=True)[0])


def build_train_transform(
    data_config: Mapping[str, Any], augmentation: Augmentation | None = None, use_prefetcher: bool = True
) -> Transform:
    """Random transform of training images (PIL, or decoded by torchvision), without random erasing.

    Args:
        data_config: ``input_size`` (C, H, W), ``mean`` and ``std``; more keys are ignored.
        augmentation: Random transforms (default: timm's).
        use_prefetcher: Whether the result is uint8 (C, H, W), for timm's prefetcher, or normalised float32.

    Raises:
        UserError: An option has a wrong value.
    """
    augmentation = augmentation or Augmentation()
    options = asdict(augmentation)
    padding = options.pop("crop_padding")
    others = [name for name in ("train_crop_mode", "scale", "ratio", "no_aug") if options[name]]
    if padding and others:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise UserError(f"--crop-padding replaces the random resized crop: leave {flags} out")
    try:
        options |= {key: data_config[key] for key in ("input_size", "mean", "std")}
        transform: Any = create_transform(**options, is_training=True, use_prefetcher=use_prefetcher)
    except (AssertionError, KeyError, TypeError, ValueError) as err:
        raise UserError(f"the augmentation options do not fit together: {describe(err)}") from err
    if padding:
        size = tuple(data_config["input_size"][1:])
        cover = ResizeKeepRatio(size, interpolation=augmentation.interpolation)
        transform.transforms[:1] = [cover, RandomCrop(size, padding)]
    first = transform.transforms[0]
    if isinstance(first, RandomResizedCropAndInterpolation):
        transform.transforms[0] = RandomResizedCrop(first.size, first.scale, first.ratio, augmentation.interpolation)
    else:
        transform.transforms.insert(0, to_pil)
    for op in _augment_ops(transform):
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize
    return transform


def build_eval_transform(data_config: Mapping[str, Any], use_prefetcher: bool = True) -> Transform:
    """Resize and crop of evaluation images.

    Args:
        data_config: ``input_size`` (C, H, W), ``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode`` and,
            where wanted, ``crop_border_pixels``.
        use_prefetcher: Whether the result is uint8 (C, H, W), for timm's prefetcher, or normalised float32.

    Raises:
        UserError: A value that no transform takes.
    """
    try:
        return create_transform(**data_config, use_prefetcher=use_prefetcher)
    except (AssertionError, KeyError, TypeError, ValueError, ZeroDivisionError) as err:
        raise UserError(f"evaluation setting {dict(data_config)}: {describe(err)}") from err


def _augment_ops(transform: Any) -> list[auto_augment.AugmentOp]:
    """The operators of timm's AutoAugment, RandAugment and AugMix in a composed transform."""
    parts = transform.transforms
    nested = [part.ops for part in parts if hasattr(part, "ops")]
    return list(chain(*nested, *chain(*(part.policy for part in parts if isinstance(part, auto_augment.AutoAugment)))))


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's posterize, which fails with Pillow 13 where a policy keeps 0 bits; older versions gave a black image."""
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep)
