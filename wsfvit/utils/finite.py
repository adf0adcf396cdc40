"""Refusal of outputs that are not finite: metrics computed from them would be wrong numbers."""

import torch

from wsfvit.utils.errors import UserError


def count_nonfinite(outputs: torch.Tensor) -> torch.Tensor:
    """Number of items of a batch of outputs (B, ...) with a value that is NaN or infinite; int64 scalar."""
    return (~outputs.isfinite()).reshape(len(outputs), -1).any(1).sum()


def refuse_nonfinite(bad: int, total: int, unit: str = "images") -> None:
    """Raise a ``UserError`` if the outputs of any, ``bad`` of ``total``, are not finite; ``unit`` names the items."""
    if bad:
        raise UserError(
            f"the model's outputs for {bad} of {total} {unit} are NaN or infinite: use other weights (these diverged "
            "or are damaged), or where --amp or a low precision overflowed, bfloat16 or float32"
        )
