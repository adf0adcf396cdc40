"""Evaluation of image classifiers."""

from wsfvit.eval.evaluate import evaluate

__all__ = ["evaluate"]
