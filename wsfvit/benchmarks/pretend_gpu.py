"""A GPU for torch.compile where there is none: its compiler plans a model's kernels for a card that is not asked.

Inside ``with pretend_gpu(card)`` tensors of `on_pretended_gpu` live on ``cuda:0`` without memory, and Dynamo, AOT
autograd and inductor treat them as they treat those of a real card: up to, and not including, the code of the kernels.
Nothing runs, and a GPU that is there is not used. What torch would ask the driver is answered here:

- properties of the card, and that autocast and Triton work on it;
- layouts of convolutions: cuDNN's, which keep channels-last (without a driver bfloat16 is thought to lack cuDNN);
- which attention runs: a fused one, see `fused_attention` (without a driver it is always the unfused formula);
- the backward pass: autograd's engine wants a context on each device, `run_backward` does without.

Two things are switched off because they run kernels: padding of matrix products to aligned sizes, which inductor
decides by timing them, and caches on disk, which would return what was compiled elsewhere.

All of it replaces internals of torch, as they are in 2.11; they are put back at the end. Where another version has no
such internal, `pretend_gpu` says which.
"""

import functools
import importlib
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from wsfvit.benchmarks.backward_walk import run_backward
from wsfvit.benchmarks.kernel_code import WARP, Card
from wsfvit.errors import UserError

WRITTEN_FOR = "2.11"
aten = torch.ops.aten
# Of the memory-efficient attention: the last axis of its mask starts and ends at a multiple of this many elements.
MASK_ALIGNMENT = 8
# Of the fused kernels, in elements of half precision and of float32: channels of a head.
HEAD_ALIGNMENT = {torch.bfloat16: 8, torch.float16: 8, torch.float32: 4}
FLASH_MAX_HEAD = 256
_SETTINGS: dict[str, dict[str, Any]] = {
    "torch._dynamo.config": {"automatic_dynamic_local_pgo": False},
    "torch._functorch.config": {"force_non_lazy_backward_lowering": True, "enable_autograd_cache": False},
    "torch._inductor.config": {"shape_padding": False, "fx_graph_cache": False, "compile_threads": 1},
}


@contextmanager
def pretend_gpu(card: Card) -> Iterator[None]:
    """Makes torch.compile plan for ``card``; see the module. Nothing of what was compiled outside is known inside.

    Raises:
        UserError: This version of torch lacks one of the internals.
    """
    with ExitStack() as stack:
        try:
            for owner, name, answer in _answers(card):
                stack.enter_context(mock.patch.object(owner, name, answer))
            for config, settings in _SETTINGS.items():
                stack.enter_context(importlib.import_module(config).patch(**settings))
            _forget_devices()
        except (AttributeError, ImportError) as err:
            said = f"this works with torch {WRITTEN_FOR}, whose internals it replaces"
            raise UserError(f"{said}; torch {torch.__version__} has others: {err}") from err
        stack.callback(_forget_devices)
        yield


def _answers(card: Card) -> list[tuple[Any, str, Any]]:
    """What to replace: owner, attribute, value."""
    from torch._dynamo import device_interface
    from torch._inductor import compile_fx, scheduler
    from torch._inductor.fx_passes import fuse_attention, joint_graph
    from torch._subclasses import fake_tensor
    from torch.utils import _triton

    properties = _properties(card)
    interface = device_interface.CudaInterface
    folder = joint_graph.UniformValueConstantFolder
    return [
        (torch.cuda, "get_device_properties", lambda device=None: properties),
        (torch.cuda, "get_device_capability", lambda device=None: divmod(card.capability, 10)),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        *((module, "has_triton", lambda: True) for module in (_triton, compile_fx, scheduler)),
        (interface, "get_device_properties", staticmethod(lambda device=None: properties)),
        (interface, "get_compute_capability", staticmethod(lambda device=None: card.capability)),
        (interface, "is_bf16_supported", staticmethod(lambda including_emulation=True: True)),
        (interface, "is_triton_capable", staticmethod(lambda device=None: True)),
        (interface, "raise_if_triton_unavailable", staticmethod(lambda device=None: None)),
        (interface, "is_available", staticmethod(lambda: True)),
        (interface.Worker, "get_device_properties", staticmethod(lambda device=None: properties)),
        (interface.Worker, "current_device", staticmethod(lambda: 0)),
        (fake_tensor, "init_gpu_context", lambda device: None),
        (torch._C, "_select_conv_backend", _select_conv_backend),
        (torch._C, "_conv_determine_backend_memory_format", _conv_memory_format),
        (fuse_attention, "_scaled_dot_product_attention", fused_attention),
        (torch.autograd, "_engine_run_backward", run_backward),
        (folder, "_deduce_value", _constants_on_cpu(folder._deduce_value)),
        (folder, "_add_peephole_patterns", _constants_on_cpu(folder._add_peephole_patterns)),
    ]


def _forget_devices() -> None:
    """Empties what torch.compile remembers of compiled code and of devices."""
    from torch._inductor import utils
    from torch._inductor.runtime.hints import DeviceProperties

    torch.compiler.reset()
    for function in (DeviceProperties.create, *vars(utils).values()):
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def _properties(card: Card) -> types.SimpleNamespace:
    """What inductor asks of a card. All but the multiprocessors are the same for the cards of `kernel_code`."""
    major, minor = divmod(card.capability, 10)
    return types.SimpleNamespace(
        name="a card that is not there",
        major=major,
        minor=minor,
        multi_processor_count=card.multiprocessors,
        warp_size=WARP,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        regs_per_multiprocessor=65536,
        total_memory=2**40,
        gcnArchName="",
    )


def _select_conv_backend(*args: Any, **kwargs: Any) -> Any:
    return torch._C._ConvBackend.Cudnn  # type: ignore[attr-defined]


def _conv_memory_format(x: Tensor, weight: Tensor, backend: Any) -> torch.memory_format:
    """cuDNN's rule for maps (B, C, H, W): channels-last if the map or the weight is."""
    formats = [torch._prims_common.suggest_memory_format(each) for each in (x, weight)]
    return torch.channels_last if torch.channels_last in formats else torch.contiguous_format


class _ConstantsOnCPU(TorchDispatchMode):
    """Lets inductor compute constants, a number each, that the plan has on the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(torch.device, lambda device: torch.device("cpu"), (args, kwargs or {}))
        return func(*args, **kwargs)


def _constants_on_cpu(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def fold(*args: Any) -> Any:
        with _ConstantsOnCPU():
            return method(*args)

    return fold


def use_fused_attention(gm: fx.GraphModule) -> fx.GraphModule:
    """Puts `fused_attention` in the place of each attention of a graph that Dynamo made."""
    for node in gm.graph.nodes:
        if node.target is F.scaled_dot_product_attention:
            node.target = fused_attention
    gm.recompile()
    return gm


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What `scaled_dot_product_attention` calls on a card of compute capability 8 or 9.

    FlashAttention in half precision without a mask, otherwise the memory-efficient kernel, or the unfused formula for
    what neither takes. Where torch prefers cuDNN's kernel, that reads and writes the same tensors.

    Args:
        query: (B, heads, N, d), like ``key`` and ``value`` with M tokens. Others: see torch.

    Returns:
        (B, heads, N, d).
    """
    if torch.is_autocast_enabled("cuda"):  # which casts what this operator takes, but not what the kernels take
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    head = query.shape[-1]
    fusible = query.ndim == 4 and not enable_gqa and query.dtype in HEAD_ALIGNMENT
    if fusible and attn_mask is None and query.dtype != torch.float32 and head <= FLASH_MAX_HEAD:
        # Its entry pads the channels of a head and passes the scale of the unpadded ones.
        query, key, value = (F.pad(each, (0, -head % 8)) if head % 8 else each for each in (query, key, value))
        found = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=head**-0.5 if scale is None else scale
        )
        return found[0][..., :head]
    if not fusible or head % HEAD_ALIGNMENT[query.dtype]:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None:
        attn_mask = _aligned_mask(attn_mask, query, key)
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    found = aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, needs_grad, dropout_p, is_causal, scale=scale
    )
    return found[0]


def _aligned_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """An additive mask of shape (B, heads, N, M) whose rows start at multiples of `MASK_ALIGNMENT` elements."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
    length = mask.shape[-1]
    strides = mask.stride()
    if strides[-1] != 1 or any(stride % MASK_ALIGNMENT for stride in strides[:-1]):
        mask = F.pad(mask, (0, -length % MASK_ALIGNMENT))[..., :length]
    return mask.expand(*query.shape[:3], key.shape[2])


@contextmanager
def on_pretended_gpu(model: nn.Module, *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """Replaces a model's parameters and buffers, in place, and other tensors by ones on the pretended GPU.

    They keep shapes, strides and dtypes and have no values; tensors that are made inside have none either.

    Yields:
        The model and the tensors.
    """
    made: dict[int, Tensor] = {}

    def move(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
            made[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
        return made[id(tensor)]

    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for own in (module._parameters, module._buffers):
                own.update({name: move(each) for name, each in own.items() if each is not None})  # type: ignore
        yield model, *map(move, tensors)
