"""Fused operations on all image-audio pairs. Each module holds the plain-PyTorch reference, the checks and the
torch.library op."""

from .cosine import cosine_map
from .product import product_log_scores
from .similarity import Max, Mean, SoftThreshold, pooled_similarity

__all__ = ["Max", "Mean", "SoftThreshold", "cosine_map", "pooled_similarity", "product_log_scores"]
