"""Model families; importing this package registers them with timm."""

from . import mwa, wacnn, wavemix, wsfvit
from ._state_dict import convert_state_dict, describe_misfit
from .wavemix_heads import WaveMixSegmentation, WaveMixSuperResolution

__all__ = [
    "WaveMixSegmentation",
    "WaveMixSuperResolution",
    "convert_state_dict",
    "describe_misfit",
    "mwa",
    "wacnn",
    "wavemix",
    "wsfvit",
]
