"""Memory that nobody wrote to is NaN in these tests, so an output left unwritten cannot pass; the list of operators."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from wavelets.haar_oracles import OPS, Op


def _nan_filled(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def allocate_nan(*args: Any, **kwargs: Any) -> torch.Tensor:
        result = allocate(*args, **kwargs)
        if result.is_floating_point():
            with torch.no_grad():
                result.fill_(float("nan"))
        return result

    return allocate_nan


@pytest.fixture(autouse=True, scope="module")
def nan_filled_memory() -> Iterator[None]:
    # torch notes at its first use what ``with torch.device(...)`` reaches; that must not be the patched functions.
    with torch.device("meta"):
        torch.empty(0)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (torch.Tensor, "new_empty"),
        ):
            patch.setattr(owner, name, _nan_filled(getattr(owner, name)))
        yield


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tensors are tiny: on a busy machine a second thread costs more than all of the arithmetic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=OPS, ids=lambda op: op.name)
def op(request: pytest.FixtureRequest) -> Op:
    return request.param
