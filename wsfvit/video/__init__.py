"""Video prediction: SimVP with a WSF-ViT translator."""

from .simvp import SimVP, SimVPConfig

__all__ = ["SimVP", "SimVPConfig"]
