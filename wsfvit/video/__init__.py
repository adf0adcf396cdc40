"""Video prediction: SimVP with a WSF-ViT translator, Moving MNIST, metrics and pictures."""
