"""Masks measured: lesions, connected components, surfaces."""
