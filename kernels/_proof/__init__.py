"""Proof of kernels without a GPU: guarded interpreter, traffic meter, ahead-of-time compilation, error budgets."""
