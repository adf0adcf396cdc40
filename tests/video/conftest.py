import pytest
import torch
from video.tiny import TINY_RUN

from wsfvit.cli.run import parse_with_config
from wsfvit.video.args import train_parser
from wsfvit.video.train import run_training


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    """Tiny networks lose more than they gain from threads, the more so on a shared machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The result of one run of three epochs of three updates, with an EMA."""
    output = tmp_path_factory.mktemp("video")
    return run_training(parse_with_config(train_parser(), [*TINY_RUN, "--output", str(output)]))
