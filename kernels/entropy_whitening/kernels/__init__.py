"""The kernels of entropy_whitening. Derivation and traffic: ../README.md."""
