"""Mixed precision, data type of the weights and memory format."""

import argparse
from contextlib import AbstractContextManager

import torch

from wsfvit.utils.errors import UserError


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Autocast to ``dtype`` on ``device``; disabled for None."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def amp_dtype(args: argparse.Namespace) -> torch.dtype | None:
    """Autocast dtype of ``--amp``, or None; raise a ``UserError`` if --model-dtype lowers the precision as well."""
    if not args.amp:
        return None
    if args.model_dtype not in (None, "float32"):
        raise UserError(f"--amp keeps the weights in float32: leave out --model-dtype {args.model_dtype}, or --amp")
    return torch.bfloat16 if args.amp_dtype == "bfloat16" else torch.float16


def model_dtype(args: argparse.Namespace) -> torch.dtype:
    """Data type of the weights, by ``--model-dtype``."""
    return getattr(torch, args.model_dtype or "float32")


def memory_format(args: argparse.Namespace) -> torch.memory_format:
    """Memory format, by ``--channels-last``."""
    return torch.channels_last if args.channels_last else torch.contiguous_format
