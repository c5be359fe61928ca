"""Symmetric late interaction (FILIP, ColBERT, DenseAV): the best cell of every token, the best token of every cell."""

from torch import Tensor

from .checks import check_pair
from .poolings import Max
from .similarity import pooled_similarity
from .tokens import TokenMean


def late_interaction(
    visual: Tensor,
    audio: Tensor,
    *,
    visual_mask: Tensor | None = None,
    audio_mask: Tensor | None = None,
    heads: int = 1,
    head_pooling: str = "elementwise_max",
    normalize: bool = True,
    nonnegative: bool = False,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scores of all pairs of images and clips, in both directions of late interaction.

        by_token[n, m] = mean over tokens t of clip m of  max over cells p of image n of  alpha[n, m, p, t]
        by_cell[n, m]  = mean over cells p of image n of  max over tokens t of clip m of  alpha[n, m, p, t]

    FILIP (ICLR 2022) contrasts images with `by_cell` and clips with `by_token`; ColBERT sums over the tokens of a
    query, the mean times their number; DenseAV's "paired" score is half of both.

    visual (N, C, h, w); audio (M, C, T). visual_mask (N, h, w) bool and audio_mask (M, T) bool: the cells and tokens
    that count (default: all). Other arguments, dtypes and errors as in `ops.pooled_similarity`. Returns two (N, M).
    """
    check_pair(visual, audio, tokens=True)
    if audio.dim() != 3:
        raise ValueError(f"audio: expected (M, C, T), got {tuple(audio.shape)}")
    options = {
        "heads": heads,
        "head_pooling": head_pooling,
        "normalize": normalize,
        "nonnegative": nonnegative,
        "backend": backend,
    }
    by_token = pooled_similarity(
        visual, audio, Max(), tokens=TokenMean(audio_mask), visual_mask=visual_mask, bias=bias, **options
    )
    # the same with the roles exchanged: a clip is an image of T x 1 cells, an image a clip of h w tokens
    by_cell = pooled_similarity(
        audio.unsqueeze(-1),
        visual.flatten(2),
        Max(),
        tokens=TokenMean(None if visual_mask is None else visual_mask.flatten(1)),
        visual_mask=None if audio_mask is None else audio_mask.unsqueeze(-1),
        bias=None if bias is None else bias.transpose(0, 1),
        **options,
    )
    return by_token, by_cell.t()
