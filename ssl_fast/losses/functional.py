"""The losses as functions; the package's docstring says what they share."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..distributed import JoinedBatch
from ..ops.checks import check_pair, check_tensor, without_autocast
from ..ops.cross_entropy import fused_cross_entropy
from ..ops.mean import mean_vectors
from ..ops.product import check_product_features
from ..ops.reference import accumulate_dtype, unit
from ..ops.row_loss import pooled_row_loss, product_row_loss
from ..ops.similarity import similarity_and_map
from ..ops.tokens import TokenPooling
from .cross_entropy import (
    check_negatives,
    check_one_positive,
    check_positives,
    check_tau,
    contrast,
    cross_entropy,
    gather_tokens,
    has_kernel,
    has_row_loss,
    join,
    own,
    target_columns,
    total,
)
from .extra import ExtraNegatives
from .options import check_choice, options_of
from .scores import blend, direction, pooled

# ---------------------------------------------------------------------------------------------------------------------
# MarginNCE, LVS, EZ-VSL


def margin_nce(
    visual: Tensor,
    audio: Tensor,
    *,
    margin: float = -0.2,
    epsilon: float = 0.65,
    beta: float = 0.03,
    tau: float = 0.07,
    symmetric: bool = False,
    mean_weight: float = 0.0,
    tokens: TokenPooling | None = None,
    positives: Tensor | None = None,
    extra_negatives: ExtraNegatives | None = None,
    group=None,
    backend: str = "auto",
) -> Tensor:
    """MarginNCE: a negative margin for faulty positives (eq. 1-3 of its paper).

        S = soft-threshold pooling of the cosines (epsilon, beta);  L = CE((S - margin at positives) / tau, positives)

    Negatives are audio as in the paper; `symmetric` averages both directions.
    """
    check_tau(tau)
    batch, positives, extra, audio = join(group, positives, extra_negatives, visual, audio=audio)
    audio, pooling = extra.behind(audio), ops.SoftThreshold(epsilon, beta)
    plain = not symmetric and mean_weight == 0 and tokens is None and audio.dim() == 2
    if plain and has_row_loss(batch, (visual, audio), positives, extra, backend):
        return _row_loss(visual, audio, positives, pooling, tau, margin)
    tokens = gather_tokens(batch, tokens, extra, audio)
    scores = pooled(visual, audio, pooling, mean_weight, backend, tokens)
    negatives, weight = direction(symmetric)
    return contrast(batch, scores, positives, extra, negatives, tau, margin, weight=weight, backend=backend)


def _row_loss(visual, audio, positives, pooling, tau, margin, background=None) -> Tensor:
    """`pooled_row_loss` of features that are checked first."""
    check_pair(visual, audio)
    check_positives(len(visual), len(audio), positives, visual.device)
    if background is None:
        check_negatives(len(audio))
    return pooled_row_loss(visual, audio, pooling, positives, tau, margin, background)


def lvs(
    visual: Tensor,
    audio: Tensor,
    *,
    epsilon: float = 0.65,
    epsilon_negative: float = 0.4,
    beta: float = 0.03,
    tau: float = 0.07,
    tri_map: bool = True,
    hard_negative: bool = True,
    diagonal: Literal["excluded", "released"] = "excluded",
    margin: float = 0.0,
    mean_weight: float = 0.0,
    positives: Tensor | None = None,
    extra_negatives: ExtraNegatives | None = None,
    group=None,
    backend: str = "auto",
) -> Tensor:
    """LVS: soft-threshold pooling, and the background of the image itself as one more negative (CVPR 2021).

        S = soft-threshold pooling of the cosines (epsilon, beta)
        H_i = mean of the positive map c_i weighted by sigmoid((e - c_i) / beta)
              with e = epsilon_negative if tri_map, else epsilon
        L = CE([S - margin at positives | H] / tau, positives)       H only with hard_negative

    diagonal: "excluded", positives are no negatives; "released", as the released program does, each is one of its own
        negatives, times -99: at S = .5 that is nothing, at .001 a quarter of a negative, at -.05 a logit of +71.
    That program divides 0 by 0 where a whole map exceeds .9; here the background weights are normalised as logarithms.
    positives: a matrix without hard_negative only, which is the background of *the* pair, and not with "released".
    """
    if hard_negative:
        check_one_positive(positives, "with hard_negative, the background of the map of one pair")
    if diagonal == "released":
        check_one_positive(positives, "with diagonal='released'")
    batch, positives, extra, audio = join(group, positives, extra_negatives, visual, audio=audio)
    return _lvs(
        batch,
        visual,
        extra.behind(audio),
        extra,
        epsilon=epsilon,
        epsilon_negative=epsilon_negative,
        beta=beta,
        tau=tau,
        tri_map=tri_map,
        hard_negative=hard_negative,
        diagonal=diagonal,
        margin=margin,
        mean_weight=mean_weight,
        positives=positives,
        backend=backend,
        need_map=False,
    )[0]


def _lvs(
    batch,
    visual,
    audio,
    extra,
    *,
    epsilon,
    epsilon_negative,
    beta,
    tau,
    tri_map,
    hard_negative,
    diagonal,
    margin,
    mean_weight,
    positives,
    backend,
    need_map,
) -> tuple[Tensor, Tensor]:
    """The loss, and the maps (N, h, w) of the positives, (0,) where they are not needed."""
    check_tau(tau)
    check_choice("diagonal", diagonal, lvs)
    repeat = -99.0 if diagonal == "released" else None
    pooling = ops.SoftThreshold(epsilon, beta)
    below = epsilon_negative if tri_map else epsilon
    plain = not need_map and repeat is None and mean_weight == 0
    if plain and has_row_loss(batch, (visual, audio), positives, extra, backend):
        background = (below, beta) if hard_negative else None
        return _row_loss(visual, audio, positives, pooling, tau, margin, background), visual.new_empty(0)
    if not (hard_negative or need_map):
        scores = pooled(visual, audio, pooling, mean_weight, backend)
        loss = contrast(batch, scores, positives, extra, "audio", tau, margin, backend=backend, repeat=repeat)
        return loss, scores.new_empty(0)
    check_pair(visual, audio)
    check_positives(visual.shape[0], audio.shape[0] - extra.count, positives, visual.device)
    columns = target_columns(positives, visual).flatten()
    scores, maps = similarity_and_map(visual, audio, pooling, columns, backend=backend)
    scores = blend(scores, visual, audio, mean_weight, backend)
    if not hard_negative:
        return contrast(batch, scores, positives, extra, "audio", tau, margin, backend=backend, repeat=repeat), maps
    cells, scores = maps.flatten(1), extra.weigh(scores, tau)
    if has_kernel(batch, scores, positives, backend, repeat=repeat):
        background = {"maps": cells, "epsilon": below, "beta": beta}
        return fused_cross_entropy(scores, positives, tau, margin, rows=True, columns=False, **background), maps
    weight = F.logsigmoid((below - cells) / beta).softmax(1)
    scores = torch.cat([scores, (weight * cells).sum(1, keepdim=True)], 1)
    return cross_entropy(batch, scores, positives, tau, margin, repeat=repeat), maps


def ez_vsl(
    visual: Tensor,
    audio: Tensor,
    *,
    tau: float = 0.03,
    margin: float = 0.0,
    mean_weight: float = 0.0,
    tokens: TokenPooling | None = None,
    positives: Tensor | None = None,
    extra_negatives: ExtraNegatives | None = None,
    group=None,
    backend: str = "auto",
) -> Tensor:
    """EZ-VSL: multiple-instance contrast of the best cell (ECCV 2022).

        S = max over cells of the cosines;  L = CE(S / tau, positives) + CE(S^T / tau, positives)

    The two directions are added, as released. The margin is subtracted from the positives of both.
    """
    check_tau(tau)
    batch, positives, extra, audio = join(group, positives, extra_negatives, visual, audio=audio)
    audio = extra.behind(audio)
    tokens = gather_tokens(batch, tokens, extra, audio)
    scores = pooled(visual, audio, ops.Max(), mean_weight, backend, tokens)
    return contrast(batch, scores, positives, extra, "both", tau, margin, backend=backend)


# ---------------------------------------------------------------------------------------------------------------------
# SLAVC, FNAC, SSL-TIE

_SLAVC_FEATURES = ("visual_loc", "visual_avc", "audio_loc", "audio_avc")


def _check_momentum(momentum: Sequence[Tensor], online: Sequence[Tensor]) -> None:
    if len(momentum) != 4:
        raise ValueError(f"momentum: expected {', '.join(_SLAVC_FEATURES)}, got {len(momentum)} tensors")
    for name, copy, feature in zip(_SLAVC_FEATURES, momentum, online):
        check_tensor(f"momentum {name}", copy)
        check_tensor(name, feature)
        if copy.shape != feature.shape:
            raise ValueError(f"momentum {name}: expected {tuple(feature.shape)}, got {tuple(copy.shape)}")
        if copy.requires_grad:
            raise ValueError(
                f"momentum {name}: expected no gradient (compute it under torch.no_grad()), got requires_grad=True"
            )


def slavc(
    visual_loc: Tensor,
    visual_avc: Tensor,
    audio_loc: Tensor,
    audio_avc: Tensor,
    *,
    momentum: Sequence[Tensor] | None,
    tau: float = 0.03,
    reduce: Literal["sum", "max"] = "sum",
    negatives: Literal["audio", "image", "both"] = "audio",
    positives: Tensor | None = None,
    extra_negatives: ExtraNegatives | None = None,
    group=None,
    backend: str = "auto",
) -> Tensor:
    """SLAVC: localization and audio-visual correspondence in two spaces, against momentum features (NeurIPS 2022).

        q(v, a)_ij = `reduce` over cells p of  softmax_j(cos_avc / tau)(p) * softmax_p(cos_loc / tau)(p)
        L = CE(log q(v, a'), positives) + CE(log q(v', a), positives)            ' = momentum

    visual_* (N, C, h, w), audio_* (M, C), of equal shapes in both spaces. The released program calls the heads of avc
    1 and those of loc 2; exchanged, a net trains without an error, but its maps are not those of loc.
    momentum: the same four of the momentum nets, without gradient. None: no momentum nets, one term CE(log q(v, a)).
    reduce: "sum" as released, "max" as in the paper.
    negatives: the denominators run over "audio" for a fixed image as released, over "image" for a fixed audio as in the
        paper's eq. 4, or "both" (their mean). The softmax of avc runs over audio in all of them (eq. 2).
    extra_negatives: `audio` is (loc, avc), with momentum (loc, avc, loc', avc'). They are among the j of the softmax,
        whatever their weight is: that multiplies their q in the denominator over audio.
    """
    check_tau(tau)
    check_choice("reduce", reduce, slavc)
    check_choice("negatives", negatives, slavc)
    if momentum is not None:
        _check_momentum(momentum, (visual_loc, visual_avc, audio_loc, audio_avc))
    like = {"audio_loc": audio_loc, "audio_avc": audio_avc}
    if momentum is not None:
        like |= {"momentum audio_loc": momentum[2], "momentum audio_avc": momentum[3]}
    batch, positives, extra, *audios = join(
        group, positives, extra_negatives, visual_loc, "visual_loc", like, audio_loc=audio_loc, audio_avc=audio_avc
    )
    for name, part in list(zip(like, extra.parts))[2:]:
        if part.requires_grad:
            raise ValueError(f"extra_negatives.audio of {name}: expected no gradient, got requires_grad=True")
    if momentum is not None:
        audios = [*audios, *map(batch.gather, momentum[2:])]
    audios = [extra.behind(audio, part) for part, audio in enumerate(audios)]
    terms = [(visual_loc, visual_avc, *audios)]
    if momentum is not None:
        terms = [(visual_loc, visual_avc, *audios[2:]), (*momentum[:2], *audios[:2])]
    weight = 0.5 if negatives == "both" else 1.0

    def term(visual_loc: Tensor, visual_avc: Tensor, audio_loc: Tensor, audio_avc: Tensor) -> Tensor:
        features = visual_loc, visual_avc, audio_loc, audio_avc
        if negatives == "audio" and has_row_loss(batch, features, positives, extra, backend):
            features = check_product_features(*features, tau, reduce, "audio")
            check_positives(len(visual_loc), len(audio_loc), positives, visual_loc.device)
            check_negatives(len(audio_loc))
            return product_row_loss(*features, positives, tau=tau, reduce=reduce)
        scores = ops.product_log_scores(*features, tau=tau, reduce=reduce, instances="audio", backend=backend)
        return contrast(batch, scores, positives, extra, negatives, weight=weight, backend=backend)

    return total(term(*features) for features in terms)


class _Gram(torch.autograd.Function):
    """x @ x.mT, whose gradient is one product and not two."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.mT

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return (grad + grad.mT) @ ctx.saved_tensors[0]


def _row_differences(batch: JoinedBatch, difference: Tensor, positives: Tensor | None) -> list[Tensor]:
    """mean |p - q| of K pairs of square matrices whose rows sum to 1, difference = p - q (K, N, M); of this process,
    the rows with these positives.

    The diagonal, close to 1 in both, is taken from the rest of the row, where the difference keeps its digits.
    """
    columns = target_columns(positives, difference[0]).expand(len(difference), -1, -1)
    difference = difference.scatter(2, columns, 0)
    rows = difference.abs().sum(2) + difference.sum(2).abs()
    return [batch.mean(one) / difference.shape[2] for one in rows]


def fnac(
    visual: Tensor,
    audio: Tensor,
    *,
    tau: float = 0.03,
    threshold: float = 0.6,
    weights: tuple[float, float, float] = (100.0, 100.0, 100.0),
    mean_weight: float = 0.0,
    positives: Tensor | None = None,
    extra_negatives: ExtraNegatives | None = None,
    group=None,
    backend: str = "auto",
    return_terms: bool = False,
):
    """FNAC: EZ-VSL's loss plus three L1 terms between row-softmaxed similarity matrices (CVPR 2023).

        L = ez_vsl + weights . (fns1, tns, fns2);   M = max over cells of the cosines;   R(z) = row softmax of z / tau
        fns1 = mean |R(a a^T) - R(M)|     tns = mean |R(a a^T) - R(f f^T)|     fns2 = mean |R(b b^T) - R(M)|

    a: unit audio; b: mean over cells of the unit visual vectors; f: the same over all cells after those at or below
    `threshold` of the min-max scaled positive map are set to 0. b and f are not normalised again. The released program
    trains its first epochs (3 to 5) without the L1 terms: weights=(0, 0, 0). The L1 terms compare images with images,
    so with `positives` they see only the N pairs themselves, where ez_vsl sees all M audios; with `group`, all pairs;
    extra negatives are in ez_vsl alone, and a matrix of positives needs weights=(0, 0, 0).
    return_terms: also a dict of "nce", "fns1", "tns", "fns2", unweighted, with gradient.
    """
    check_tau(tau)
    without_l1 = not any(weights) and not return_terms
    if not without_l1:
        check_one_positive(positives, "with L1 terms, whose matrices are of pairs")
    batch, positives, extra, audio = join(group, positives, extra_negatives, visual, audio=audio)
    every = extra.behind(audio)
    if without_l1:
        scores = pooled(visual, every, ops.Max(), mean_weight, backend)
        return contrast(batch, scores, positives, extra, "both", tau, backend=backend)
    check_pair(visual, every)
    check_positives(visual.shape[0], audio.shape[0], positives, visual.device)
    columns = target_columns(positives, visual).flatten()
    scores, cells = similarity_and_map(visual, every, ops.Max(), columns, backend=backend)
    scores = blend(scores, visual, every, mean_weight, backend)
    nce = contrast(batch, scores, positives, extra, "both", tau, backend=backend)
    audio, scores = own(audio, positives), extra.without(scores, 1)
    if group is None:
        scores, positives = own(scores, positives, 1), None
    with torch.no_grad():
        low, high = cells.amin((1, 2), keepdim=True), cells.amax((1, 2), keepdim=True)
        foreground = (cells - low) / (high - low + 1e-5) > threshold
        of_cells = torch.stack([torch.ones_like(cells), foreground.to(cells.dtype)]) / cells[0].numel()
    sound = unit(audio.to(accumulate_dtype(audio)))
    vectors = torch.stack([sound, *mean_vectors(visual, of_cells, backend=backend)])
    with without_autocast(visual):
        if has_kernel(batch, scores, positives, backend):
            products = _Gram.apply(vectors)
        else:
            products = vectors @ torch.stack([batch.gather(x) for x in vectors]).mT
    audio_audio, mean_mean, front_front, visual_audio = torch.softmax(torch.cat([products, scores[None]]) / tau, 2)
    differences = torch.stack([audio_audio - visual_audio, audio_audio - front_front, mean_mean - visual_audio])
    fns1, tns, fns2 = _row_differences(batch, differences, positives)
    loss = nce + weights[0] * fns1 + weights[1] * tns + weights[2] * fns2
    return (loss, {"nce": nce, "fns1": fns1, "tns": tns, "fns2": fns2}) if return_terms else loss


def ssl_tie(
    visual: Tensor,
    audio: Tensor,
    transformed_visual: Tensor,
    transform: Callable[[Tensor], Tensor],
    *,
    weight: float = 1.0,
    detach_map: bool = False,
    distance: Literal["mse", "l1"] = "mse",
    positives: Tensor | None = None,
    extra_negatives: ExtraNegatives | None = None,
    group=None,
    backend: str = "auto",
    return_terms: bool = False,
    **lvs_options,
):
    """SSL-TIE: LVS on an image and its transform T, whose maps must agree (ACM MM 2022).

        L = (lvs(x, s) + lvs(T x, s)) / 2 + weight * mean (A(T x, s) - T(A(x, s)))^2

    transformed_visual (N, C, h', w'): features of the transformed images. transform: the same T on maps A(x, s)
    (N, 1, h, w) -> (N, 1, h', w'). detach_map: no gradient through T(A(x, s)) (the released option heatmap_no_grad).
    distance: "mse" as above, or "l1", the mean absolute difference (the released option equi_loss_type l1loss).
    lvs_options: keyword options of `lvs`.
    extra_negatives: of both contrasts. positives: no matrix, as each image has one map to compare.
    return_terms: also a dict of "contrast", "contrast_transformed" and "equivariance" (unweighted), detached.
    """
    if unknown := sorted(lvs_options.keys() - _LVS_DEFAULTS.keys()):
        raise TypeError(f"ssl_tie: expected options of lvs, {', '.join(_LVS_DEFAULTS)}; got {', '.join(unknown)}")
    check_choice("distance", distance, ssl_tie)
    options = _LVS_DEFAULTS | lvs_options
    check_tensor("transformed_visual", transformed_visual)
    check_one_positive(positives, "of which ssl_tie compares the maps")
    batch, positives, extra, audio = join(group, positives, extra_negatives, visual, audio=audio)
    (plain, maps), (transformed, maps_transformed) = (
        _lvs(
            batch, features, extra.behind(audio), extra, **options, positives=positives, backend=backend, need_map=True
        )
        for features in (visual, transformed_visual)
    )
    target = transform((maps.detach() if detach_map else maps)[:, None])
    expected = maps_transformed[:, None]
    if target.shape != expected.shape:
        raise ValueError(
            f"transform: expected maps {tuple(expected.shape)} to match transformed_visual, got {tuple(target.shape)}"
        )
    difference = expected - target
    difference = difference.square() if distance == "mse" else difference.abs()
    equivariance = batch.mean(difference.mean((1, 2, 3)))
    loss = 0.5 * (plain + transformed) + weight * equivariance
    if return_terms:
        terms = {"contrast": plain, "contrast_transformed": transformed, "equivariance": equivariance}
        return loss, {name: term.detach() for name, term in terms.items()}
    return loss


LVS_PER_CALL = ("positives", "extra_negatives", "group", "backend")  # what ssl_tie does not hand on to lvs as an option
_LVS_DEFAULTS = options_of(lvs, {}, LVS_PER_CALL)
