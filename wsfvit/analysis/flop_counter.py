"""Count the cost of one forward pass per module, by the rules of `wsfvit.analysis.flop_rules`."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from wsfvit.analysis.flop_rules import FREE, Cost, Rule, attention, find_rule
from wsfvit.utils.errors import UserError


@dataclass(frozen=True)
class ModuleCost:
    """One module with its submodules: path from the model ("" for the model itself), parameters and cost."""

    name: str
    params: int
    cost: Cost


@dataclass(frozen=True)
class Complexity:
    """Complexity of one forward pass.

    Attributes:
        params: Number of parameters.
        macs: Multiply-accumulates.
        activations: Output elements of convolutions, linear layers, matrix products and fused attention.
        other_flops: Floating-point operations outside the MACs, see `flop_rules.Cost`.
        modules: Every module in the order of the model, the model itself first.
        operators: Total cost of each operator ("aten::addmm").
    """

    params: int
    macs: int
    activations: int
    other_flops: int
    modules: list[ModuleCost]
    operators: dict[str, Cost]


class UnknownOperators(UserError):
    """The forward pass ran operators without a rule, so the count would be wrong."""


def count_complexity(model: nn.Module, *inputs: Any) -> Complexity:
    """Count one forward pass of ``model`` in eval mode on ``inputs`` (for a classifier: images (B, C, H, W)).

    Modules have hooks during the count, so shortcuts around module calls (`wsfvit.layers.inline`) are off. A model and
    inputs on the meta device are the fastest, since nothing is computed.

    Raises:
        UnknownOperators: The model runs operators without a rule.
    """
    was_training = model.training
    counter = _Counter()
    try:
        with torch.no_grad(), counter.follow(model.eval()), counter, _FusedAttention(counter):
            model(*inputs)
    finally:
        model.train(was_training)
    if counter.unknown:
        raise UnknownOperators(_describe_unknown(counter.unknown))
    modules = list(_sum_modules(model, counter.costs))
    total = modules[0].cost
    return Complexity(modules[0].params, total.macs, total.activations, total.other, modules, counter.operators)


class _Counter(TorchDispatchMode):
    """Add up the costs of all operators by module."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, Cost] = {}  # by module
        self.operators: dict[str, Cost] = {}
        self.unknown: Counter[tuple[str, str]] = Counter()  # operator and module: calls
        self.running = [""]
        self.known: dict[Any, tuple[Rule | None, list[tuple[str, Any]]]] = {}
        self.paused = False

    @contextmanager
    def follow(self, model: nn.Module) -> Iterator[None]:
        """Track the running module in ``running``."""
        handles = []
        for name, module in model.named_modules():

            def enter(module: nn.Module, args: Any, name: str = name) -> None:
                self.running.append(name)

            def leave(module: nn.Module, args: Any, output: Any) -> None:
                self.running.pop()

            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, operator: str, cost: Cost) -> None:
        """Add the cost of one call to the running module and to the operator."""
        self.costs[self.running[-1]] = self.costs.get(self.running[-1], FREE) + cost
        self.operators[operator] = self.operators.get(operator, FREE) + cost

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not self.paused:
            rule, parameters = self.known.get(func) or self._look_up(func)
            if rule is None:
                self.unknown[func._schema.name, self.running[-1]] += 1
            else:
                later = (kwargs.get(name, default) for name, default in parameters[len(args) :])
                self.add(func._schema.name, rule((*args, *later), output))
        return output

    def _look_up(self, operator: Any) -> tuple[Rule | None, list[tuple[str, Any]]]:
        """An operator's rule, and the names and defaults of its parameters; cached because the lookup is slow."""
        parameters = [(argument.name, argument.default_value) for argument in operator._schema.arguments]
        self.known[operator] = find_rule(operator), parameters
        return self.known[operator]


class _FusedAttention(TorchFunctionMode):
    """Count fused attention as one operator on every device; some devices decompose it."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value")
        tensors = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names))
        self.counter.add("aten::scaled_dot_product_attention", attention(*tensors))
        self.counter.paused = True
        try:
            return func(*args, **kwargs)
        finally:
            self.counter.paused = False


def _sum_modules(model: nn.Module, costs: dict[str, Cost]) -> Iterator[ModuleCost]:
    """Add each cost to all parents by name too, because a container may hold modules without being called."""
    totals: dict[str, Cost] = {}
    for name, cost in costs.items():
        parts = name.split(".") if name else []
        for depth in range(len(parts) + 1):
            path = ".".join(parts[:depth])
            totals[path] = totals.get(path, FREE) + cost
    for name, module in model.named_modules():
        yield ModuleCost(name, sum(p.numel() for p in module.parameters()), totals.get(name, FREE))


def _describe_unknown(unknown: Counter[tuple[str, str]]) -> str:
    calls: Counter[str] = Counter()
    for (operator, _), count in unknown.items():
        calls[operator] += count
    shown = ", ".join(
        f"{operator} ({count} x, first in {next(m for o, m in unknown if o == operator) or 'the model itself'})"
        for operator, count in sorted(calls.items())
    )
    return (
        f"no rule for the cost of these operators: {shown}. Nothing was counted. Add one with "
        f"wsfvit.analysis.flop_rules.register_flop_rule('{min(calls)}')"
    )
