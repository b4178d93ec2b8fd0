"""The kernels of nonlocal_attention. Derivation and traffic: ../README.md."""
