"""Opt-in autotuning of the kernels on a GPU: python -m benchmarks.tuning."""
