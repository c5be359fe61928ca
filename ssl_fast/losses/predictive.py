"""SSPL, the loss without negatives."""

from collections.abc import Callable, Sequence

from torch import Tensor

from .. import ops
from ..distributed import JoinedBatch
from ..ops.checks import check_tensor, without_autocast
from ..ops.reference import accumulate_dtype, unit
from .cross_entropy import total


def attention_pooled(visual: Tensor, audio: Tensor, *, backend: str = "auto") -> Tensor:
    """SSPL's audio-visual feature: the sum over cells of the raw visual vectors, weighted by the min-max scaled map.

        f_n = sum over cells p of  w_n(p) v_n(p),      w_n = (c_n - min c_n) / (max c_n - min c_n + 1e-10)

    c: cosines. visual (N, C, h, w), audio (N, C), paired -> (N, C), float32 (float64 for float64 features).
    """
    cells = ops.cosine_map(visual, audio, backend=backend).flatten(1)
    low, high = cells.amin(1, keepdim=True), cells.amax(1, keepdim=True)
    with without_autocast(visual):
        return (visual.to(cells.dtype).flatten(2) @ ((cells - low) / (high - low + 1e-10))[:, :, None])[:, :, 0]


def sspl(
    visuals: Sequence[Tensor],
    audio: Tensor,
    head: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    group=None,
    backend: str = "auto",
) -> Tensor:
    """SSPL: two views of an image under its sound predict each other, without negatives (Song et al., CVPR 2022).

        f_k = attention_pooled(visuals[k], audio);   (z_k, p_k) = head(f_k)
        L = - (mean cos(p_1, stop z_2) + mean cos(p_2, stop z_1)) / 2                       stop = without gradient

    visuals: two views (N, C, h, w), h and w may differ; audio (N, C), paired with the rows of both.
    head: (N, C) -> projection z and prediction p, (N, D) each, SimSiam's projector and predictor. The gradient that is
    stopped, and the predictor, are what keeps features from collapsing: there are no negatives.
    """
    if len(visuals) != 2:
        raise ValueError(f"visuals: expected two views of each image, got {len(visuals)}")
    for name, one in (("visuals[0]", visuals[0]), ("visuals[1]", visuals[1]), ("audio", audio)):
        check_tensor(name, one)
    batch = JoinedBatch(group, visuals[0], audio=audio)
    (z_first, p_first), (z_second, p_second) = (head(attention_pooled(v, audio, backend=backend)) for v in visuals)
    pairs = (p_first, z_second.detach()), (p_second, z_first.detach())
    with without_autocast(audio):
        cosines = ((unit(p.to(accumulate_dtype(p))) * unit(z.to(accumulate_dtype(z)))).sum(1) for p, z in pairs)
        return -0.5 * batch.mean(total(cosines))
