"""Complexity tables, class activation maps, training curves."""
