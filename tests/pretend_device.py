"""A second device where there is none: tensors on it hold real numbers, and mix with the CPU's as little as a GPU's do.

Inside ``with PretendDevice()`` the device ``lazy``, which torch knows by name and has no kernels for, computes with the
CPU's. What would be an error on a GPU is one here: an operator on tensors of both devices, ``numpy()`` of a tensor that
is not on the CPU. Autograd, optimizers and whole commands run (``--device lazy``).
"""

import contextlib
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

aten = torch.ops.aten
# These take tensors of both devices on a GPU too.
DEVICE = torch.device("lazy", 0)
ACROSS = (aten.copy_.default, aten._to_copy.default, aten.index.Tensor)


class DeviceMismatch(RuntimeError):
    """What a GPU answers with "Expected all tensors to be on the same device"."""


class PretendTensor(torch.Tensor):
    """A tensor on the pretended device; ``inner`` is the one on the CPU that holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "PretendTensor":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        tensor.inner = inner
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        twin: torch.Tensor = PretendTensor(self.inner.clone())
        if isinstance(self, nn.Parameter):
            twin = nn.Parameter(twin, self.requires_grad)
        memo[id(self)] = twin
        return twin

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PretendTensor({self.inner!r})"


class PretendDevice(TorchDispatchMode):
    """Lets tensors be made on the pretended device. Autocast is off on it, and random numbers are the CPU's."""

    def __enter__(self) -> "PretendDevice":
        self._entered = contextlib.ExitStack()
        self._entered.enter_context(Literals())
        for name, ours in (("autocast", _autocast), ("is_autocast_enabled", _is_enabled), ("Generator", _generator)):
            self._entered.enter_context(mock.patch.object(torch, name, ours))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._entered.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


# torch refuses a device that it has no kernels for.
_AUTOCAST, _IS_ENABLED, _GENERATOR = torch.autocast, torch.is_autocast_enabled, torch.Generator


def _autocast(kind: str, *args: Any, **more: Any) -> Any:
    return contextlib.nullcontext() if kind == DEVICE.type else _AUTOCAST(kind, *args, **more)


def _is_enabled(*kind: str) -> bool:
    return kind != (DEVICE.type,) and _IS_ENABLED(*kind)


def _generator(device: Any = "cpu") -> torch.Generator:
    return _GENERATOR("cpu" if torch.device(device).type == DEVICE.type else device)


class Literals(TorchFunctionMode):
    """Makes tensors of Python's numbers on the CPU and moves them, as torch does below what a dispatch mode sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.new_tensor:
            like, func, args = args[0], torch.tensor, args[1:]
            kwargs = {"device": like.device, "dtype": like.dtype} | kwargs
        if func not in (torch.tensor, torch.as_tensor) or kwargs.get("device") is None:
            return func(*args, **kwargs)
        return func(*args, **(kwargs | {"device": "cpu"})).to(kwargs["device"])


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Computes on the CPU what was asked for on either device."""
    values, spec = tree_flatten((args, kwargs))
    ours = [value for value in values if isinstance(value, PretendTensor)]
    wanted = kwargs.get("device")
    on_device = bool(ours) if wanted is None else torch.device(wanted).type == DEVICE.type
    if not ours and not on_device:
        return func(*args, **kwargs)
    # Tensors without axes are numbers to a GPU, but none that it can change.
    others = [x for x in values if isinstance(x, torch.Tensor) and not isinstance(x, PretendTensor) and x.ndim]
    if func._schema.is_mutable and isinstance(args[0], torch.Tensor) and not isinstance(args[0], PretendTensor):
        others.insert(0, args[0])
    if ours and others and func not in ACROSS:
        raise DeviceMismatch(f"{func}: tensors on {DEVICE} and on {others[0].device}")
    if func is aten.copy_.default:
        on_device = isinstance(args[0], PretendTensor)
    args, kwargs = tree_unflatten([x.inner if isinstance(x, PretendTensor) else x for x in values], spec)
    if wanted is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = func(*args, **kwargs)
    if not on_device:
        return result
    known = {id(tensor.inner): tensor for tensor in ours}
    return tree_map_only(torch.Tensor, lambda x: known[id(x)] if id(x) in known else PretendTensor(x), result)
