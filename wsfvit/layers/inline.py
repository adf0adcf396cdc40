"""Conditions for other forms of a computation: of a module's weights without calling it, of symbolic tracing."""

from torch import Tensor, fx, nn

# Tokens or pixels per channel from which it is faster to transform the weights per image than the map.
TOKENS_PER_CHANNEL = 4


def can_inline(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether ``module`` is exactly of class ``cls`` and has no hooks.

    Only then may one computation replace calls of several modules: subclasses and replacements (adapters, quantisation,
    parametrisations) and modules with hooks must be called.
    """
    return type(module) is cls and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether ``module`` has forward or backward hooks."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks)


def is_symbolic(x: Tensor) -> bool:
    """Whether torch.fx traces ``x``, which then has no sizes, device or dtype to choose a form by."""
    return isinstance(x, fx.Proxy)
