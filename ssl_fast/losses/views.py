"""SSL-Align: contrast of all pairs of an image's and a sound's views."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import ops
from ..ops.checks import check_tensor, without_autocast
from ..ops.poolings import Pooling
from ..ops.reference import accumulate_dtype, unit
from ..ops.tokens import TokenPooling
from .cross_entropy import check_tau, contrast, gather_tokens, join, total
from .extra import ExtraNegatives, check_extra
from .scores import clip_vectors, direction, pooled


def _views(name: str, views: Sequence[Tensor]) -> list[Tensor]:
    if not isinstance(views, Sequence) or not views:
        kind = "none" if isinstance(views, Sequence) else type(views).__name__
        got = f"a tensor {tuple(views.shape)}" if isinstance(views, Tensor) else kind
        raise TypeError(f"{name}: expected a list of at least one view, got {got}")
    for number, view in enumerate(views):
        check_tensor(f"{name}[{number}]", view)
    if any(view.dim() == 0 or view.shape[0] != views[0].shape[0] for view in views):
        raise ValueError(f"{name}: expected views of one batch size, got {[tuple(view.shape) for view in views]}")
    return list(views)


def _projections(
    visuals: list[Tensor], audios: list[Tensor], project_visual, project_audio, projected_visuals, projected_audios
) -> tuple[list[Tensor], list[Tensor]] | None:
    """The projected features that s_A compares, by either way of handing them over; None without s_A."""
    ways = {
        "project_visual, project_audio": (project_visual, project_audio),
        "projected_visuals, projected_audios": (projected_visuals, projected_audios),
    }
    given = [name for name, pair in ways.items() if pair != (None, None)]
    if len(given) > 1:
        raise ValueError("projections: expected callables or projected tensors, got both")
    if not given:
        return None
    if any(one is None for one in ways[given[0]]):
        raise ValueError(f"{given[0]}: expected both or neither, got one")
    if projected_visuals is None:
        return [project_visual(v.mean((2, 3))) for v in visuals], [project_audio(a) for a in audios]
    for name, projected, views in (
        ("projected_visuals", projected_visuals, visuals),
        ("projected_audios", projected_audios, audios),
    ):
        if len(projected) != len(views):
            raise ValueError(f"{name}: expected {len(views)}, one per view, got {len(projected)}")
        for number, x in enumerate(projected):
            check_tensor(f"{name}[{number}]", x)
    return list(projected_visuals), list(projected_audios)


def _project_extra(extra: ExtraNegatives, audio: Tensor, project: Callable[[Tensor], Tensor]) -> ExtraNegatives:
    """Extra negatives with their projections."""
    tensors = extra.tensors({"audio": audio})
    check_extra(tensors, {"audio": audio})  # before the projection meets another shape
    sounds = tensors["extra_negatives.audio"]
    return replace(extra, audio=(sounds, project(clip_vectors(sounds, ops.TokenMean(extra.mask)))))


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    """All cosines of x (N, D) and y (M, D) -> (N, M), never in reduced precision."""
    with without_autocast(x):
        return unit(x.to(accumulate_dtype(x))) @ unit(y.to(accumulate_dtype(y))).t()


def ssl_align(
    visuals: Sequence[Tensor],
    audios: Sequence[Tensor],
    project_visual: Callable[[Tensor], Tensor] | None = None,
    project_audio: Callable[[Tensor], Tensor] | None = None,
    *,
    pooling: Pooling = ops.Mean(),
    tau: float = 0.07,
    symmetric: bool = False,
    alignment: bool = True,
    mean_weight: float = 0.0,
    projected_visuals: Sequence[Tensor] | None = None,
    projected_audios: Sequence[Tensor] | None = None,
    tokens: TokenPooling | None = None,
    positives: Tensor | None = None,
    extra_negatives: ExtraNegatives | None = None,
    group=None,
    backend: str = "auto",
    return_terms: bool = False,
):
    """SSL-Align: localization score s_L plus alignment score s_A, over all pairs of views (ICCV 2023, eq. 1-3).

        L = sum over view pairs (v, a) of  CE(s_L(v, a) / tau, positives) + CE(s_A(v, a) / tau, positives)

    s_L is `pooling` of the cosines of un-projected features; s_A = cos(p_V(mean over cells of v), p_A(a)). As in the
    paper the pairs are summed (nine for three views each), not averaged, and negatives are audio; the paper's missing
    minus sign is put in. `symmetric` averages both directions. alignment=False leaves s_A out, whatever is given.

    visuals: views (N, C, h, w), h and w may differ from view to view; audios: views (M, C), or with `tokens`, those of
        every view, (M, C, T).
    project_visual, project_audio: p_V (N, C) -> (N, D), p_A (M, C) -> (M, D); without them there is no s_A. p_A gets
        the mean over tokens. Where the projections are made elsewhere, `projected_visuals` and `projected_audios` take
        their results instead, one (N, D) and one (M, D) for each view.
    extra_negatives: the same for all audio views; with `projected_audios` a pair, `audio` (K, C) and its projection
        (K, D), which p_A otherwise makes.
    return_terms: also a dict of "localization" and "alignment" (0 without projections), both detached.
    """
    check_tau(tau)
    visuals, audios = _views("visuals", visuals), _views("audios", audios)
    clips = [clip_vectors(audio, tokens) for audio in audios]
    projected = _projections(visuals, clips, project_visual, project_audio, projected_visuals, projected_audios)
    projected = projected if alignment else None
    negatives, weight = direction(symmetric)
    every, like = {f"audio view {number}": audio for number, audio in enumerate(audios)}, {"audio": audios[0]}
    if projected:
        every |= {f"projected audio view {number}": audio for number, audio in enumerate(projected[1])}
        like["projected"] = projected[1][0]
        if isinstance(extra_negatives, ExtraNegatives) and project_audio is not None:
            extra_negatives = _project_extra(extra_negatives, audios[0], project_audio)
    batch, positives, extra, *every = join(group, positives, extra_negatives, visuals[0], "visuals[0]", like, **every)
    # all audio views at once: one pass over each visual view
    every_audio, every_projected = extra.behind(torch.cat(every[: len(audios)])), every[len(audios) :]
    tokens = gather_tokens(batch, tokens, extra, every_audio, len(audios))

    def over_audio_views(scores: Tensor) -> Tensor:
        blocks = extra.without(scores, 1).chunk(len(audios), 1)
        if extra.count:
            blocks = [torch.cat([block, scores[:, -extra.count :]], 1) for block in blocks]
        return total(contrast(batch, block, positives, extra, negatives, tau) for block in blocks) * weight

    localization = total(
        over_audio_views(pooled(v, every_audio, pooling, mean_weight, backend, tokens)) for v in visuals
    )
    aligned = torch.zeros_like(localization)
    if projected:
        every_projected = extra.behind(torch.cat(every_projected), 1)
        aligned = total(over_audio_views(_cosines(v, every_projected)) for v in projected[0])
    loss = localization + aligned
    if return_terms:
        return loss, {"localization": localization.detach(), "alignment": aligned.detach()}
    return loss
