"""Class activation maps: the layout of any model's features, the maps themselves, and cam_image.py."""

import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import cam_image
from wsfvit.analysis.cam import Sample, _pair_models, compute_cams, explain, load_samples, run_cam
from wsfvit.analysis.layers import find_target_layer, model_layout, to_maps
from wsfvit.cli.tools import METHODS, cam_parser
from wsfvit.data import dataset_class_names
from wsfvit.factory.data import build_dataset
from wsfvit.inference.predictor import load_classifier
from wsfvit.utils.errors import UserError
from wsfvit.utils.figures import DPI
from wsfvit_cli import dispatch

LAYOUTS = {
    "nchw": lambda maps: maps,
    "nhwc": lambda maps: maps.permute(0, 2, 3, 1),
    "tokens": lambda maps: maps.flatten(2).transpose(1, 2),
    "class token": lambda maps: F.pad(maps.flatten(2).transpose(1, 2), (0, 0, 1, 0)),
    "registers": lambda maps: F.pad(maps.flatten(2).transpose(1, 2), (0, 0, 5, 0)),
}


class Detector(nn.Module):
    """Class 0 is red light, class 1 blue light, seen in 8x8 patches and averaged; its map comes in any layout."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.patches = nn.Conv2d(3, 2, 8, stride=8, bias=False)
        self.map = nn.Identity()
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.patches.weight.zero_()
            self.patches.weight[0, 0] = self.patches.weight[1, 2] = 1 / 64
            self.head.weight.copy_(torch.tensor([[2.0, -1.0], [-1.0, 3.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.map(LAYOUTS[self.layout](self.patches(x)))
        dims = {"nchw": (2, 3), "nhwc": (1, 2)}.get(self.layout, 1)
        return self.head(maps.sum(dims))


def lights() -> torch.Tensor:
    """Two images of 32x48: red and blue light in patch (row, column) (0, 4) and (3, 1), then (2, 0) and (1, 5)."""
    images = torch.zeros(2, 3, 32, 48)
    for index, channel, row, column in ((0, 0, 0, 4), (0, 2, 3, 1), (1, 0, 2, 0), (1, 2, 1, 5)):
        images[index, channel, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1
    return images


def brightest_patch(cam: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) // 8 for i in np.unravel_index(cam.argmax(), cam.shape))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_maps(layout):
    maps = torch.randn(2, 7, 3, 5)
    found = to_maps(LAYOUTS[layout](maps), (96, 160))
    assert torch.equal(found, maps)


def test_layouts_of_odd_images_and_things_that_are_no_maps():
    assert to_maps(torch.zeros(1, 15 * 20, 7), (230, 320)).shape == (1, 7, 15, 20)
    assert to_maps(torch.zeros(1, 2, 4, 4, 4), (32, 32)) is None
    assert to_maps(torch.zeros(1, 2), (32, 32)) is None
    assert to_maps(torch.zeros(1, 8, 2, 40), (32, 32)) is None
    cube = torch.randn(1, 4, 4, 4)
    assert torch.equal(to_maps(cube, (32, 32)), cube)
    assert torch.equal(to_maps(cube, (32, 32), channels_last=True), cube.permute(0, 3, 1, 2))
    # Both 16 and 9 + 8 tokens make a square; what the model says goes first.
    assert to_maps(torch.zeros(1, 17, 2), (64, 64), prefix_tokens=8).shape == (1, 2, 3, 3)
    assert to_maps(torch.zeros(1, 17, 2), (64, 64), prefix_tokens=1).shape == (1, 2, 4, 4)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "eigencam"])  # which does not ask for the class
@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_light_up_where_the_evidence_is(layout, method):
    model = Detector(layout).eval()
    layer = find_target_layer(model, lights()[:1])
    assert (layer.name, layer.grid) == ("map", (4, 6))
    red = compute_cams(model, layer, lights(), [0, 0], method)
    mixed = compute_cams(model, layer, lights(), [1, 0], method)
    assert red.shape == (2, 32, 48)
    assert [brightest_patch(cam) for cam in red] == [(0, 4), (2, 0)]
    assert [brightest_patch(cam) for cam in mixed] == [(3, 1), (2, 0)]


def test_gradcam_is_its_formula():
    """Under average pooling and a linear head the weight of a channel is its head weight."""
    model = Detector("nhwc").eval()
    images = torch.rand(3, 3, 32, 48)
    found = compute_cams(model, find_target_layer(model, images[:1], "map"), images, [0, 1, 0])
    weights = model.head.weight[[0, 1, 0]]
    maps = (model.patches(images) * weights[:, :, None, None]).sum(1, keepdim=True).relu()
    lowest = maps.amin((2, 3), keepdim=True)
    maps = (maps - lowest) / (maps - lowest).amax((2, 3), keepdim=True)
    maps = F.interpolate(maps, size=(32, 48), mode="bilinear")[:, 0]
    # The package stretches to 0..1 once more after resizing.
    lowest = maps.amin((1, 2), keepdim=True)
    expected = (maps - lowest) / (maps - lowest).amax((1, 2), keepdim=True)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)


SMALL_SWIN = {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 3, 4), "window_size": 4}
MODELS = {
    "wsfvit_p0_224": ("stages.2", {"img_size": 64}),
    "wsfvit_dwt_p0_224": ("stages.2", {"img_size": 64}),
    "resnet18": ("layer3", {}),
    "convnext_atto": ("stages.2", {}),
    # The class score depends on the last block's class token alone.
    "vit_tiny_patch16_224": ("blocks.10", {"img_size": 64}),
    "swin_tiny_patch4_window7_224": ("layers.2", {"img_size": 64, **SMALL_SWIN}),
    "maxvit_rmlp_pico_rw_256": ("stages.2", {"img_size": 64}),
    "wavemix_192_16_l3": ("layers.1", {"depth": 2, "embed_dim": 16, "patch_size": 16}),
    "wacnn_resnet18": ("stages.2", {"widths": (8, 8, 16), "stem_width": 8}),
    **{
        f"{mixer}_vit_xs_patch4_32": ("blocks.1", {"depth": 2, "embed_dim": 24, "img_size": 64, "groups": 8})
        for mixer in ("mwa", "afno", "gfn", "sa")
    },
}
# Side of the map of 64 x 64 pixels; 4 for all others.
SIDES = {"wacnn_resnet18": 16, **{f"{mixer}_vit_xs_patch4_32": 16 for mixer in ("mwa", "afno", "gfn", "sa")}}


@pytest.mark.parametrize("name", MODELS)
def test_registered_models_need_no_reshape_code(name):
    """Stage and layout are found by themselves; timm's own features in NCHW are the oracle."""
    expected, kwargs = MODELS[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **kwargs).eval().requires_grad_(False)
    images = torch.randn(2, 3, 64, 64)
    layer = find_target_layer(model, images[:1])
    side = SIDES.get(name, 4)
    assert (layer.name, layer.grid) == (expected, (side, side))
    seen = []
    handle = layer.module.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    features = model.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    handle.remove()
    maps = to_maps(seen[0], (64, 64), **model_layout(model))
    assert any(item.shape == maps.shape and torch.equal(item, maps) for item in features)
    cams = compute_cams(model, layer, images, [3, 5])
    assert cams.shape == (2, 64, 64) and np.isfinite(cams).all()
    assert cams.min() >= 0 and cams.max() <= 1
    alone = compute_cams(model, layer, images[1:], [5])
    np.testing.assert_allclose(cams[1:], alone, atol=1e-3)


def test_layers_that_explain_nothing_are_refused():
    model = timm.create_model("test_vit", img_size=64).eval()
    image = torch.randn(1, 3, 64, 64)
    last = f"blocks.{len(model.blocks) - 1}"
    with pytest.raises(UserError, match=f"'{last}' has no map that the class score depends on"):
        find_target_layer(model, image, last)
    with pytest.raises(UserError, match="no layer 'blocks.x': did you mean blocks"):
        find_target_layer(model, image, "blocks.x")
    nn.init.zeros_(model.head.weight)
    with pytest.raises(UserError, match="all zeros"):
        find_target_layer(model, image)


def png(path) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.std() > 10, "an empty figure"
    return pixels


def tiny_args(*more: str):
    return cam_parser().parse_args(["--device", "cpu", "-j", "1", *more])


def test_first_use_makes_sample_images_and_says_untrained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", "x --data-dir ./images --img-size 32 --subbands --no-crop --device cpu --out o/cam.png".split()
    )
    cam_image.main()
    out = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"china.jpg", "flower.jpg", "README.txt"}
    assert "created images/ with two sample photographs" in out
    assert "wsfvit_p0_224 untrained, random weights" in out
    assert png("o/cam.png").shape != png("o/cam-subbands.png").shape
    run_cam(tiny_args("--models", "test_resnet", "test_vit", "--method", "gradcam", "layercam", "--out", "o/4.png"))
    assert "created images/" not in capsys.readouterr().out
    assert png("o/4.png").shape[1] > 2 * png("o/cam.png").shape[1]


def test_checkpoints_of_a_data_set(trained, tmp_path, capsys):
    """Two columns for two weights files; samples spread over the classes; captions tell right from wrong."""
    last = str(trained.run_dir / "last.pth.tar")
    args = tiny_args("--dataset", "digits", "--num-images", "10", "--crop-pct", "1", "-b", "3", "--target", "7")
    dataset = build_dataset(args, args.split, None, in_chans=3)
    samples, names = load_samples(args, dataset), dataset_class_names(dataset)
    assert [sample.label for sample in samples] == list(range(10))
    assert names == [str(digit) for digit in range(10)]
    classifier = load_classifier(args, None, last, names)
    (column,) = explain(args, classifier, samples)
    guesses = classifier.probabilities(torch.stack([classifier.transform()(p.image) for p in samples])).argmax(1)
    assert column.correct == (guesses == torch.arange(10)).tolist()
    assert all(caption.startswith("7  ") for caption in column.captions)
    assert column.cams[9].shape == column.pixels[9].shape[:2] == (32, 32)
    # Denormalised, the pixels are those of the data set again.
    resized = (
        samples[4]
        .image.convert("L")
        .resize((32, 32), Image.Resampling[classifier.data_config["interpolation"].upper()])
    )
    np.testing.assert_allclose(column.pixels[4][..., 0], np.asarray(resized) / 255, atol=0.02)
    run_cam(tiny_args("--dataset", "digits", "--checkpoint", last, last, "--out", str(tmp_path / "c.png")))
    # Two columns leave room for two images in a row.
    assert png(tmp_path / "c.png").shape[1] == round(6 * 2.1 * DPI)
    assert "untrained" not in capsys.readouterr().out


def test_no_crop_keeps_the_aspect_ratio():
    args = tiny_args("--no-crop", "--models", "test_resnet", "--img-size", "40")
    image = Image.fromarray(np.arange(60 * 100 * 3, dtype=np.uint8).reshape(60, 100, 3))
    samples = [Sample("wide", image), Sample("tall", image.transpose(Image.Transpose.ROTATE_90))]
    (column,) = explain(args, load_classifier(args, "test_resnet", None), samples)
    assert [cam.shape for cam in column.cams] == [(40, 66), (66, 40)]
    args = tiny_args("--no-crop", "--models", "test_vit", "--img-size", "32")
    with pytest.raises(UserError, match=r"test_vit cannot be run on images of 32x53.*leave out --no-crop"):
        explain(args, load_classifier(args, "test_vit", None), samples)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["nowhere"], "'nowhere' does not exist"),
        (["empty"], "holds no images"),
        (["broken"], "broken/a.png': not a readable image"),
        (["cut"], "cut/a.png': "),
        (["good", "--checkpoint", "a", "b", "--models", "test_vit"], "one weights file per model"),
        (["good", "--models", "test_resnet", "--subbands"], "has a wavelet stem"),
        (["good", "--models", "test_resnet", "--target", "tenche"], "did you mean 'tench"),
        (["good", "--models", "test_resnet", "--target", "1000"], "pass 0 to 999"),
        (["good", "--models", "test_resnet", "--layer", "layer9"], "no layer 'layer9'"),
        (["good", "--models", "test_resnet", "--out", "cam.txt"], "must end in .png"),
        (["good", "--models", "wsfvit_p0_224", "--pretrained"], "no pretrained weights for wsfvit_p0_224"),
        (["good", "--models", "test_resnet", "--in-chans", "4"], "takes 4 channels"),
    ],
)
def test_mistakes_are_one_line(argv, expected, tmp_path, monkeypatch, error_of):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken", "cut", "good"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "a.png").write_text("no image")
    noise = Image.effect_noise((64, 64), 50)
    noise.save(tmp_path / "good" / "a.png")
    (tmp_path / "cut" / "a.png").write_bytes((tmp_path / "good" / "a.png").read_bytes()[:1000])
    monkeypatch.setattr(sys, "argv", ["x", *argv, "--img-size", "32", "--device", "cpu"])
    assert expected in error_of(cam_image.main)


def test_a_mistake_leaves_nothing_behind(tmp_path, monkeypatch, error_of):
    """Neither the sample photographs nor the folder of the figure."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for argv, expected in (
        (["--checkpoint", "none.pth"], "'none.pth' does not exist"),
        (["--models", "test_resnet", "--subbands"], "has a wavelet stem"),
        (["--out", "file/cam.png"], "cannot be made: 'file' is not a folder"),
    ):
        monkeypatch.setattr(sys, "argv", ["x", *argv, "--device", "cpu"])
        assert expected in error_of(cam_image.main)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def write_classes(root):
    for name, color in (("cat", "red"), ("other", "blue")):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), color).save(root / name / "a.png")
    return str(root)


def test_an_image_folder_shows_the_true_class(tmp_path):
    args = cam_parser().parse_args([write_classes(tmp_path / "data")])
    one, two = load_samples(args, None, {"cat", "dog"})
    assert (one.name, one.class_name) == ("a.png\nclass cat", "cat") and (two.name, two.class_name) == ("a.png", None)
    assert [one.is_correct(index, ["dog", "cat"]) for index in (0, 1)] == [False, True]
    assert one.is_correct(0, ["a", "b"]) is None and two.is_correct(0, ["dog", "cat"]) is None
    assert Sample("x", one.image, 1).is_correct(1, []) is True


def test_a_map_without_positive_evidence_says_so(tmp_path, monkeypatch):
    args = cam_parser().parse_args([write_classes(tmp_path / "data"), "--device", "cpu", "--img-size", "32"])
    classifier = load_classifier(args, "test_resnet", None)
    maps = [np.zeros((32, 32)), np.ones((32, 32))]
    monkeypatch.setattr("wsfvit.analysis.cam.compute_cams", lambda *args: maps)
    (column,) = explain(args, classifier, load_samples(args, None))
    assert ["no positive evidence" in caption for caption in column.captions] == [True, False]


def test_a_checkpoint_beside_pretrained_weights(monkeypatch, error_of, tmp_path):
    monkeypatch.chdir(tmp_path)
    loaded = []
    monkeypatch.setattr(
        "wsfvit.factory.model.build_pretrained", lambda args, flag: loaded.append(args) or timm.create_model("test_vit")
    )
    args = cam_parser().parse_args(
        ["--device", "cpu", "--models", "test_resnet", "test_vit", "--checkpoint", "a", "pretrained"]
    )
    assert _pair_models(args) == [("test_resnet", "a"), ("test_vit", "pretrained")]
    assert load_classifier(args, "test_vit", "pretrained").trained
    assert loaded[0].model == "test_vit" and loaded[0].checkpoint is None
    argv = ["cam", "--checkpoint", "pretrained", "--device", "cpu"]
    assert "pretrained needs --models" in error_of(lambda: dispatch(argv))
