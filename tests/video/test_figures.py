"""Strips, animations and curves show the frames they are given."""

import numpy as np
import pytest
import torch
from PIL import Image

from wsfvit.utils.errors import UserError
from wsfvit.video import figures
from wsfvit.video.data.sequences import Cut, open_sequences
from wsfvit.video.figures import draw_animation, draw_strip, write_animation, write_curves, write_prediction

LABEL, LEFT, GAP = figures.LABEL_HEIGHT, figures.LABEL_WIDTH, figures.GAP
WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)


def sequence(channels=1, frames_in=3, frames_out=2, side=100):
    """Frames of one value each: input 0.1, 0.2, ..., prediction black, then white; the truth is the other way round."""
    values = torch.arange(1, frames_in + 1) / 10
    frames = values.view(-1, 1, 1, 1).expand(-1, channels, side, side)
    prediction = (torch.arange(frames_out) % 2).float().view(-1, 1, 1, 1).expand(-1, channels, side, side)
    return frames, prediction, 1 - prediction


def cells(strip, rows, side=100):
    """Colour at the centre of each cell; the whole cell has it."""
    colours = []
    for row in range(rows):
        top, line = row * (LABEL + side + GAP) + LABEL, []
        for left in range(LEFT, strip.shape[1], side + GAP):
            cell = strip[top : top + side, left : left + side].reshape(-1, 3)
            assert (cell == cell[0]).all()
            line.append(tuple(cell[0].tolist()))
        colours.append(line)
    return colours


@pytest.mark.parametrize("channels", [1, 3])
def test_strip(channels):
    frames, prediction, future = sequence(channels)
    inputs = [(round(25.5 * n),) * 3 for n in (1, 2, 3)]
    black = (0, 0, 0)
    strip = draw_strip(frames, prediction, future)
    assert strip.dtype == np.uint8
    assert cells(strip, 4) == [inputs, [WHITE, black, WHITE], [black, WHITE, WHITE], [BLUE, RED, WHITE]]
    assert (strip[:, :LEFT] < 128).any(), "rows have names"
    assert cells(draw_strip(frames, prediction), 2) == [inputs, [black, WHITE, WHITE]]


def test_small_frames_are_enlarged_and_long_rows_thinned():
    frames, prediction, future = sequence(frames_in=3, frames_out=40, side=12)
    strip = draw_strip(frames, prediction, future)
    assert strip.shape == (4 * (LABEL + 96 + GAP), LEFT + 10 * (96 + GAP), 3)
    assert figures._spread(40)[0] == 0 and figures._spread(40)[-1] == 39 and len(figures._spread(40)) == 10


def test_values_out_of_range_are_drawn():
    frames, prediction, future = sequence()
    wild = prediction.clone()
    wild[0], wild[1] = float("nan"), 7.0
    assert cells(draw_strip(frames, wild, future), 3)[2][:2] == [(0, 0, 0), WHITE]


def test_animation():
    frames, prediction, future = sequence()
    drawn = draw_animation(frames, prediction, future)
    assert len(drawn) == 5 and len({image.shape for image in drawn}) == 1
    y, columns = LABEL + 50, [GAP + column * (100 + GAP) + 50 for column in range(3)]
    assert [tuple(drawn[3][y, x].tolist()) for x in columns] == [WHITE, (0, 0, 0), BLUE], "truth, prediction, error"
    assert [drawn[1][y, x, 0] for x in columns] == [51, 51, 255], "the input twice, and no error yet"
    assert len(draw_animation(frames, prediction)) == 5


def test_files(tmp_path):
    frames, prediction, future = sequence()
    strip, gif = write_prediction(tmp_path, "a", frames, prediction, future)
    assert np.array_equal(np.array(Image.open(strip)), draw_strip(frames, prediction, future))
    with Image.open(gif) as animation:
        assert (animation.n_frames, animation.info["duration"], animation.info["loop"]) == (5, 200, 0)
    with pytest.raises(UserError, match="must end in .gif or .mp4"):
        write_animation(tmp_path / "a.avi", draw_animation(frames, prediction))
    with pytest.raises(UserError, match="cannot write '.*none/a.png'"):
        write_prediction(tmp_path / "none", "a", frames, prediction)


def test_mp4(tmp_path):
    pytest.importorskip("av")
    frames, prediction, future = sequence()
    drawn = draw_animation(frames, prediction, future)
    write_animation(tmp_path / "a.mp4", drawn)
    video = open_sequences(tmp_path / "a.mp4", Cut(5))
    height, width = video.shape[2:]
    found = video.__getitems__([0])[0].permute(0, 2, 3, 1).numpy()
    assert np.abs(found.astype(int) - np.stack(drawn)[:, :height, :width]).mean() < 3


def test_curves(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: saved.append(figure))
    curves = {
        "model": {"mse": [1.0, 2.0], "ssim": [0.9, 0.8], "psnr": [20.0, float("inf")]},
        "copy last frame": {"mse": [3.0, 4.0], "ssim": [0.5, 0.4], "psnr": [10.0, 9.0]},
    }
    write_curves(tmp_path / "a.png", curves, first=11)
    panels = saved[0].axes
    assert [axis.get_title() for axis in panels] == ["MSE per frame (sum)", "SSIM (range 1)", "PSNR in dB"]
    for axis, key in zip(panels, ("mse", "ssim", "psnr"), strict=True):
        assert {line.get_label(): list(line.get_ydata()) for line in axis.lines} == {
            n: c[key] for n, c in curves.items()
        }
        assert all(list(line.get_xdata()) == [11, 12] for line in axis.lines)
