"""Split the time of a forward and a backward pass over named parts of a model; the parts and the rest add up."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

FORWARD, BACKWARD = "forward", "backward"
REST = "rest"


class PartTimer:
    """Marks the time whenever a part begins or ends; what lies between two marks belongs to the innermost part at work.

    So nested parts are never counted twice, and the parts and the rest add up to the time from first to last mark. In
    the backward pass a part works from the gradient of its output to that of its input, found by hooks on these
    tensors; a part whose input needs no gradient is the last one and works to the end. Hooks on tensors, unlike those
    on modules, do not change the graph and allow in-place activations.

    On CUDA a mark is an event in the stream, and nothing waits for it before the end of the pass: the times are those
    of the device, waiting for the next kernel to be launched included.

    Args:
        model: The model; it must not be compiled, and not recompute activations in the backward pass.
        parts: Label by module name. Modules with one label are added up; parts may lie inside each other.
        device: Where the model runs.
        clock: What to read instead of the device's own clock, in seconds; on the CPU that is the process's CPU time,
            which other programs do not change.
    """

    def __init__(
        self, model: nn.Module, parts: Mapping[str, str], device: torch.device, clock: Callable[[], float] | None = None
    ) -> None:
        self.model = model
        self.parts = dict(parts)
        self.device = device
        self.clock = clock or (_record_event if device.type == "cuda" else time.process_time)
        self.marks: list[tuple[Any, str, str]] = []  # reading, phase, label of what follows
        self.active: list[str] = []  # modules at work, the innermost last
        self.calls: list[tuple[Any, ...]] = []  # nodes of the graph that the inputs of running modules come from
        self.phase = FORWARD

    def time_pass(
        self, forward: Callable[[], Any], backward: Callable[[Any], Any] | None = None
    ) -> dict[str, dict[str, float]]:
        """Times one pass.

        Args:
            forward: Runs the model.
            backward: Takes what ``forward`` returned and runs the backward pass; None: there is none.

        Returns:
            Seconds by label by phase ("forward" and, if there is one, "backward"). Every label is there, `REST` last.
        """
        self.marks, self.active, self.phase = [], [], FORWARD
        with self._hooks():
            self._mark()
            result = forward()
            if backward is not None:
                self.phase = BACKWARD
                self._mark()
                backward(result)
            self._mark()
        return self._add_up()

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = []
        for name in self.parts:
            module = self.model.get_submodule(name)
            handles += [
                module.register_forward_pre_hook(partial(self._before, name)),
                module.register_forward_hook(partial(self._after, name)),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs = tuple(x for x in args if isinstance(x, Tensor) and x.requires_grad)
        # Not the inputs: what works in place makes its input its output.
        self.calls.append(tuple(x.grad_fn for x in inputs))
        waiting = len(inputs)

        def leave(grad: Tensor) -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                self._leave(name)

        for x in inputs:
            x.register_hook(leave)
        self._enter(name)

    def _after(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._leave(name)
        came_in = self.calls.pop()
        for y in _tensors(output):
            # Handed through as it came in, it has no backward pass of its own.
            if y.requires_grad and not any(y.grad_fn is node for node in came_in):
                y.register_hook(lambda grad: self._enter(name))

    def _enter(self, name: str) -> None:
        if name in self.active:
            return
        # A part that ends with another one has the same output, and its hook may run later.
        inner = (i for i, other in enumerate(self.active) if other.startswith(f"{name}."))
        self.active.insert(next(inner, len(self.active)), name)
        self._mark()

    def _leave(self, name: str) -> None:
        self.active = [other for other in self.active if other != name and not other.startswith(f"{name}.")]
        self._mark()

    def _mark(self) -> None:
        label = self.parts[self.active[-1]] if self.active else REST
        self.marks.append((self.clock(), self.phase, label))

    def _add_up(self) -> dict[str, dict[str, float]]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        labels = [*dict.fromkeys(self.parts.values()), REST]
        seconds: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(labels, 0.0))
        for (start, phase, label), (end, _, _) in zip(self.marks, self.marks[1:], strict=False):
            seconds[phase][label] += _seconds(start, end)
        return dict(seconds)


def _record_event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(start: Any, end: Any) -> float:
    between: float = start.elapsed_time(end) / 1e3 if isinstance(start, torch.cuda.Event) else end - start
    return between


def _tensors(output: Any) -> Iterable[Tensor]:
    return [y for y in (output if isinstance(output, tuple | list) else (output,)) if isinstance(y, Tensor)]


def average_middle(passes: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over the passes without the fastest and the slowest fifth; unlike medians, they still add up."""
    by_total = sorted(passes, key=lambda each: sum(sum(phase.values()) for phase in each.values()))
    cut = len(passes) // 5
    kept = by_total[cut : len(passes) - cut]
    return {
        phase: {label: sum(each[phase][label] for each in kept) / len(kept) for label in labels}
        for phase, labels in passes[0].items()
    }
