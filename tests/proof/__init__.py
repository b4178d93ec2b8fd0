"""Proof of kernels without a GPU: guarded interpreter, traffic meter, compilation, error budgets."""
