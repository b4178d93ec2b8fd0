"""Proof of Triton kernels on machines without a GPU: guarded interpreter, traffic meter, ahead-of-time compilation, error budgets."""
