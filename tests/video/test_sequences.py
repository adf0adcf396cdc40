"""Users' own data: arrays, folders of images and videos, how sequences are cut, and a clear error for each bad one."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from wsfvit.utils.errors import UserError
from wsfvit.video.data.sequences import ArrayClip, ClipSequences, Cut, open_sequences, to_unit_range
from wsfvit.video.data.video_files import write_mp4


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_unit_range():
    """As the published data: divided by 255 in float64, rounded once."""
    values = torch.arange(256, dtype=torch.uint8)
    assert np.array_equal(to_unit_range(values).numpy(), (np.arange(256) / 255.0).astype(np.float32))
    floats = torch.rand(3)
    assert to_unit_range(floats) is floats


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (Cut(3), [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),
        (Cut(3, stride=4), [[0, 1, 2], [4, 5, 6]]),
        (Cut(4, stride=3), [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]),
        (Cut(3, step=3), [[0, 3, 6]]),
        (Cut(10), [list(range(10))]),
    ],
)
def test_windows(cut, expected):
    frames = pixels(10, 5, 7, 1)
    dataset = ClipSequences("test", [ArrayClip("a", frames), ArrayClip("b", 255 - frames)], cut)
    assert len(dataset) == 2 * len(expected) and dataset.shape == (cut.frames, 1, 5, 7)
    drawn = dataset.__getitems__(range(len(dataset))).numpy()[:, :, 0]
    assert np.array_equal(
        drawn, [frames[times, ..., 0] for times in expected] + [255 - frames[t, ..., 0] for t in expected]
    )


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize(
    ("layout", "shape", "sequences", "channels"),
    [
        (None, (3, 4, 5, 7), 3, 1),
        (None, (3, 4, 5, 7, 3), 3, 3),
        ("tnhw", (4, 3, 5, 7), 3, 1),
        ("NTCHW", (3, 4, 3, 5, 7), 3, 3),
        ("THW", (4, 5, 7), 1, 1),
        ("THWC", (4, 5, 7, 3), 1, 3),
    ],
)
def test_arrays(tmp_path, name, layout, shape, sequences, channels):
    array = pixels(*shape)
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, array)
    dataset = open_sequences(tmp_path / name, Cut(4), layout=layout)
    assert len(dataset) == sequences and dataset.shape == (4, channels, 5, 7) and dataset.name == name
    axes = list((layout or "NTHWC"[: len(shape)]).upper())
    # A value of the last sequence, looked up by the names of its axes.
    place = {"N": sequences - 1, "T": 2, "H": 1, "W": 6, "C": channels - 1}
    expected = array[tuple(place[axis] for axis in axes)] / np.float32(255)
    assert dataset[sequences - 1][2, channels - 1, 1, 6] == expected


def test_floats(tmp_path):
    array = np.random.default_rng(0).random((2, 4, 5, 7))
    np.save(tmp_path / "a.npy", array)
    sample = open_sequences(tmp_path / "a.npy", Cut(4))[1]
    assert sample.dtype == torch.float32 and np.array_equal(sample[:, 0].numpy(), array[1].astype(np.float32))
    array[1, 3, 4, 6] = np.nan
    np.save(tmp_path / "a.npy", array)
    dataset = open_sequences(tmp_path / "a.npy", Cut(4))
    with pytest.raises(UserError, match="a.npy, sequence 1': floats must lie in 0..1, found nan to nan"):
        dataset[1]
    np.save(tmp_path / "a.npy", array * 255)
    with pytest.raises(UserError, match="floats must lie in 0..1, found .* scale them, or store uint8"):
        open_sequences(tmp_path / "a.npy", Cut(4))


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (pixels(4, 5), {}, r"shape \(4, 5\): give the layout of its 2 axes"),
        (pixels(4, 5, 7), {}, "'' does not fit"),
        (pixels(2, 4, 5, 7), {"layout": "NTH"}, "'NTH' does not fit"),
        (pixels(2, 4, 5, 7), {"layout": "NTHX"}, "'NTHX' does not fit"),
        (pixels(2, 4, 5, 7), {"layout": "NTHH"}, "'NTHH' does not fit"),
        (pixels(2, 4, 5, 7, 2), {}, "has 2 channels as NTHWC, not 1 or 3"),
        (pixels(2, 4, 5, 7, 3), {"channels": 1}, "has 3 channels, not 1"),
        (pixels(0, 4, 5, 7), {}, "it is empty"),
        (pixels(2, 4, 5, 7).astype(np.int64), {}, "holds int64: store frames as uint8"),
        (np.zeros((2, 4, 5, 7), bool), {}, "holds bool"),
        (np.array([{}, {}]), {}, "truncated or not an array of numbers"),
        (pixels(2, 3, 5, 7), {}, "sequence 0' has 3 frames, a sequence needs 4, and 1 more clips are too short"),
    ],
)
def test_bad_arrays(tmp_path, array, options, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=message):
        open_sequences(tmp_path / "a.npy", Cut(4), **options)


def test_bad_archives(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, one=pixels(2), two=pixels(2))
    with pytest.raises(UserError, match="must hold one array, found one, two"):
        open_sequences(path, Cut(4))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="truncated or not an array"):
        open_sequences(path, Cut(4))


def write_images(folder, frames, names):
    folder.mkdir(parents=True)
    for frame, name in zip(frames, names, strict=True):
        Image.fromarray(frame).save(folder / name)


def test_folders_of_images(tmp_path):
    names = [f"frame{number}.png" for number in (1, 2, 9, 10, 11)]
    clips = {name: pixels(5, 9, 11, 3, seed=seed) for seed, name in enumerate(("one", "two/inner"))}
    for name, frames in clips.items():
        write_images(tmp_path / name, frames, names)
    dataset = open_sequences(tmp_path, Cut(5))
    assert len(dataset) == 2 and dataset.shape == (5, 3, 9, 11)
    for index, frames in enumerate(clips.values()):
        assert np.array_equal(dataset.__getitems__([index])[0].permute(0, 2, 3, 1).numpy(), frames)
    single = open_sequences(tmp_path / "one", Cut(2, step=2, stride=1), channels=1)
    assert len(single) == 3 and single.shape == (2, 1, 9, 11)
    grey = np.array(Image.fromarray(clips["one"][3]).convert("L"))
    assert np.array_equal(single.__getitems__([1])[0, 1, 0].numpy(), grey)
    resized = open_sequences(tmp_path, Cut(5, size=(16, 13)))
    assert resized.shape == (5, 3, 16, 13) and resized[1].shape == resized.shape
    assert abs(resized[1].mean() - dataset[1].mean()) < 0.02


def test_grey_images_are_unchanged(tmp_path):
    frames = pixels(3, 9, 11)
    write_images(tmp_path / "a", frames, ["1.png", "2.png", "3.png"])
    assert np.array_equal(open_sequences(tmp_path, Cut(3), channels=1).__getitems__([0])[0, :, 0].numpy(), frames)


def test_images_of_several_sizes(tmp_path):
    write_images(tmp_path / "a", [pixels(9, 11), pixels(9, 12)], ["1.png", "2.png"])
    dataset = open_sequences(tmp_path, Cut(2))
    with pytest.raises(UserError, match="2.png': the images of a folder must have one size, found 9x11 and 9x12"):
        dataset[0]
    write_images(tmp_path / "b", [pixels(5, 12)] * 2, ["1.png", "2.png"])
    with pytest.raises(UserError, match="/a' has 9x11 frames of 3 channels, .*/b' 5x12 of 3: choose one size"):
        open_sequences(tmp_path, Cut(2))
    (tmp_path / "b" / "2.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="b/2.png': not a readable image"):
        open_sequences(tmp_path / "b", Cut(2))[0]


@pytest.fixture
def video(tmp_path):
    """A video of 30 frames: grey steps of 8, with a column of its own in each frame."""
    pytest.importorskip("av")
    frames = np.repeat(np.arange(30, dtype=np.uint8)[:, None, None, None] * 8, 48, 1).repeat(64, 2).repeat(3, 3)
    write_mp4(tmp_path / "clip.mp4", list(frames), fps=10)
    return tmp_path / "clip.mp4", frames


def test_videos(video):
    path, frames = video
    dataset = open_sequences(path, Cut(4, step=2, stride=5))
    assert len(dataset) == 5 and dataset.shape == (4, 3, 48, 64)
    for index in (4, 0, 3):
        found = dataset.__getitems__([index])[0].permute(0, 2, 3, 1).numpy()
        expected = frames[index * 5 : index * 5 + 7 : 2]
        assert np.abs(found.astype(int) - expected).max() < 4, "each frame is the right one: steps are of 8"
    grey = open_sequences(path.parent, Cut(30), channels=1)
    assert len(grey) == 1 and grey.shape == (30, 1, 48, 64) and grey[0].shape == grey.shape


def test_odd_videos_and_gifs(tmp_path):
    pytest.importorskip("av")
    frames = [Image.fromarray(np.full((17, 23), value, np.uint8)) for value in range(0, 250, 50)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    dataset = open_sequences(tmp_path / "a.gif", Cut(5), channels=1)
    assert dataset.shape == (5, 1, 17, 23)
    assert np.allclose(dataset[0].mean((1, 2, 3)).numpy() * 255, range(0, 250, 50), atol=1)
    write_mp4(tmp_path / "b.mp4", [np.array(frame.convert("RGB")) for frame in frames], fps=5)
    assert open_sequences(tmp_path / "b.mp4", Cut(5)).shape == (5, 3, 16, 22), "H.264 has even sides only"


def test_bad_videos(video, monkeypatch):
    path, _ = video
    with pytest.raises(UserError, match="clip.mp4' has 30 frames, a sequence needs 31: remove them"):
        open_sequences(path, Cut(31))
    dataset = open_sequences(path, Cut(30))
    content = path.read_bytes()
    path.write_bytes(content[:300] + bytes(len(content) - 300 - 1500) + content[-1500:])
    with pytest.raises(UserError, match="clip.mp4' is damaged"):
        dataset[0]
    for damaged in (b"", b"hello", content[: len(content) // 2], content.replace(b"avc1", b"none")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="clip.mp4' cannot be read as a video"):
            open_sequences(path, Cut(4))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        open_sequences(path, Cut(4))


def test_nothing_to_open(tmp_path):
    for name, options, message in (
        ("none", {}, "does not exist"),
        ("", {}, "holds no images"),
        ("a.txt", {}, "give a folder, .npy, .npz or a video"),
        ("", {"layout": "NTHW"}, "only .npy and .npz files have a layout"),
    ):
        (tmp_path / "a.txt").write_text("text")
        with pytest.raises(UserError, match=message):
            open_sequences(tmp_path / name, Cut(4), **options)
    for options in ({"frames": 0}, {"step": 0}, {"stride": 0}, {"size": (0, 5)}):
        with pytest.raises(UserError, match="must be at least 1|cannot be resized"):
            Cut(**options)


def test_images_and_videos_in_one_folder(video, tmp_path):
    for clip in ("a", "b"):
        write_images(tmp_path / clip, pixels(4, 48, 64), [f"{number}.png" for number in range(4)])
    with pytest.raises(UserError, match="1 videos, e.g. .*clip.mp4', and 8 images, e.g. .*0.png': keep only one kind"):
        open_sequences(tmp_path, Cut(4))


def test_files_that_are_left_out_are_counted(tmp_path):
    write_images(tmp_path / "a", pixels(4, 9, 11), [f"{number}.png" for number in range(4)])
    write_images(tmp_path / ".ipynb_checkpoints", pixels(1, 9, 11), ["0-checkpoint.png"])
    (tmp_path / "elsewhere").symlink_to(tmp_path / "a")
    assert len(open_sequences(tmp_path, Cut(4)).clips) == 1 and not open_sequences(tmp_path, Cut(4)).notes
    for name in ("b.npy", "c.heic"):
        (tmp_path / name).touch()
    (note,) = open_sequences(tmp_path, Cut(4)).notes
    assert note.startswith("2 files in ") and "not readable as images or videos, e.g." in note and "b.npy" in note
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "a.npy", pixels(1, 4, 9, 11))
    with pytest.raises(UserError, match="no images .* and no videos; found 1 other files, e.g. .*a.npy"):
        open_sequences(tmp_path / "arrays", Cut(4))


def test_linked_clips_are_read(tmp_path):
    write_images(tmp_path / "all" / "a", pixels(4, 9, 11), [f"{number}.png" for number in range(4)])
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a").symlink_to(tmp_path / "all" / "a")
    dataset = open_sequences(tmp_path / "train", Cut(4))
    assert dataset.sources == open_sequences(tmp_path / "all", Cut(4)).sources == {str((tmp_path / "all/a").resolve())}


def test_an_animation_is_not_one_image(tmp_path):
    frames = [Image.fromarray(frame) for frame in pixels(4, 9, 11)]
    for name in "01":
        frames[0].save(tmp_path / f"{name}.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="0.gif' is animated: make it a video file"):
        open_sequences(tmp_path, Cut(2))


@pytest.mark.parametrize(
    ("names", "gap"),
    [
        (["1.png", "2.png", "5.png", "6.png"], "'2.png' before '5.png'"),
        (["a1.png", "a2.png", "b1.png", "b2.png"], "'a2.png' before 'b1.png'"),
        (["1.png", "2.png", "3.png", "thumb.png"], "'3.png' before 'thumb.png'|'thumb.png' before '1.png'"),
        (["08.png", "09.png", "10.png", "11.png"], ""),
        (["cam2_00.png", "cam2_05.png", "cam2_10.png", "cam2_15.png"], ""),
        (["a.png", "b.png", "c.png", "d.png"], ""),
    ],
)
def test_gaps_in_frame_numbers(tmp_path, names, gap):
    write_images(tmp_path / "whole", pixels(4, 9, 11), ["0.png", "1.png", "2.png", "3.png"])
    write_images(tmp_path / "clip", pixels(4, 9, 11), names)
    notes = open_sequences(tmp_path, Cut(4)).notes
    assert len(notes) == bool(gap)
    assert not gap or ("1 of 2 folders" in notes[0] and any(part in notes[0] for part in gap.split("|")))


@pytest.mark.parametrize(
    ("size", "squeezed"), [((64, 64), True), ((75, 200), False), ((64, 171), False), (None, False)]
)
def test_a_changed_aspect_ratio(tmp_path, size, squeezed):
    np.save(tmp_path / "a.npy", pixels(1, 4, 150, 400))
    notes = open_sequences(tmp_path / "a.npy", Cut(4, size=size), layout="NTHW").notes
    assert len(notes) == squeezed
    assert not squeezed or "1 of 1 clips" in notes[0] and "150x400 to 64x64" in notes[0] and "--size" in notes[0]


def moving(sequences, frames, size=16):
    """(N, T, H, W): noise that moves one pixel per frame, blurred so that neighbours are alike."""
    wide = np.repeat(pixels(sequences, size, size + frames, seed=3), 8, axis=2)
    return np.stack([wide[:, :, time : time + size] for time in range(frames)], 1)


@pytest.mark.parametrize(
    ("name", "array", "layout"),
    [
        ("a.npy", moving(30, 20), "NTHW"),
        ("a.npy", moving(30, 20).swapaxes(0, 1), "TNHW"),
        ("a.npy", moving(30, 20)[..., None], "NTHWC"),
        ("a.npy", moving(30, 20).swapaxes(0, 1)[:, :, None].repeat(3, 2), "TNCHW"),
        ("a.npy", pixels(20, 30, 8, 9), "NTHW"),
        ("mnist_test_seq.npy", pixels(20, 30, 8, 9), "TNHW"),
        ("mnist_test_seq.npy", moving(30, 20), "NTHW"),
        ("a.npy", pixels(6, 8, 9, 3), "THWC"),
    ],
)
def test_layouts_are_recognised(tmp_path, name, array, layout):
    np.save(tmp_path / name, array)
    dataset = open_sequences(tmp_path / name, Cut(5))
    told = open_sequences(tmp_path / name, Cut(5), layout=layout)
    assert len(dataset) == len(told) and torch.equal(
        dataset[1 if len(told) > 1 else 0], told[1 if len(told) > 1 else 0]
    )
    (note,) = dataset.notes
    assert f"is read as {layout}, " in note and "--layout" in note and not told.notes
