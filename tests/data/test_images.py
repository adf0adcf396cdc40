"""Images of all kinds load right, and those that cannot be read are named, or left out and counted."""

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from wsfvit.data import LoaderOptions, build_eval_loader, build_train_loader, create_dataset
from wsfvit.data.image_files import read_image
from wsfvit.data.images import BadImageError
from wsfvit.utils.errors import UserError

CONFIG = {"input_size": (3, 32, 32), "mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear"}
OPTIONS = LoaderOptions(batch_size=4, num_workers=0)
RAMP = np.linspace(0, 255, 40 * 40).reshape(40, 40).astype(np.uint8)


def png_bytes(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


GOOD = png_bytes(Image.fromarray(RAMP))


def write(root, files):
    """One class folder for each file: label i belongs to the i-th name."""
    for name, content in files.items():
        folder = root / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(content)
    return create_dataset("", str(root), "train")


def test_grey_of_16_bits_does_not_saturate(tmp_path):
    pixels = RAMP.astype(np.uint16) * 257
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    dataset = write(tmp_path, {"a.png": png_bytes(Image.fromarray(pixels)), "b.png": buffer.getvalue()})
    for image, _ in dataset:  # PIL goes by the content: the second is a TIFF
        assert image.mode == "RGB"
        assert (np.asarray(image) == RAMP[..., None]).all()


def tiff_bytes(pixels, **tags):
    buffer = io.BytesIO()
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[int(tag[1:])] = value
    Image.fromarray(pixels).save(buffer, "TIFF", tiffinfo=info)
    return buffer.getvalue()


WHOLE = RAMP.astype(np.float64) / 255
WIDE = {
    "float to 1": WHOLE.astype(np.float32),
    "float to 255": RAMP.astype(np.float32),
    "32 bits": (WHOLE * (2**31 - 1)).astype(np.int32),
}


@pytest.mark.parametrize("kind", WIDE)
def test_grey_is_scaled_by_the_range_of_its_type(tmp_path, kind):
    image, _ = write(tmp_path, {"a.png": tiff_bytes(WIDE[kind])})[0]
    assert np.abs(np.asarray(image).astype(int) - RAMP[..., None]).max() <= 1
    assert (np.asarray(read_image(tmp_path / "a" / "a.png")) == np.asarray(image)).all()


def test_grey_of_12_bits_is_scaled_by_its_tag(tmp_path):
    pixels = (WHOLE * 4095).astype(np.uint16)
    image, _ = write(tmp_path, {"a.png": tiff_bytes(pixels, _281=4095)})[0]
    assert (np.asarray(image)[..., 0] == pixels >> 4).all()
    assert (np.asarray(read_image(tmp_path / "a" / "a.png")) == np.asarray(image)).all()


def test_packed_grey_of_12_bits(tmp_path):
    """Three bytes hold two pixels; Pillow reads such files and does not write them."""
    pixels = (WHOLE * 4095).astype(">u2")
    bits = np.unpackbits(pixels.view(np.uint8).reshape(40, 40, 2), axis=-1)[..., 4:]
    data = np.packbits(bits.reshape(40, -1), axis=-1).tobytes()
    tags = {256: 40, 257: 40, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 40, 279: len(data)}  # pixels at byte 8
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    content = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory
    image, _ = write(tmp_path, {"a.tif": content})[0]
    assert (np.asarray(image)[..., 0] == pixels >> 4).all()


DARK = {
    "12 bits": ((WHOLE * 4095).astype(np.uint16), "values up to 4095 in 16 bits, which would come out black"),
    "a mask": (np.eye(8, dtype=np.uint16), "values up to 1 in 16 bits"),
    "16 in 32 bits": ((WHOLE * 65535).astype(np.int32), "values up to 65535 in 31 bits"),
    "negative": (np.full((8, 8), -1, np.int32), "grey values from -1 to -1"),
    "float to 1000": ((WHOLE * 1000).astype(np.float32), "neither within 0..1 nor 0..255"),
    "NaN": (np.full((8, 8), np.nan, np.float32), "grey values from nan"),
}


@pytest.mark.parametrize("kind", DARK)
def test_grey_of_an_unknown_range_is_refused(tmp_path, kind):
    pixels, message = DARK[kind]
    dataset = write(tmp_path, {"a.png": tiff_bytes(pixels)})
    with pytest.raises(BadImageError, match=message):
        dataset[0]
    with pytest.raises(UserError, match=message):
        read_image(tmp_path / "a" / "a.png")


def test_black_stays_black(tmp_path):
    image, _ = write(tmp_path, {"a.png": tiff_bytes(np.zeros((8, 8), np.uint16))})[0]
    assert not np.asarray(image).any()


@pytest.mark.parametrize(
    ("in_chans", "mode", "expected"), [(1, None, "L"), (3, None, "RGB"), (4, "RGBA", "RGBA"), (2, "LA", "LA")]
)
@pytest.mark.parametrize("build", [build_train_loader, build_eval_loader])
def test_image_mode_follows_the_channels(tmp_path, in_chans, mode, expected, build):
    write(tmp_path, {"a.png": GOOD})
    dataset = create_dataset("", str(tmp_path), "train", in_chans=in_chans, input_img_mode=mode)
    assert dataset[0][0].mode == expected
    config = CONFIG | {"input_size": (in_chans, 32, 32), "mean": (0.0,) * in_chans, "std": (1.0,) * in_chans}
    config |= {"interpolation": "random"} if build is build_train_loader else {}
    ((images, _),) = list(build(dataset, config, replace(OPTIONS, batch_size=1)))
    assert images.shape == (1, in_chans, 32, 32)


@pytest.mark.parametrize(
    ("in_chans", "mode", "message"),
    [
        (4, None, "takes 4 channels, .* --input-img-mode RGBA or --input-img-mode CMYK"),
        (12, None, "takes 12 channels, .* --in-chans 3"),
        (3, "RGBA", "has 4 channels, the model takes 3: pass --in-chans 4"),
        (1, "F", "--input-img-mode F: use one of L, LA, RGB"),
        (3, "rgb", "--input-img-mode rgb: use one of"),
    ],
)
@pytest.mark.parametrize("name", ["", "synthetic/2", "torch/mnist"])
def test_a_mode_of_other_channels_is_refused(tmp_path, in_chans, mode, message, name):
    write(tmp_path, {"a.png": GOOD})
    with pytest.raises(UserError, match=message):
        create_dataset(name, str(tmp_path), "train", in_chans=in_chans, input_img_mode=mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb(tmp_path, mode):
    picture = Image.merge("RGB", [Image.fromarray(np.full((9, 5), value, np.uint8)) for value in (255, 0, 255)])
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    (tmp_path / "a").mkdir()
    picture.convert(mode).save(tmp_path / "a" / f"a.{suffix}")
    image, label = create_dataset("", str(tmp_path), "train")[0]
    assert (image.mode, image.size, label) == ("RGB", (5, 9), 0)
    expected = picture.convert(mode).convert("RGB")
    assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).max() <= (8 if suffix == "jpg" else 0)


def test_exif_orientation_is_not_applied(tmp_path):
    """As in timm and torchvision: pretrained weights have seen the pixels as they are stored."""
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(RAMP[:20]).save(tmp_path / "a" / "a.jpg", exif=exif)
    image, _ = create_dataset("", str(tmp_path), "train")[0]
    assert image.size == (40, 20)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1)])
def test_tiny_and_thin_images_pass_both_loaders(tmp_path, size):
    dataset = write(tmp_path, {"a.png": png_bytes(Image.new("RGB", size, (255, 0, 51)))})
    for build in (build_train_loader, build_eval_loader):
        config = CONFIG if build is build_eval_loader else CONFIG | {"interpolation": "random"}
        ((images, labels),) = list(build(dataset, config, replace(OPTIONS, batch_size=1)))
        assert images.shape == (1, 3, 32, 32) and torch.isfinite(images).all() and labels.tolist() == [0]
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.tensor([1.0, 0.0, 0.2]))


def bomb():
    """A PNG of 20000 x 20000 white pixels."""
    return png_bytes(Image.new("1", (20000, 20000), 1))


BAD = {
    "empty": b"",
    "text": b"this is not a picture",
    "truncated": GOOD[:-60],
    "header": GOOD[:20] + b"\xff" * 8 + GOOD[28:],
    "bomb": bomb(),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_image_is_named(tmp_path, kind, num_workers):
    dataset = write(tmp_path, {"a.png": GOOD, "b.png": BAD[kind], "c.png": GOOD})
    with pytest.raises(BadImageError, match=r"b\.png' \(index 1\): \w+: "):
        dataset[1]
    loader = build_eval_loader(dataset, CONFIG, replace(OPTIONS, num_workers=num_workers))
    with pytest.raises(UserError, match=r"^cannot read image '.*b\.png' \(index 1\): .*--on-bad-image skip$"):
        list(loader)


def test_a_missing_file_is_named(tmp_path):
    dataset = write(tmp_path, {"a.png": GOOD, "b.png": GOOD})
    (tmp_path / "b" / "b.png").unlink()
    with pytest.raises(BadImageError, match=r"b\.png' \(index 1\): FileNotFoundError"):
        dataset[1]


@pytest.mark.parametrize("use_prefetcher", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_skip_leaves_out_and_counts(tmp_path, caplog, num_workers, use_prefetcher):
    names = ["a.png", "b.png", "c.png", "d.png", "e.png", "f.png"]
    dataset = write(tmp_path, {name: b"" if name in ("b.png", "e.png") else GOOD for name in names})
    options = replace(OPTIONS, num_workers=num_workers, use_prefetcher=use_prefetcher, on_bad_image="skip")
    loader = build_eval_loader(dataset, CONFIG, options)
    for _ in range(2):
        assert [labels.tolist() for images, labels in loader if len(images) == len(labels)] == [[0, 2, 3], [5]]
    assert list(loader.bad_images) == [1, 4]
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 2 and "b.png" in warnings[0] and "e.png" in warnings[1]
    train = build_train_loader(dataset, CONFIG, replace(options, batch_size=6))
    assert sorted(sum((labels.tolist() for _, labels in train), [])) == [0, 2, 3, 5]


def test_a_batch_of_bad_images_is_refused(tmp_path):
    dataset = write(tmp_path, {"a.png": b"", "b.png": b""})
    with pytest.raises(UserError, match="all 2 images of a batch cannot be read, the first: .*a.png"):
        list(build_eval_loader(dataset, CONFIG, replace(OPTIONS, on_bad_image="skip")))


def test_a_bad_item_of_a_foreign_dataset_is_numbered():
    class Foreign(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            raise RuntimeError("disk on fire")

    with pytest.raises(UserError, match="cannot read item 0 of the dataset: RuntimeError: disk on fire"):
        list(build_eval_loader(Foreign(), CONFIG, OPTIONS))


def test_an_error_in_a_transform_is_a_defect(tmp_path):
    """Only the reading is excused: a transform that fails keeps its own exception."""
    dataset = write(tmp_path, {"a.png": GOOD})
    loader = build_eval_loader(dataset, CONFIG, replace(OPTIONS, on_bad_image="skip"))
    loader._loader.dataset.transform = lambda image: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(loader)


def test_empty_class_folders_are_named(tmp_path):
    write(tmp_path, {"a.png": GOOD, "c.png": GOOD})
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    with pytest.raises(UserError, match=r"1 class folders .* hold no .* images \(b\).*--class-map"):
        create_dataset("", str(tmp_path), "train")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    dataset = create_dataset("", str(tmp_path), "train", class_map=str(tmp_path / "classes.txt"))
    assert [label for _, label in dataset] == [0, 2]


def test_a_missing_split_is_not_replaced_by_everything(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "x.png").write_bytes(GOOD)
    assert len(create_dataset("", str(tmp_path), "train")) == 2
    with pytest.raises(UserError, match="no folder for split 'validation', only train"):
        create_dataset("", str(tmp_path), "validation")
