"""Weights under the release's names: recognised, built and loaded by every command, refused with one line."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from video.published import SMALL, fill, published_shapes

from wsfvit.cli.run import parse_with_config
from wsfvit.utils.errors import UserError
from wsfvit.video.args import predict_parser, train_parser, validate_parser
from wsfvit.video.checkpoint import load_model
from wsfvit.video.evaluation import run_validation
from wsfvit.video.predict import run_prediction
from wsfvit.video.train import run_training

# What OpenSTL writes: only the best weights, a training state, and the same by Lightning.
WRAPPERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "best": lambda state: state,
    "training state": lambda state: {"epoch": 200, "optimizer": {}, "state_dict": state, "scheduler": {}},
    "lightning": lambda state: {
        "epoch": 199,
        "state_dict": {f"model.{key}": value for key, value in state.items()},
        "hyper_parameters": {"lr": 1e-3},
    },
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "checkpoint.pth"
    torch.save(fill(published_shapes(small=True)), path)
    return path


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_model_is_read_from_the_file(wrapper: str, tmp_path: Path) -> None:
    state = fill(published_shapes(small=True))
    torch.save(WRAPPERS[wrapper](state), tmp_path / "x.pth")
    model, meta = load_model(tmp_path / "x.pth")
    assert model.config == SMALL
    assert meta["data"] == {"size": [64, 64], "digits": 2, "speed": 0.1, "frame_step": 1}
    assert torch.equal(model.decoder.last.conv.weight, state["dec.dec.3.conv.conv.weight"])
    # Head by head there, first all queries here: row 8 is the first key of the first head there.
    attn = "hid.enc.1.block.attn_block.attn"
    ours = model.translator[1].block.attn_local.attn
    assert torch.equal(ours.qkv.bias[64:72], state[f"{attn}.qkv.bias"][8:16])
    # One step to the right of the query there is one of the key here.
    table = state[f"{attn}.rel_pos.relative_position_bias_table"]
    assert torch.equal(ours.rel_pos.relative_position_bias_table[:, 3, 2], table[3 * 7 + 4])


def test_other_sizes_are_read_off_the_shapes(tmp_path: Path) -> None:
    """Fewer frames to predict, and the names that the release's classifier has for the parts of a block."""
    shapes = published_shapes(small=True)
    shapes |= {"hid.enc.1.reduction.weight": [16, 64, 1, 1], "hid.enc.1.reduction.bias": [16]}
    names = {"attn_block": "attn_local", "attn_channel": "attn_inter", "attn_grid": "attn_global"}
    state = fill(shapes)
    for theirs, other in names.items():
        state = {key.replace(theirs, other): value for key, value in state.items()}
    torch.save(state, tmp_path / "x.pth")
    model, _ = load_model(tmp_path / "x.pth")
    assert model.config == replace(SMALL, frames_out=2)


def test_every_command_loads_it(published: Path, tmp_path: Path) -> None:
    common = ["--device", "cpu", "--size", "32", "32"]
    trained = [*common, "--checkpoint", str(published)]
    found = run_validation(validate_parser().parse_args([*trained, "-j", "0", "--sequences", "2"]))
    assert found.metrics["model"]["sequences"] == 2
    argv = [*trained, "--count", "1", "--out", str(tmp_path / "strips")]
    assert all(path.is_file() for path in run_prediction(predict_parser().parse_args(argv)))

    model = [text for key, value in asdict(SMALL).items() for text in (f"--{key.replace('_', '-')}", str(value))]
    argv = [*common, *model, "-j", "0", "-b", "2", "--samples-per-epoch", "2", "--val-sequences", "2"]
    argv += ["--test-sequences", "2", "--epochs", "1", "--pictures", "0", "--sched", "constant", "--lr", "1e-9"]
    argv += ["--output", str(tmp_path), "--experiment", "run", "--initial-checkpoint"]
    result = run_training(parse_with_config(train_parser(), [*argv, str(published)]))
    model, _ = load_model(result.run_dir / "last.pth.tar")
    for key, value in load_model(published)[0].named_parameters():
        torch.testing.assert_close(model.get_parameter(key), value, atol=1e-6, rtol=1e-6)
    with pytest.raises(UserError, match="of another shape .encoder.first.conv.weight: .8, 4, 3, 3. for .6, 4, 3, 3."):
        other = [*argv, str(published), "--experiment", "other", "--hid-s", "6", "--inter-heads", "8"]
        run_training(parse_with_config(train_parser(), other))


def test_another_simvp_is_refused(tmp_path: Path) -> None:
    """The same encoder and decoder around another translator, and a table that was cut."""
    state = fill(published_shapes(small=True))
    other = {key.replace("pre_norm", "norm3"): value for key, value in state.items()}
    table = "hid.enc.0.block.attn_grid.attn.rel_pos.relative_position_bias_table"
    for content in (other, state | {table: torch.zeros(40, 4)}, state | {table: torch.zeros(())}):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(UserError, match="holds a SimVP, but not the one of the WSF-ViT release") as caught:
            load_model(tmp_path / "x.pth")
        assert "\n" not in str(caught.value)
