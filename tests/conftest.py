"""What all tests share: the device option, the table of tolerances, the rule for tests that need a GPU."""

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import settings

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


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requires_cuda: skipped without a GPU; fails there if WSFVIT_REQUIRE_GPU=1")
    if config.getoption("--device") == "cuda":
        if not torch.cuda.is_available():
            raise pytest.UsageError("--device cuda: no CUDA device is available")
        torch.backends.cudnn.allow_tf32 = False  # float32 is held to float32's limits


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--device cuda``, the tests that run there: the others would only be those of the CPU once more."""
    if config.getoption("--device") == "cuda":
        here = [item for item in items if _runs_on_device(item)]
        config.hook.pytest_deselected(items=[item for item in items if not _runs_on_device(item)])
        items[:] = here


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
