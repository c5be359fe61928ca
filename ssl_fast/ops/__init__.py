"""Fused operations on all image-audio pairs. Each module holds the plain-PyTorch reference, the checks and the
torch.library op."""

from . import poolings
from .cosine import cosine_map
from .late_interaction import late_interaction
from .poolings import *  # noqa: F403, as a new pooling is listed there alone
from .product import product_log_scores
from .similarity import pooled_similarity
from .tokens import TokenMax, TokenMean, token_maps

__all__ = [
    "TokenMax",
    "TokenMean",
    "cosine_map",
    "late_interaction",
    "pooled_similarity",
    "product_log_scores",
    "token_maps",
]
__all__ += poolings.__all__
