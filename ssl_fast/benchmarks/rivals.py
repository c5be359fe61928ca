"""Other packages that compute what a case of `ops.CASES` computes, for `ssl-fast bench`.

A rival takes the case's visual (N, C, h, w) and audio (N, C, T) and returns a function without arguments that computes
the scores (N, N) as the forward pass does, from features in the package's own layout; or why there is none:
not installed, not for such features, or not the same scores.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def token_mask(audio: Tensor) -> Tensor:
    """(N, T) bool: clips have from T tokens down to half of them."""
    clips, _, tokens = audio.shape
    lengths = tokens - torch.arange(clips, device=audio.device) % (tokens // 2 + 1)
    return torch.arange(tokens, device=audio.device) < lengths[:, None]


def maxsim_cpu(visual: Tensor, audio: Tensor) -> Callable[[], Tensor] | str:
    """maxsim-cpu: images are documents, a clip is a query; it answers one query at a time."""
    if visual.is_cuda or visual.dtype != torch.float32:
        return "float32 on a CPU only"
    try:
        import maxsim_cpu as package  # pyright: ignore[reportMissingImports]
    except ImportError:
        return "not installed"
    documents = visual.flatten(2).transpose(1, 2).contiguous().numpy()
    queries = [clip[:, keep].t().contiguous().numpy() for clip, keep in zip(audio, token_mask(audio))]

    def scores() -> Tensor:
        columns = [torch.from_numpy(package.maxsim_scores(query, documents)) / len(query) for query in queries]
        return torch.stack(columns, 1)

    best = [(documents @ query.T).max(1).mean(1) for query in queries]
    if not torch.allclose(scores(), torch.from_numpy(np.stack(best, 1)), rtol=1e-4, atol=1e-4):
        return "wrong scores at this size"
    return scores
