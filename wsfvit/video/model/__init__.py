"""SimVP with a WSF-ViT translator."""
