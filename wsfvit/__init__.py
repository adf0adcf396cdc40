"""WSF-ViT: wavelet vision transformers for PyTorch.

Importing the package registers every model with timm; nothing touches CUDA or Triton, and nothing is printed.
"""

from . import models as models

__version__ = "0.1.0"
