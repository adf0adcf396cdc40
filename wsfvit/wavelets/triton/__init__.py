"""Fused Haar kernels for CUDA; `triton` is imported only here, and only when a kernel is asked for."""
