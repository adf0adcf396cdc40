"""The decoders of ``--decoder``: equal pixels, equal random numbers, and the same images refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from wsfvit.data import Augmentation, LoaderOptions, build_eval_loader, build_train_loader, create_dataset, seed_all
from wsfvit.data.decoders import decode_image, to_pil
from wsfvit.data.images import BadImageError
from wsfvit.data.transforms import build_train_transform
from wsfvit.utils.errors import UserError

CONFIG = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.25,) * 3}
X, Y = np.meshgrid(np.arange(96), np.arange(64))
PICTURE = Image.fromarray(np.stack([X * 2, Y * 3, (X * Y) % 256], axis=2).astype(np.uint8))
TURNED = Image.Exif()
TURNED[0x0112] = 6
FILES = {
    "plain": (PICTURE, {}),
    "progressive": (PICTURE, {"progressive": True}),
    "full chroma": (PICTURE, {"subsampling": 0}),
    "half chroma": (PICTURE, {"subsampling": 1}),
    "odd size": (PICTURE.crop((0, 0, 61, 37)), {"subsampling": 2}),
    "RGB inside": (PICTURE, {"keep_rgb": True}),
    "EXIF orientation": (PICTURE, {"exif": TURNED}),
    "grey": (PICTURE.convert("L"), {}),
    "CMYK": (PICTURE.convert("CMYK"), {}),
}


def encode(image, form="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decode(blob, decoder, mode="RGB"):
    return decode_image(io.BytesIO(blob), mode, decoder)


@pytest.mark.parametrize("kind", FILES)
def test_both_decoders_give_equal_pixels(kind):
    image, options = FILES[kind]
    blob = encode(image, **options)
    expected, found = decode(blob, "pillow"), decode(blob, "torchvision")
    assert isinstance(found, torch.Tensor) == (kind not in ("grey", "CMYK"))
    assert expected.mode == "RGB" and np.array_equal(to_pil(found), expected)


def test_other_files_and_modes_are_left_to_pillow():
    assert np.array_equal(decode(encode(PICTURE, "PNG"), "torchvision"), PICTURE)
    assert decode(encode(PICTURE), "torchvision", "L").mode == "L"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random", "lanczos"])
def test_random_numbers_are_the_same_and_pixels_differ_by_rounding(interpolation):
    # Pillow turns no picture by lanczos.
    policy = None if interpolation == "lanczos" else "rand-m9-mstd0.5-inc1"
    augmentation = Augmentation(auto_augment=policy, interpolation=interpolation)
    transform = build_train_transform(CONFIG, augmentation)
    crop = transform.transforms[0]
    blob = encode(PICTURE.resize((300, 200)), quality=95)
    for seed in range(8):
        pixels, drawn = [], []
        for decoder in ("pillow", "torchvision"):
            seed_all(seed)
            pixels.append(np.asarray(crop(decode(blob, decoder))).astype(int))
            seed_all(seed)
            assert transform(decode(blob, decoder)).shape == (3, 64, 64)
            drawn.append(torch.rand(1).item() + np.random.rand())
        assert drawn[0] == drawn[1]
        difference = np.abs(pixels[0] - pixels[1])
        # One level in each of the two directions of a resize.
        assert difference.max() <= (0 if interpolation == "lanczos" else 2) and difference.mean() < 0.1


@pytest.mark.parametrize("options", [{"no_aug": True}, {"train_crop_mode": "rkrc"}, {"train_crop_mode": "rkrr"}])
def test_other_crops_see_pillows_pictures(options):
    transform = build_train_transform(CONFIG, Augmentation(**options))
    pixels = []
    for decoder in ("pillow", "torchvision"):
        seed_all(1)
        pixels.append(transform(decode(encode(PICTURE), decoder)))
    assert torch.equal(torch.as_tensor(pixels[0]), torch.as_tensor(pixels[1]))


def write(root, *blobs):
    (root / "a").mkdir()
    for index, blob in enumerate(blobs):
        (root / "a" / f"{index}.jpg").write_bytes(blob)


BLOB = encode(PICTURE)
BAD = {"empty": b"", "header": BLOB[:30], "cut": BLOB[: len(BLOB) // 2], "text": b"no picture", "tables": BLOB[:200]}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named_as_by_pillow(tmp_path, kind):
    write(tmp_path, BLOB, BAD[kind])
    messages = []
    for decoder in ("pillow", "torchvision"):
        with pytest.raises(BadImageError, match=r"1\.jpg' \(index 1\): ") as raised:
            create_dataset("", str(tmp_path), "train", decoder=decoder)[1]
        messages.append(str(raised.value).partition("<")[0])  # PIL's text may hold an address
    assert messages[0] == messages[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loaders_take_mixed_files(tmp_path, num_workers):
    write(tmp_path, BLOB, encode(PICTURE.convert("L")), BLOB[:300], encode(PICTURE, "PNG"), BLOB)
    dataset = create_dataset("", str(tmp_path), "train", decoder="torchvision")
    options = LoaderOptions(batch_size=5, num_workers=num_workers, on_bad_image="skip")
    ((images, labels),) = list(build_train_loader(dataset, CONFIG, options))
    assert images.shape == (4, 3, 64, 64) and labels.tolist() == [0] * 4
    evaluation = create_dataset("", str(tmp_path), "train")
    ((images, _),) = list(build_eval_loader(evaluation, CONFIG, options))
    assert images.shape == (4, 3, 64, 64)


def test_wrong_decoders_are_refused(tmp_path):
    with pytest.raises(UserError, match="unknown decoder 'magic': use pillow or torchvision"):
        create_dataset("", str(tmp_path), "train", decoder="magic")
    for name in ("digits", "synthetic/10", "wds/"):
        with pytest.raises(UserError, match=f"image folders, .tar files and hfds/, not for '{name}'"):
            create_dataset(name, str(tmp_path), "train", decoder="torchvision")
