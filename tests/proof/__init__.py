"""Proof of kernels without a GPU: guarded interpreter, traffic, compilation, error budgets."""
