"""What the tests of audio tokens compare with: loops over single pairs in float64."""

import torch
from torch import Tensor

from ssl_fast import ops


def pooled_cells(alpha: Tensor, pooling) -> Tensor:
    """alpha (..., cells) -> (...), by the formulas of the papers."""
    if isinstance(pooling, ops.Max):
        return alpha.max(-1).values  # whose gradient goes to the first of equal cells
    if isinstance(pooling, ops.Mean):
        return alpha.mean(-1)
    if isinstance(pooling, ops.LogMeanExp):
        return pooling.tau * (alpha / pooling.tau).exp().mean(-1).log()
    weight = 1 / (1 + ((pooling.epsilon - alpha) / pooling.beta).exp())
    return (weight * alpha).sum(-1) / weight.sum(-1)


def pair_score(
    cells: Tensor, tokens: Tensor, pooling, mean: bool, heads: int, head_pooling: str, nonnegative: bool, bias: Tensor
) -> Tensor:
    """Of one image, its kept cells (C, P), with one clip, its kept tokens (C, T)."""
    groups = zip(cells.chunk(heads), tokens.chunk(heads), bias, strict=True)
    alpha = torch.stack([token.t() @ cell + offset for cell, token, offset in groups])  # (heads, T, P)
    if nonnegative:
        alpha = alpha.clamp_min(0)
    if head_pooling == "elementwise_max":
        alpha = alpha.amax(0, keepdim=True)
    by_token = pooled_cells(alpha, pooling)
    by_head = by_token.mean(-1) if mean else by_token.amax(-1)
    return by_head.sum() if head_pooling == "sum" else by_head.amax()


def loop(visual, audio, pooling, mean, cell_mask, token_mask, heads, head_pooling, normalize, nonnegative, bias):
    visual, audio = visual.double(), audio.double()
    if normalize:
        visual, audio = (x / x.square().sum(1, keepdim=True).sqrt() for x in (visual, audio))
    rows = []
    for n, image in enumerate(visual):
        cells = image.flatten(1)[:, cell_mask[n].flatten()]
        rows.append(
            torch.stack(
                [
                    pair_score(cells, clip[:, keep], pooling, mean, heads, head_pooling, nonnegative, offset.double())
                    for clip, keep, offset in zip(audio, token_mask, bias[n], strict=True)
                ]
            )
        )
    return torch.stack(rows)


def check_layout(visual, audio, pooling, heads, normalize):
    """Scores and gradients of features in any layout, against float64."""
    tokens = torch.rand(audio.shape[0], audio.shape[2], generator=torch.Generator().manual_seed(1)) > 0.3
    tokens[:, 0] = True
    dtype, head_pooling = visual.dtype, "sum"
    options = {"heads": heads, "head_pooling": head_pooling, "normalize": normalize}
    visual, audio = visual.detach().requires_grad_(), audio.detach().requires_grad_()
    got = ops.pooled_similarity(visual, audio, pooling, tokens=ops.TokenMean(tokens), **options)
    ones = torch.ones(len(visual), *visual.shape[2:], dtype=torch.bool)
    bias = torch.zeros(len(visual), len(audio), heads)
    want = loop(visual, audio, pooling, True, ones, tokens, heads, head_pooling, normalize, False, bias)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6  # features are exact in 16 bits, sums are of 32
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(3))
    found = torch.autograd.grad(got, (visual, audio), upstream.to(got.dtype))
    expected = torch.autograd.grad(want, (visual, audio), upstream.double())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        error = (one.double() - other).norm() / other.norm()
        assert error < max(2 * torch.finfo(dtype).eps, 1e-12 if dtype == torch.float64 else 1e-5)


def check_late_interaction(visual, audio, heads, normalize, wanted=(True, True)):
    """Both directions, and the gradients of each alone and of both (`wanted`), against float64."""
    dtype, sum_of = visual.dtype, [x for x, want in zip((0, 1), wanted) if want]
    visual, audio = visual.detach().requires_grad_(), audio.detach().requires_grad_()
    got = ops.late_interaction(visual, audio, heads=heads, head_pooling="sum", normalize=normalize)
    cells, tokens = visual.double().flatten(2), audio.double()
    if normalize:
        cells, tokens = (x / x.norm(dim=1, keepdim=True) for x in (cells, tokens))
    alpha = torch.einsum("nkcp,mkct->nmkpt", cells.unflatten(1, (heads, -1)), tokens.unflatten(1, (heads, -1)))
    want = alpha.max(3).values.mean(-1).sum(2), alpha.max(4).values.mean(-1).sum(2)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)
    upstream = torch.randn(2, *want[0].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found, expected = (
        torch.autograd.grad([x[i] for i in sum_of], (visual, audio), [upstream[i].to(x[i].dtype) for i in sum_of])
        for x in (got, want)
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        error = (one.double() - other).norm() / other.norm()
        assert error < max(2 * torch.finfo(dtype).eps, 1e-12 if dtype == torch.float64 else 1e-5)
