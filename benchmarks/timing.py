"""Interleaved timing, the steps that are timed, and the check that candidates compute the same."""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Short functions are called several times per sample, so that the clock and the launch of the first call do not show.
MIN_SAMPLE_SECONDS = 2e-3
MAX_CALLS_PER_SAMPLE = 1000
DIRECTIONS = ("forward", "forward + backward")
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3  # of whole models in float32

Step = Callable[[], Any]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """Seconds per call (median, 20 % and 80 % quantile) and, on CUDA, the peak of bytes allocated on top."""

    median: float
    q20: float
    q80: float
    repeats: int
    calls_per_sample: int
    peak_memory: int | None = None

    def cells(self) -> tuple[str, str, str]:
        """Median and quantiles in milliseconds, and peak memory in MiB, as text."""
        memory = "" if self.peak_memory is None else f"{self.peak_memory / 2**20:.1f}"
        return f"{self.median * 1e3:.4g}", f"{self.q20 * 1e3:.4g} to {self.q80 * 1e3:.4g}", memory


def cpu_or_wall_clock(device: torch.device) -> tuple[Clock, str]:
    """CPU time of the process for the CPU, so that the load of other programs shows little; wall time elsewhere."""
    return (time.process_time, "CPU time") if device.type == "cpu" else (time.perf_counter, "wall time")


def time_candidates(
    steps: Mapping[str, Step], args: argparse.Namespace, device: torch.device, clock: Clock = time.perf_counter
) -> dict[str, Timing]:
    """`measure_together` with --warmup and --repeats."""
    return measure_together(steps, args.warmup, args.repeats, device, clock)


def measure_together(
    candidates: Mapping[str, Step],
    warmup: int = 3,
    repeats: int = 20,
    device: torch.device | str = "cpu",
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Time several functions in turns, so that noise and changes of the clock rate affect all of them alike.

    Each round calls every candidate once and starts one candidate later than the round before: none profits from always
    running after a light neighbour.
    """
    device = torch.device(device)
    calls: dict[str, int] = {}
    peaks: dict[str, int | None] = {}
    for name, fn in candidates.items():
        for _ in range(max(warmup, 1)):
            fn()
        once = _sample(fn, 1, device, clock)
        calls[name] = min(max(math.ceil(MIN_SAMPLE_SECONDS / max(once, 1e-9)), 1), MAX_CALLS_PER_SAMPLE)
        peaks[name] = _added_memory(fn, device)

    names = list(candidates)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for i in range(repeats):
        start = i % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(_sample(candidates[name], calls[name], device, clock))
    return {name: _summarise(samples[name], calls[name], peaks[name]) for name in names}


def _sample(fn: Step, calls: int, device: torch.device, clock: Clock) -> float:
    """Seconds per call over `calls` calls in a row; the device is idle before and after."""
    synchronize(device)
    start = clock()
    for _ in range(calls):
        fn()
    synchronize(device)
    return (clock() - start) / calls


def _added_memory(fn: Step, device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    fn()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _summarise(samples: list[float], calls: int, peak: int | None) -> Timing:
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    q20, median, q80 = torch.tensor(samples, dtype=torch.float64).quantile(levels).tolist()
    return Timing(median, q20, q80, len(samples), calls, peak)


def synchronize(device: torch.device) -> None:
    """Wait for a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def capture(fn: Step, device: torch.device) -> Step:
    """A function that replays the GPU work of ``fn`` as one CUDA graph, without the host's share.

    Raises:
        RuntimeError: ``fn`` does what a graph cannot hold.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # memory and libraries are set up outside the graph
        for _ in range(3):
            fn()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fn()
    return graph.replay


def host_seconds(fn: Step, device: torch.device, calls: int = 100) -> float:
    """Seconds that the host takes to start one call on a GPU, which is idle at first; for short functions only."""
    fn()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    taken = (time.perf_counter() - start) / calls
    synchronize(device)
    return taken


def tensors_of(output: Any) -> Iterator[Tensor]:
    """All tensors of an output, whatever its nesting."""
    if isinstance(output, Tensor):
        yield output
    else:
        for part in output:
            yield from tensors_of(part)


def build_step(function: Callable[[Tensor], Any], x: Tensor, direction: str, weights: Sequence[Tensor] = ()) -> Step:
    """One call on ``x`` without gradients or, for "forward + backward", with those of ``x`` and ``weights``."""
    if direction == "forward":
        return partial(_forward_step, function, x)
    leaf = x.detach().requires_grad_()
    grads = [torch.randn_like(y) for y in tensors_of(function(leaf))]
    return partial(_forward_backward_step, function, [leaf, *weights], grads)


def _forward_step(function: Callable[[Any], Any], x: Tensor) -> Any:
    with torch.no_grad():
        return function(x)


def _forward_backward_step(function: Callable[[Any], Any], leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> Any:
    return torch.autograd.grad(list(tensors_of(function(leaves[0]))), leaves, grads)


def inference_step(call: Step, autocast: Callable[[], Any]) -> Any:
    """One call in inference mode."""
    with torch.inference_mode(), autocast():
        return call()


def training_step(
    module: nn.Module,
    forward: Step,
    autocast: Callable[[], Any],
    optimizer: torch.optim.Optimizer | None = None,
    inputs: Sequence[Any] = (),
) -> list[Tensor]:
    """Forward, backward of the summed outputs and, with an optimizer, an update; returns the outputs.

    Args:
        module: Its gradients, and those of ``inputs``, are freed: each candidate then meets the same memory.
        forward: Returns a loss, or other outputs.
        autocast: Context of the forward pass.
        optimizer: Makes the update.
        inputs: Tensors among them may carry a gradient.
    """
    with autocast():
        outputs = list(tensors_of(forward()))
    torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    if optimizer is not None:
        optimizer.step()
    module.zero_grad(set_to_none=True)
    for x in inputs:
        if isinstance(x, Tensor):
            x.grad = None
    return [y.detach() for y in outputs]


def classification_loss(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in float32."""
    return F.cross_entropy(model(x).float(), target)


def relative_error(got: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm of ``want``, in double precision."""
    wide = torch.complex128 if want.is_complex() else torch.float64
    got, want = got.detach().to(wide), want.detach().to(wide)
    return float((got - want).norm() / want.norm())


def require_small(what: str, error: float, tolerance: float) -> float:
    """Return ``error``; end the program if it is not below ``tolerance``."""
    # "not below" rather than "above", so that NaN fails too
    if not error < tolerance:
        raise SystemExit(f"{what}: relative error {error:.2e}; nothing was timed")
    return error


def check_equal(name: str, ours: nn.Module, theirs: nn.Module, x: Tensor, gradients: bool = True) -> dict[str, float]:
    """Relative errors of output and parameter gradients of a model and its baseline; a difference ends the program."""
    if not gradients:
        with torch.inference_mode():
            error = relative_error(ours.eval()(x), theirs.eval()(x))
        return {"output": require_small(f"{name} differs from its baseline", error, OUTPUT_TOLERANCE)}
    out, grads = _output_and_gradients(ours.eval(), x)
    want, want_grads = _output_and_gradients(theirs.eval(), x)
    flat = [torch.cat([each[key].flatten() for key in want_grads]) for each in (grads, want_grads)]
    found = {"output": relative_error(out, want), "gradient": relative_error(*flat)}
    for key, tolerance in (("output", OUTPUT_TOLERANCE), ("gradient", GRADIENT_TOLERANCE)):
        require_small(f"{key} of {name} differs from its baseline's", found[key], tolerance)
    return found


def _output_and_gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    out = model(x)
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(out.square().mean(), list(named.values()))
    return out.detach(), dict(zip(named, grads, strict=True))
