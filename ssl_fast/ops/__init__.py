"""Fused operations on all image-audio pairs. Each module holds the plain-PyTorch reference, the checks and the
torch.library op."""

from . import poolings
from .cosine import cosine_map
from .poolings import *  # noqa: F403, as a new pooling is listed there alone
from .product import product_log_scores
from .similarity import pooled_similarity

__all__ = ["cosine_map", "pooled_similarity", "product_log_scores"]
__all__ += poolings.__all__
