"""Cross-entropy of pooled scores against audio or images as negatives, in the batch of one process or of several."""

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import JoinedBatch, together
from ..ops.checks import check_tensor, computed_dtype, use_compiled
from ..ops.cross_entropy import fused_cross_entropy
from ..ops.tokens import TokenPooling
from .extra import ExtraColumns, ExtraNegatives, check_extra

_NO_EXTRA = ExtraColumns()


def check_tau(tau: float) -> None:
    if not tau > 0:
        raise ValueError(f"tau: expected > 0, got {tau}")


def several(positives: Tensor | None) -> TypeGuard[Tensor]:
    """True of a matrix (N, M) bool, whose rows may have more than one positive."""
    return isinstance(positives, Tensor) and positives.dtype == torch.bool


def check_one_positive(positives: Tensor | None, why: str) -> None:
    """ValueError for a matrix, in a loss whose terms are of *the* pair."""
    if several(positives):
        raise ValueError(f"positives: expected (N,) int64 {why}, got {tuple(positives.shape)} torch.bool")


def check_positives(rows: int, columns: int, positives: Tensor | None, device: torch.device) -> None:
    if rows == 0 or columns == 0:
        raise ValueError(f"expected at least one image and one audio, got {rows} and {columns}")
    if positives is None:
        if rows != columns:
            raise ValueError(f"positives: required where there are {rows} images and {columns} audios, got None")
        return
    if not isinstance(positives, Tensor):
        raise TypeError(
            f"positives: expected a tensor ({rows},) of int64 or ({rows}, {columns}) of bool, "
            f"got {type(positives).__name__}"
        )
    shapes = {torch.int64: (rows,), torch.bool: (rows, columns)}
    if positives.shape != shapes.get(positives.dtype):
        raise ValueError(
            f"positives: expected ({rows},) int64 or ({rows}, {columns}) bool, "
            f"got {tuple(positives.shape)} {positives.dtype}"
        )
    if positives.device != device:
        raise ValueError(f"positives: expected device {device}, got {positives.device}")
    if torch.compiler.is_compiling():  # costs a synchronisation, and would break the graph
        return
    if several(positives):
        without = (~positives.any(1)).nonzero().flatten().tolist()
        if without:
            raise ValueError(f"positives: expected at least one in every row, none in row {without[0]}")
        return
    low, high = (int(x) for x in torch.aminmax(positives))
    if low < 0 or high >= columns:
        raise ValueError(f"positives: expected columns in [0, {columns}), got values in [{low}, {high}]")


def join(
    group,
    positives: Tensor | None,
    extra: ExtraNegatives | None,
    images: Tensor,
    name: str = "visual",
    like: Mapping[str, Tensor] | None = None,
    /,
    **audios: Tensor,
) -> tuple:
    """The batch of all processes, the positives in it of the own images (N,) or (N, M), the extra negatives of all, and
    each of the audios (M, C) of all.

    like: the features that `extra` has the parts of (default: audios). TypeError, naming the argument, where one is no
    tensor. ValueError with a group where positives are indices, and for extra negatives that do not fit.
    """
    for argument, x in ((name, images), *audios.items()):
        check_tensor(argument, x)
    if not (extra is None or isinstance(extra, ExtraNegatives)):
        raise TypeError(f"extra_negatives: expected losses.ExtraNegatives, got {type(extra).__name__}")
    if group is None and extra is None:  # what is below, in less time
        return JoinedBatch(None, images), positives, _NO_EXTRA, *audios.values()
    like = audios if like is None else like
    further = {} if extra is None else extra.tensors(like)
    rows = {}
    if group is not None and positives is not None:
        if not several(positives):
            got = tuple(positives.shape) if isinstance(positives, Tensor) else type(positives).__name__
            raise ValueError(
                "positives: expected none with a group, where audio n of a process is the positive of its image n, or "
                f"a bool matrix of the own images and the audios of all processes, got {got}"
            )
        rows["positives"] = positives
    batch = JoinedBatch(group, images, further, **rows, **audios)
    # what one process finds wrong in its values, all have to know of: they would wait for it
    with together(group) if group is not None and (rows or further) else contextlib.nullcontext():
        if rows:
            check_positives(batch.rows, batch.size, positives, images.device)
        if further:
            check_extra(further, like)
    if group is not None and positives is None:
        positives = torch.arange(batch.first, batch.first + batch.rows, device=images.device)
    columns = ExtraColumns()
    if further:
        every = {argument: batch.gather(x, extra=True) for argument, x in further.items()}
        parts = tuple(every.values())[: len(like)]
        columns = ExtraColumns(parts, every.get("extra_negatives.mask"), every["extra_negatives.weight"])
    return batch, positives, columns, *(batch.gather(audio) for audio in audios.values())


def gather_tokens(
    batch: JoinedBatch, tokens: TokenPooling | None, extra: ExtraColumns, audio: Tensor, copies: int = 1
) -> TokenPooling | None:
    """The pooling of the audio tokens of all processes, `copies` of the batch one after the other, and of the extra
    negatives; audio (M, C, T) is that of all of them."""
    if not isinstance(tokens, TokenPooling) or audio.dim() != 3:  # the op says what is wrong
        return tokens
    mask = None if tokens.mask is None else batch.gather(tokens.mask).repeat(copies, 1)
    return replace(tokens, mask=extra.masks("tokens.mask", mask, audio))


def own(x: Tensor, positives: Tensor | None, dim: int = 0) -> Tensor:
    """The entries of x along `dim` that are the positives of rows 0..N-1."""
    return x if positives is None else x.index_select(dim, positives)


def target_columns(positives: Tensor | None, scores: Tensor) -> Tensor:
    """The column (N, 1) of each row's positive."""
    return (torch.arange(len(scores), device=scores.device) if positives is None else positives)[:, None]


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one term."""
    return functools.reduce(torch.add, terms)


def cross_entropy(
    batch: JoinedBatch,
    scores: Tensor,
    positives: Tensor | None,
    tau: float,
    margin: float = 0.0,
    *,
    down: bool = False,
    repeat: float | None = None,
    positive: Tensor | None = None,
) -> Tensor:
    """CE((scores - margin at the positives) / tau, positives), scores (N, K) of this process against its columns.

    Negatives are the other columns of a row, or with `down` the other rows of the column of a positive, those of all
    processes; there at least two. positives (N, M <= K) bool: of a row, or with `down` of a column, the exponentials of
    all its positives are summed; a column without any has no loss. `repeat`: one more negative of each row, its
    positive times this. `positive`: (N, 1), in place of the scores at the positives. As log(1 + sum over the others of
    exp(gap)): a well-separated batch has a loss near 0, of which the usual logsumexp(z) - z[y] keeps only the digits
    that are left after subtracting two large numbers.
    """
    queries = None
    if several(positives):
        lowest = torch.finfo(scores.dtype).min  # of -inf throughout a row or column, exp(x - max) is NaN
        chosen = F.pad(positives, (0, scores.shape[1] - positives.shape[1]))
        among = scores.masked_fill(~chosen, lowest)
        # the maximum is taken out before the division: of one positive, this is its score, bit for bit
        best = batch.amax(among) if down else among.detach().amax(1, keepdim=True)
        below = (among - best) / tau
        positive = best + tau * (batch.logsumexp(below) if down else below.logsumexp(1, keepdim=True))
        gaps = ((scores - positive + margin) / tau).masked_fill(chosen, lowest)
        if down:
            queries = batch.amax(chosen.to(scores.dtype)) > 0
            gaps = gaps.masked_fill(~queries, lowest)
    else:
        targets = target_columns(positives, scores)
        positive = scores.gather(1, targets) if positive is None else positive
        if down:
            positive = batch.gather(positive).t()
        gaps = (scores - positive + margin) / tau
        again = float("-inf") if repeat is None else (repeat * positive - positive + margin) / tau
        gaps = gaps.scatter(1, targets, again)
    others = batch.logsumexp(gaps) if down else gaps.logsumexp(1)
    if down and queries is None:
        others = own(others, positives)
    losses = torch.logaddexp(others, torch.zeros_like(others))
    return batch.mean(losses) if queries is None else losses.sum() / queries.sum()


def has_kernel(batch: JoinedBatch, scores: Tensor, positives: Tensor | None, backend: str, **options) -> bool:
    """True if `fused_cross_entropy` computes what `cross_entropy` does, options included."""
    plain = batch.group is None and not several(positives) and all(option is None for option in options.values())
    return plain and not scores.is_cuda and use_compiled(backend, scores)


def has_row_loss(
    batch: JoinedBatch, features: Sequence[Tensor], positives: Tensor | None, extra: ExtraColumns, backend: str
) -> bool:
    """True if the loss of the rows of the scores of these features, and its gradients, come from one pass over the
    products: see `ops.row_loss`. Without gradients there is nothing to be gained, and those of float16 have to be
    scaled before they are rounded."""
    # some may be no tensors: the ops say so
    wanted = torch.is_grad_enabled() and any(getattr(x, "requires_grad", False) for x in features)
    wanted = wanted and not extra.count and has_kernel(batch, features[0], positives, backend)
    return wanted and computed_dtype(features[0]) != torch.float16


def check_negatives(audios: int) -> None:
    if audios < 2:
        raise ValueError(f"audio: expected at least 2, a positive and a negative, got {audios}")


def contrast(
    batch: JoinedBatch,
    scores: Tensor,
    positives: Tensor | None,
    extra: ExtraColumns,
    negatives: str,
    tau: float = 1.0,
    margin: float = 0.0,
    *,
    weight: float = 1.0,
    backend: str = "reference",
    **options,
) -> Tensor:
    """`weight` times the cross-entropy of scores (N, M + K) against `negatives`: "audio" (rows), "image" (columns),
    "both" (their sum). The last K columns, of the extra negatives, are those of rows only. backend: of scores that came
    from a kernel, that of the loss; others stay differentiable twice. options: of `cross_entropy`."""
    pairs = extra.without(scores, 1)
    check_positives(pairs.shape[0], pairs.shape[1], positives, scores.device)
    if negatives != "image":
        check_negatives(scores.shape[1])
    if negatives != "audio" and batch.size < 2:
        raise ValueError("visual: expected at least 2 images, a positive and a negative, got 1")
    fused = has_kernel(batch, scores, positives, backend, **options)
    weighed = extra.weigh(scores, tau)
    if fused and negatives == "both" and positives is None:
        loss = fused_cross_entropy(weighed, None, tau, margin, rows=True, columns=True)
        return loss if weight == 1 else loss * weight
    terms = []
    if negatives != "image":
        terms.append(
            fused_cross_entropy(weighed, positives, tau, margin, rows=True, columns=False)
            if fused
            else cross_entropy(batch, weighed, positives, tau, margin, **options)
        )
    if negatives != "audio":
        if batch.group is None and not several(positives):  # some columns may be nobody's positive
            pairs, positives = own(pairs, positives, 1), None
        terms.append(
            fused_cross_entropy(pairs, None, tau, margin, rows=False, columns=True)
            if fused
            else cross_entropy(batch, pairs, positives, tau, margin, down=True, **options)
        )
    return total(terms) if weight == 1 else total(terms) * weight
