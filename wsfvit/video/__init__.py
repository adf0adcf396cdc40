"""Video prediction: SimVP with a WSF-ViT translator, Moving MNIST and your own sequences, metrics with their scale."""

from wsfvit.video.model.simvp import SimVP, SimVPConfig

__all__ = ["SimVP", "SimVPConfig"]
