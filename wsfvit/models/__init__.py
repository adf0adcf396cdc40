"""Model families; importing this package registers them with timm."""

from . import wacnn, wsfvit
from ._state_dict import describe_misfit

__all__ = ["describe_misfit", "wacnn", "wsfvit"]
