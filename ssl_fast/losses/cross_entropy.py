"""Cross-entropy of pooled scores against audio or images as negatives, in the batch of one process or of several."""

import functools
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ..distributed import JoinedBatch
from ..ops.checks import check_tensor
from ..ops.tokens import TokenPooling


def check_tau(tau: float) -> None:
    if not tau > 0:
        raise ValueError(f"tau: expected > 0, got {tau}")


def check_positives(rows: int, columns: int, positives: Tensor | None, device: torch.device) -> None:
    if rows == 0 or columns == 0:
        raise ValueError(f"expected at least one image and one audio, got {rows} and {columns}")
    if positives is None:
        if rows != columns:
            raise ValueError(f"positives: required where there are {rows} images and {columns} audios, got None")
        return
    if not isinstance(positives, Tensor):
        raise TypeError(f"positives: expected a tensor ({rows},) of int64, got {type(positives).__name__}")
    if positives.dtype != torch.int64 or positives.shape != (rows,):
        raise ValueError(f"positives: expected ({rows},) int64, got {tuple(positives.shape)} {positives.dtype}")
    if positives.device != device:
        raise ValueError(f"positives: expected device {device}, got {positives.device}")
    if not torch.compiler.is_compiling():  # costs a synchronisation, and would break the graph
        low, high = (int(x) for x in torch.aminmax(positives))
        if low < 0 or high >= columns:
            raise ValueError(f"positives: expected columns in [0, {columns}), got values in [{low}, {high}]")


def join(group, positives: Tensor | None, images: Tensor, name: str = "visual", /, **audios: Tensor) -> tuple:
    """The batch of all processes, the positives in it of the own images (N,), and each of the audios (M, C) of all.

    TypeError, naming the argument, where one is no tensor. With a group: ValueError where positives are given.
    """
    for argument, x in ((name, images), *audios.items()):
        check_tensor(argument, x)
    if group is not None and positives is not None:
        raise ValueError(
            "positives: expected none with a group, where audio n of a process is the positive of its "
            f"image n, got {tuple(positives.shape)}"
        )
    batch = JoinedBatch(group, images, **audios)
    if group is not None:
        positives = torch.arange(batch.first, batch.first + batch.rows, device=images.device)
    return batch, positives, *(batch.gather(audio) for audio in audios.values())


def gather_tokens(batch: JoinedBatch, tokens: TokenPooling | None, copies: int = 1) -> TokenPooling | None:
    """The pooling of the audio tokens of all processes, `copies` of the batch one after the other."""
    if tokens is None or tokens.mask is None:
        return tokens
    return replace(tokens, mask=batch.gather(tokens.mask).repeat(copies, 1))


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
    processes; there at least two. `repeat`: one more negative of each row, its positive times this. `positive`: (N, 1),
    in place of the scores at the positives. As log(1 + sum over the others of exp(gap)): a well-separated
    batch has a loss near 0, of which the usual logsumexp(z) - z[y] keeps only the digits that are left after
    subtracting two large numbers.
    """
    targets = target_columns(positives, scores)
    positive = scores.gather(1, targets) if positive is None else positive
    if down:
        positive = batch.gather(positive).t()
    gaps = (scores - positive + margin) / tau
    if repeat is None:
        gaps = gaps.scatter(1, targets, float("-inf"))
    else:
        gaps = gaps.scatter(1, targets, (repeat * positive - positive + margin) / tau)
    others = own(batch.logsumexp(gaps), positives) if down else gaps.logsumexp(1)
    return batch.mean(torch.logaddexp(others, torch.zeros_like(others)))


def contrast(
    batch: JoinedBatch,
    scores: Tensor,
    positives: Tensor | None,
    negatives: str,
    tau: float = 1.0,
    margin: float = 0.0,
    **options,
) -> Tensor:
    """Cross-entropy of scores (N, M) against `negatives`: "audio" (rows), "image" (columns), "both" (their sum).
    options: of `cross_entropy`."""
    rows, columns = scores.shape
    check_positives(rows, columns, positives, scores.device)
    terms = []
    if negatives != "image":
        if columns < 2:
            raise ValueError("audio: expected at least 2, a positive and a negative, got 1")
        terms.append(cross_entropy(batch, scores, positives, tau, margin, **options))
    if negatives != "audio":
        if batch.size < 2:
            raise ValueError("visual: expected at least 2 images, a positive and a negative, got 1")
        if batch.group is None:  # some columns may be nobody's positive
            scores, positives = own(scores, positives, 1), None
        terms.append(cross_entropy(batch, scores, positives, tau, margin, down=True, **options))
    return total(terms)
