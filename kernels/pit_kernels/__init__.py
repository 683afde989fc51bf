"""Kernels of PIT: one folder an operation, one file a backend; the package knows nothing of `pit`."""
