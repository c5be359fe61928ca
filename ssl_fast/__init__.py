"""Fused kernels, losses, training and evaluation for visual sound source localization."""

import torch  # noqa: F401  first: the compiled module then shares torch's OpenMP runtime and thread pool

__version__ = "0.1.0"
