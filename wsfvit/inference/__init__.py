"""Prediction on images and export to other runtimes."""
