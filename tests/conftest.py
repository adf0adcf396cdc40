"""What all tests share: the device option, the table of tolerances, the rule for tests that need a GPU."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from tiers import is_slow

if not torch.cuda.is_available():
    # Read by Triton when it is imported: its kernels then run on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# rtol = atol, against the float64 result of the same (already rounded) inputs. The half-precision values can only be
# met by arithmetic in float32 with one final cast. Loosening one is a CHANGELOG entry.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}

settings.register_profile("wsfvit", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("wsfvit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where the operators under test run")
    parser.addoption("--all", action="store_true", help="also run the slow tests (marked, or in tests/tiers.py)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requires_cuda: skipped without a GPU; fails there if WSFVIT_REQUIRE_GPU=1")
    config.addinivalue_line("markers", "slow: only with --all")
    if config.getoption("--device") == "cuda":
        if not torch.cuda.is_available():
            raise pytest.UsageError("--device cuda: no CUDA device is available")
        torch.backends.cudnn.allow_tf32 = False  # float32 is held to float32's limits


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--all``, the first tier; with ``--device cuda``, the tests that run there: the others are the CPU's."""
    wanted = items if config.getoption("--all") else [item for item in items if not _is_slow(item)]
    if config.getoption("--device") == "cuda":
        wanted = [item for item in wanted if _runs_on_device(item)]
    kept = set(wanted)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = wanted


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None or is_slow(item.nodeid)


def _runs_on_device(item: pytest.Item) -> bool:
    return "device" in getattr(item, "fixturenames", ()) or item.get_closest_marker("requires_cuda") is not None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("requires_cuda") and not torch.cuda.is_available():
        if os.environ.get("WSFVIT_REQUIRE_GPU") == "1":
            pytest.fail("needs a CUDA device, and WSFVIT_REQUIRE_GPU=1 forbids to skip", pytrace=False)
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(params=TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """``assert_close(actual, expected)`` within the tolerance of ``actual``'s dtype; ``expected`` may be wider."""

    def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
        tolerance = TOLERANCES[actual.dtype]
        expected = torch.as_tensor(expected, device=actual.device)
        torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)

    return check


@pytest.fixture(autouse=True, scope="module")
def few_threads() -> Iterator[None]:
    """Tiny networks lose more than they win from threads, the more so on a shared machine.

    Of module scope, so that runs which a whole module is compared with have as many.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of one two-step run with an EMA."""
    from tiny_run import TWO_STEPS

    from wsfvit.cli.train import parse_train_args
    from wsfvit.train.classify import run_training

    output = tmp_path_factory.mktemp("runs")
    argv = [*TWO_STEPS, "--model-ema", "--model-ema-decay", "0.5", "--output", str(output), "--experiment", "tiny"]
    return run_training(parse_train_args(argv))


@pytest.fixture(scope="session")
def wsf_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A WSF-ViT of one block for the tiny images, whose BatchNorms are not identities."""
    import timm
    from parity import fill_by_key
    from tiny_data import CLASSES

    kwargs = dict(num_classes=CLASSES, img_size=32, embed_dims=(12,), inter_heads=(2,), depths=(1,), stage_strides=(2,))
    model = fill_by_key(timm.create_model("wsfvit_p0_224", **kwargs)).float()
    path = tmp_path_factory.mktemp("wsf") / "wsf.pth"
    torch.save({"arch": "wsfvit_p0_224", "model_kwargs": kwargs, "state_dict": model.state_dict()}, path)
    return str(path)


@pytest.fixture
def tiny_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """All data is 24 tiny images."""
    from tiny_data import TinyImages

    monkeypatch.setattr("wsfvit.factory.data.create_dataset", lambda *args, **kwargs: TinyImages(24))


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[[Callable[[], object]], str]:
    """Runs a command as its entry point would; returns its one line on stderr, having checked exit code 2."""
    from wsfvit.utils.errors import run_main

    def run(command: Callable[[], object]) -> str:
        with pytest.raises(SystemExit) as ended:
            run_main(command)
        assert ended.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return run
