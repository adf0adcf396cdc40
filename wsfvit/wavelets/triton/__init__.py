"""Fused Haar kernels for CUDA; only `haar`, `kernels` and `stem` import Triton, when a kernel is first used."""
