"""Sounds over time: poolings over the tokens of a clip, and scores of images with sequences of audio tokens.

A clip is (C, T), T tokens. For image n, clip m, head k, cell p and token t, alpha[n,m,k,p,t] is a product of the k-th
group of channels of a cell and of a token. Tokens are rows of audio: the ops on (M T, C) pool the cells and never make
the map.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .checks import check_pair, check_tensor, without_autocast
from .poolings import Max, Mean, Pooling
from .reference import accumulate_dtype, unit

__all__ = ["TokenMax", "TokenMean", "token_maps"]

HEAD_POOLINGS = ("elementwise_max", "max", "sum")
# The map of all pairs of a chunk of images, of what no kernel pools, takes about as many bytes.
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TokenMean:
    """Mean over the tokens of a clip, weighted by `mask` (M, T): bool, or weights >= 0 without gradient (None: all
    tokens alike). Of a clip without a token, whose weights are all 0, the score is `empty`; None: a ValueError names
    it."""

    mask: Tensor | None = None
    empty: float | None = None

    def pool(self, x: Tensor) -> Tensor:
        """(..., M, T) -> (..., M)."""
        if self.mask is None:
            return x.mean(-1)
        weight = self.mask.to(x.dtype)
        total = weight.sum(-1)
        kept = total > 0
        with without_autocast(x):  # a product for each clip, (..., T) with (T): no temporary of the size of x
            mean = torch.einsum("...mt,mt->...m", x, weight / torch.where(kept, total, 1)[:, None])
        return mean if self.empty is None else torch.where(kept, mean, self.empty)


@dataclass(frozen=True)
class TokenMax:
    """Maximum over the tokens of a clip that `mask` (M, T) bool keeps (None: all). The gradient goes to the first token
    that attains it. Of a clip without a token the score is `empty`; None: a ValueError names it."""

    mask: Tensor | None = None
    empty: float | None = None

    def pool(self, x: Tensor) -> Tensor:
        """(..., M, T) -> (..., M)."""
        if self.mask is None:
            return x.max(-1).values
        best = x.masked_fill(~self.mask, -torch.inf).max(-1).values
        return best if self.empty is None else torch.where(self.mask.any(-1), best, self.empty)


TokenPooling = TokenMean | TokenMax


def check_tokens(tokens: TokenPooling | None, audio: Tensor, name: str = "tokens.mask") -> None:
    """tokens: of audio (M, C, T), or None with audio (M, C). name: that of the argument that its mask is."""
    if audio.dim() != 3:
        if tokens is not None:
            raise ValueError(f"tokens: expected with audio (M, C, T), got audio {tuple(audio.shape)}")
        return
    if not isinstance(tokens, TokenPooling):
        raise TypeError(f"tokens: expected ops.TokenMean or ops.TokenMax with audio (M, C, T), got {tokens!r}")
    if audio.shape[2] < 1:
        raise ValueError(f"audio: expected (M, C, T) with T >= 1, got {tuple(audio.shape)}")
    mask, weighted = tokens.mask, isinstance(tokens, TokenMean)
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(mask).__name__}")
    expected = (audio.shape[0], audio.shape[2])
    if tuple(mask.shape) != expected:
        raise ValueError(f"{name}: expected (M, T) = {expected}, got {tuple(mask.shape)}")
    if mask.device != audio.device:
        raise ValueError(f"{name}: expected device {audio.device} to match audio, got {mask.device}")
    if mask.requires_grad:
        raise ValueError(f"{name}: expected a tensor without gradient; there is none with respect to the mask")
    if mask.dtype != torch.bool and not weighted:
        raise TypeError(f"{name}: expected bool for ops.TokenMax, got {mask.dtype}")
    if torch.compiler.is_compiling():  # a compiled graph cannot raise on values: NaN or -inf for such a clip there
        return
    if mask.dtype != torch.bool and not (mask.isfinite().all() and (mask >= 0).all()):
        raise ValueError(f"{name}: expected finite weights >= 0")
    if tokens.empty is None:
        without = (mask.count_nonzero(1) == 0).nonzero().flatten().tolist()
        if without:
            remedy = "; with `empty` such a clip has that score" if name == "tokens.mask" else ""
            raise ValueError(f"{name}: expected at least one token in every clip, none in clip {without[0]}{remedy}")


@dataclass(frozen=True)
class Scoring:
    """How products of all pairs become scores (N, M); see `scoring_of`."""

    pooling: Pooling
    tokens: TokenPooling | None
    visual_mask: Tensor | None
    heads: int
    head_pooling: str
    nonnegative: bool
    bias: Tensor | None  # (N, M, heads)

    @property
    def by_head(self) -> bool:
        """True if scores follow from the pooled cells of each head, which kernels return."""
        if isinstance(self.pooling, Max):  # a maximum may be shifted, cut off at 0, and taken over heads, afterwards
            return True
        elementwise = self.heads > 1 and self.head_pooling == "elementwise_max"
        masked = self.visual_mask is not None and not isinstance(self.pooling, Mean)
        return not (elementwise or masked or self.nonnegative or self.bias is not None)

    def of_heads(self, by_head: Tensor) -> Tensor:
        """Pooled cells (heads, N, M, T) -> (N, M)."""
        if self.bias is not None:
            by_head = by_head + self.bias.permute(2, 0, 1)[..., None]
        if self.nonnegative:
            by_head = by_head.clamp_min(0)
        if self.head_pooling == "elementwise_max" and len(by_head) > 1:
            by_head = by_head.max(0, keepdim=True).values
        scores = by_head[..., 0] if self.tokens is None else self.tokens.pool(by_head)
        if len(scores) == 1:
            return scores[0]
        return scores.sum(0) if self.head_pooling == "sum" else scores.max(0).values

    def reference(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Scores of visual (N, C, h, w) and audio (M, C, T) by the formula, with the maps of all pairs in memory."""
        return self._reference(visual, audio, self.bias, self._mask())

    def in_chunks(self, visual: Tensor, audio: Tensor) -> Tensor:
        """The same, with the maps of so many images in memory as CHUNK_BYTES hold."""
        (images, _, *size), (clips, _, length) = visual.shape, audio.shape
        pairs = clips * length * self.heads * size[0] * size[1]
        step = max(1, CHUNK_BYTES // max(1, pairs * accumulate_dtype(visual).itemsize))
        mask = self._mask()
        scores = [
            checkpoint(
                self._reference,
                visual[first : first + step],
                audio,
                None if self.bias is None else self.bias[first : first + step],
                None if mask is None else mask[first : first + step],
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for first in range(0, max(images, 1), step)
        ]
        return torch.cat(scores)

    def _mask(self) -> Tensor | None:
        return self.visual_mask if self.visual_mask is not None else getattr(self.pooling, "mask", None)

    def _reference(self, visual: Tensor, audio: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        cells = visual.flatten(2).unflatten(1, (self.heads, -1))
        alpha = torch.einsum("nkcp,mkct->nmktp", cells, audio.unflatten(1, (self.heads, -1)))
        alpha = alpha.to(accumulate_dtype(visual))
        if bias is not None:
            alpha = alpha + bias[..., None, None]
        if self.nonnegative:
            alpha = alpha.clamp_min(0)
        if self.head_pooling == "elementwise_max":
            alpha = alpha.max(2, keepdim=True).values
        if mask is None:
            pooled = self.pooling.reference(alpha)
        elif isinstance(self.pooling, Mean):
            pooled = Mean(mask).reference(alpha.flatten(1, 3)).view(alpha.shape[:-1])
        elif not len(alpha):  # stack takes no empty list
            pooled = alpha.sum(-1)
        else:
            kept = mask.flatten(1).unbind()
            pooled = torch.stack([self.pooling.reference(one[..., keep]) for one, keep in zip(alpha, kept)])
        plain = replace(self, heads=pooled.shape[2], nonnegative=False, bias=None)
        return plain.of_heads(pooled.movedim(2, 0))


def check_heads(channels: int, heads: int) -> None:
    if not isinstance(heads, int) or isinstance(heads, bool):
        raise TypeError(f"heads: expected a whole number, got {heads!r}")
    if heads < 1 or channels % heads:
        raise ValueError(f"heads: expected a divisor of C = {channels}, got {heads}")


def scoring_of(
    visual: Tensor,
    audio: Tensor,
    pooling: Pooling,
    tokens: TokenPooling | None,
    visual_mask: Tensor | None,
    heads: int,
    head_pooling: str,
    nonnegative: bool,
    bias: Tensor | None,
) -> Scoring:
    """The arguments of `ops.pooled_similarity`, those checked that are not yet."""
    channels, pairs = visual.shape[1], (visual.shape[0], audio.shape[0])
    check_heads(channels, heads)
    if head_pooling not in HEAD_POOLINGS:
        raise ValueError(f"head_pooling: expected one of {HEAD_POOLINGS}, got {head_pooling!r}")
    if bias is not None:
        check_tensor("bias", bias)
        if tuple(bias.shape) not in ((*pairs, heads), pairs if heads == 1 else (*pairs, heads)):
            expected = f"(N, M, heads) = {(*pairs, heads)}" + f" or (N, M) = {pairs}" * (heads == 1)
            raise ValueError(f"bias: expected {expected}, got {tuple(bias.shape)}")
        if bias.device != visual.device:
            raise ValueError(f"bias: expected device {visual.device} to match visual, got {bias.device}")
        bias = bias.to(accumulate_dtype(visual)).view(*pairs, heads)
    return Scoring(pooling, tokens, visual_mask, heads, head_pooling, nonnegative, bias)


def fill_masked(visual: Tensor, mask: Tensor) -> Tensor:
    """Cells (N, C, h, w) that the mask (N, h, w) bool leaves out become copies of the first that it keeps: a maximum
    over the cells is that over those kept, and so is its gradient."""
    keep = mask.flatten(1)
    cells = torch.arange(keep.shape[1], device=keep.device)
    index = torch.where(keep, cells, keep.int().argmax(1, keepdim=True))
    filled = visual.flatten(2).gather(2, index[:, None].expand(-1, visual.shape[1], -1))
    return filled.unflatten(2, visual.shape[2:])


def token_maps(visual: Tensor, audio: Tensor, *, normalize: bool = True) -> Tensor:
    """Maps of every token of an image's clip: what in the image makes the sound that is heard at that time.

    visual (N, C, h, w) and audio (N, C, T), raw features -> cosines (N, T, h, w), or dot products without `normalize`;
    float32, or float64 for float64 inputs. Differentiable. ValueError, TypeError as in `ops.pooled_similarity`.
    """
    check_pair(visual, audio, paired=True, tokens=True)
    if audio.dim() != 3:
        raise ValueError(f"audio: expected (N, C, T), got {tuple(audio.shape)}")
    dtype = accumulate_dtype(visual)
    with without_autocast(visual):
        cells, tokens = (unit(x, dtype) if normalize else x.to(dtype) for x in (visual, audio))
        return (tokens.transpose(1, 2) @ cells.flatten(2)).unflatten(2, visual.shape[2:])
