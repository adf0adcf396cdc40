"""From command-line arguments to objects: model, data, recipe."""
