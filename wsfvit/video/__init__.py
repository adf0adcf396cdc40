"""Video prediction: SimVP with a WSF-ViT translator on Moving MNIST or your own sequences."""

from wsfvit.video.model.simvp import SimVP, SimVPConfig

__all__ = ["SimVP", "SimVPConfig"]
