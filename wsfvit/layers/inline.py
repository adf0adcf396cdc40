"""When a module's weights may be used without calling it."""

from torch import nn

# From so many tokens, or pixels, per channel on it pays to work on the weights of each image instead of on its map.
TOKENS_PER_CHANNEL = 4


def can_inline(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether ``module`` computes what its class says and nobody watches it.

    Where one computation takes the place of several modules, they are not called any more. A subclass or a stand-in
    (adapters, quantisation, parametrisations) must be, and hooks want to see what goes in and out.
    """
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return type(module) is cls and not any(hooks)
