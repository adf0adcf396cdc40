from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from engine.tiny_data import CLASSES, TinyImages
from engine.tiny_run import TWO_STEPS
from parity import fill_by_key

from wsfvit.engine.args import parse_train_args
from wsfvit.engine.train import run_training
from wsfvit.errors import run_main


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    """Tiny networks lose more than they win from threads, the more so on a shared machine.

    Of module scope, so that runs which a whole module is compared with have as many.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> dict[str, Any]:
    """The result of one two-step run with a moving average."""
    output = tmp_path_factory.mktemp("runs")
    argv = [*TWO_STEPS, "--model-ema", "--model-ema-decay", "0.5", "--output", str(output), "--experiment", "tiny"]
    return run_training(parse_train_args(argv))


@pytest.fixture(scope="session")
def wsf_checkpoint(tmp_path_factory) -> str:
    """A WSF-ViT of one block for the tiny images, whose BatchNorms do something."""
    kwargs = dict(num_classes=CLASSES, img_size=32, embed_dims=(12,), inter_heads=(2,), depths=(1,), stage_strides=(2,))
    model = fill_by_key(timm.create_model("wsfvit_p0_224", **kwargs)).float()
    path = tmp_path_factory.mktemp("wsf") / "wsf.pth"
    torch.save({"arch": "wsfvit_p0_224", "model_kwargs": kwargs, "state_dict": model.state_dict()}, path)
    return str(path)


@pytest.fixture
def tiny_images(monkeypatch) -> None:
    """All data is 24 tiny images."""
    monkeypatch.setattr("wsfvit.engine.build.create_dataset", lambda *args, **kwargs: TinyImages(24))


@pytest.fixture
def error_of(capsys) -> Callable[[Callable[[], object]], str]:
    """Runs a command as its entry point would; returns its one line on stderr, having checked exit code 2."""

    def run(command: Callable[[], object]) -> str:
        with pytest.raises(SystemExit) as ended:
            run_main(command)
        assert ended.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return run
