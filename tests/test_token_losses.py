"""Losses with audio tokens and the regularisers of DenseAV, against float64 programs of their equations."""

import math

import pytest
import torch
from torch import Tensor

from ssl_fast import losses, ops

BATCH, CHANNELS, TOKENS, HEIGHT, WIDTH, HEADS = 4, 6, 5, 2, 3, 2


def features(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """visual, audio, and a mask of tokens."""
    generator = torch.Generator().manual_seed(seed)
    visual = torch.randn(BATCH, CHANNELS, HEIGHT, WIDTH, generator=generator, requires_grad=True)
    audio = torch.randn(BATCH, CHANNELS, TOKENS, generator=generator, requires_grad=True)
    mask = torch.rand(BATCH, TOKENS, generator=generator) > 0.4
    mask[:, 1] = True
    return visual, audio, mask


def products(visual: Tensor, audio: Tensor, heads: int = 1, normalize: bool = False) -> Tensor:
    """(N, M, heads, T, cells), float64."""
    visual, audio = visual.double().flatten(2), audio.double()
    if normalize:
        visual, audio = visual / visual.norm(dim=1, keepdim=True), audio / audio.norm(dim=1, keepdim=True)
    return torch.stack(
        [torch.einsum("ncp,mct->nmtp", *pair) for pair in zip(visual.chunk(heads, 1), audio.chunk(heads, 1))], 2
    )


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """x (N, M, T), mask (M, T) -> (N, M), clip by clip."""
    return torch.stack([x[:, m, keep].mean(1) for m, keep in enumerate(mask)], 1)


def rows(scores: Tensor) -> Tensor:
    """Mean over rows of the cross-entropy with the diagonal, from its definition."""
    probabilities = scores.exp() / scores.exp().sum(1, keepdim=True)
    return -probabilities.diagonal().log().mean()


def both(scores: Tensor) -> Tensor:
    return rows(scores) + rows(scores.t())


def soft(alpha: Tensor, epsilon=0.65, beta=0.03) -> Tensor:
    weight = 1 / (1 + ((epsilon - alpha) / beta).exp())
    return (weight * alpha).sum(-1) / weight.sum(-1)


def dense_av(visual, audio, mask):
    return both(2 * masked_mean(products(visual, audio, HEADS).amax((2, 4)), mask)) / 2


def dense_av_paired(visual, audio, mask):
    alpha = products(visual, audio, HEADS).amax(2)
    best_token = torch.stack([alpha[:, m, keep].amax(1) for m, keep in enumerate(mask)], 1).mean(-1)
    return both((masked_mean(alpha.amax(-1), mask) + best_token) / 2) / 2


def late_interaction(visual, audio, mask):
    alpha = products(visual, audio, normalize=True)[:, :, 0]
    best_token = torch.stack([alpha[:, m, keep].amax(1) for m, keep in enumerate(mask)], 1).mean(-1)
    return (rows(best_token / 0.07) + rows(masked_mean(alpha.amax(-1), mask).t() / 0.07)) / 2


def ez_vsl(visual, audio, mask):
    return both(masked_mean(products(visual, audio, normalize=True)[:, :, 0].amax(-1), mask) / 0.03)


def margin_nce(visual, audio, mask):
    scores = masked_mean(soft(products(visual, audio, normalize=True)[:, :, 0]), mask)
    return rows((scores + 0.2 * torch.eye(BATCH)) / 0.07)


PROJECT = torch.randn(2, 3, CHANNELS, generator=torch.Generator().manual_seed(7))


def project(which: int):
    return lambda x: x @ PROJECT[which].to(x.dtype).t()


def ssl_align(visual, audio, mask):
    scores = masked_mean(products(visual, audio, normalize=True)[:, :, 0].mean(-1), mask)
    sounds = torch.stack([clip[:, keep].mean(1) for clip, keep in zip(audio.double(), mask)])
    x, y = project(0)(visual.double().mean((2, 3))), project(1)(sounds)
    aligned = (x / x.norm(dim=1, keepdim=True)) @ (y / y.norm(dim=1, keepdim=True)).t()
    return rows(scores / 0.07) + rows(aligned / 0.07)


CASES = {
    "dense_av": (dense_av, lambda v, a, m: losses.dense_av(v, a, tokens=ops.TokenMean(m), scale=2.0)),
    "dense_av-paired": (dense_av_paired, lambda v, a, m: losses.dense_av(v, a, tokens=ops.TokenMean(m), paired=True)),
    "late_interaction": (late_interaction, lambda v, a, m: losses.late_interaction(v, a, audio_mask=m)),
    "ez_vsl": (ez_vsl, lambda v, a, m: losses.ez_vsl(v, a, tokens=ops.TokenMean(m))),
    "margin_nce": (margin_nce, lambda v, a, m: losses.margin_nce(v, a, tokens=ops.TokenMean(m))),
    "ssl_align": (
        ssl_align,
        lambda v, a, m: losses.ssl_align([v], [a], project(0), project(1), tokens=ops.TokenMean(m)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    program, loss = CASES[name]
    visual, audio, mask = features()
    want, got = program(visual, audio, mask), loss(visual, audio, mask)
    assert got.item() == pytest.approx(want.item(), rel=2e-5)
    for one, other in zip(*(torch.autograd.grad(x, (visual, audio)) for x in (got, want)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_views_with_tokens_are_summed():
    visual, audio, mask = features()
    other = audio.roll(1, 2)
    tokens = ops.TokenMean(mask)
    together = losses.ssl_align([visual], [audio, other], project(0), project(1), tokens=tokens)
    each = [losses.ssl_align([visual], [one], project(0), project(1), tokens=tokens) for one in (audio, other)]
    assert together.item() == pytest.approx(sum(x.item() for x in each), rel=1e-6)


def test_class_tokens_and_heads_that_are_pooled_last():
    visual, audio, mask = features()
    bias = torch.randn(BATCH, BATCH, HEADS, generator=torch.Generator().manual_seed(3))
    got = losses.dense_av(visual, audio, tokens=ops.TokenMean(mask), head_pooling="sum", bias=bias, nonnegative=True)
    alpha = (products(visual, audio, HEADS) + bias[..., None, None]).clamp_min(0).amax(-1)
    scores = sum(masked_mean(alpha[:, :, k], mask) for k in range(HEADS))
    assert got.item() == pytest.approx(both(scores).item() / 2, rel=2e-5)


@pytest.mark.parametrize("paired", [False, True])
def test_a_clip_that_is_silent_throughout_has_score_zero(paired):
    visual, audio, mask = features()
    mask[2] = False
    got = losses.dense_av(visual, audio, tokens=ops.TokenMean(mask, empty=0.0), paired=paired)
    module = losses.DenseAV(paired=paired)(visual, audio, silent=~mask)
    mask[2] = True  # of the loop, whose scores of that clip are then replaced
    alpha = products(visual, audio, HEADS).amax(2)
    scores = masked_mean(alpha.amax(3), mask)
    if paired:
        best_token = torch.stack([alpha[:, m, keep].amax(1) for m, keep in enumerate(mask)], 1).mean(-1)
        scores = (scores + best_token) / 2
    scores[:, 2] = 0
    assert got.item() == pytest.approx(both(scores).item() / 2, rel=2e-5)
    assert module.item() == pytest.approx(got.item(), rel=1e-6)
    assert not torch.autograd.grad(got, audio)[0][2].any()


def test_scores_of_the_mean_over_cells_warm_up_those_of_the_maximum():
    visual, audio, mask = features()
    got = losses.dense_av(visual, audio, tokens=ops.TokenMean(mask), scale=3.0, mean_weight=0.3, normalize=True)
    alpha = products(visual, audio, HEADS, normalize=True)
    scores = 0.7 * alpha.amax((2, 4)) + 0.3 * alpha.mean(4).amax(2)
    want = both(3 * masked_mean(scores, mask)) / 2
    assert got.item() == pytest.approx(want.item(), rel=2e-5)
    for one, other in zip(*(torch.autograd.grad(x, (visual, audio)) for x in (got, want)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_regularisers_of_the_module_are_weighed_and_of_what_it_compares():
    visual, audio, mask = features()
    for normalize in (False, True):
        options = {"normalize": normalize, "silence": 0.5, "total_variation": 0.25, "negative_pressure": 2.0}
        module = losses.DenseAV(head_specialization=0.125, **options)
        got = module(visual, audio, silent=~mask, generator=torch.Generator().manual_seed(4))
        compared = (visual, audio)
        if normalize:
            compared = tuple(x / x.norm(dim=1, keepdim=True) for x in compared)
        want = (
            losses.dense_av(visual, audio, tokens=ops.TokenMean(mask), normalize=normalize)
            + 0.5 * losses.silence(*compared, ~mask)
            + 0.25 * losses.total_variation(*compared)
            + 2.0 * losses.negative_pressure(*compared, generator=torch.Generator().manual_seed(4))
            + 0.125 * losses.head_specialization(*compared)
        )
        assert got.item() == pytest.approx(want.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"scale: expected within \[0.01, 100\], got 0.0"):
        losses.DenseAV(scale=0.0)


def test_total_variation_needs_two_tokens():
    visual, audio, _ = features()
    with pytest.raises(ValueError, match=r"audio: expected \(N, C, T\) with T >= 2, got \(4, 6, 1\)"):
        losses.total_variation(visual, audio[:, :, :1])


def test_learned_scale():
    visual, audio, mask = features()
    module = losses.DenseAV(scale=2.0)
    loss = module(visual, audio, tokens=ops.TokenMean(mask))
    assert loss.item() == pytest.approx(losses.dense_av(visual, audio, tokens=ops.TokenMean(mask), scale=2.0).item())
    (found,) = torch.autograd.grad(loss, module.log_scale)
    step = 1e-3
    ends = [
        losses.dense_av(visual.double(), audio.double(), tokens=ops.TokenMean(mask), scale=2 * math.exp(sign * step))
        for sign in (1, -1)
    ]
    assert found.item() == pytest.approx((ends[0] - ends[1]).item() / (2 * step), rel=1e-4)
    module.log_scale.data.fill_(20.0)
    limited = module(visual, audio, tokens=ops.TokenMean(mask))
    assert limited.item() == pytest.approx(
        losses.dense_av(visual, audio, tokens=ops.TokenMean(mask), scale=100.0).item()
    )


# ---- regularisers ----


def paired(visual, audio):
    """sim[n][k][t][p]"""
    return [
        [
            [[(cell @ token).item() for cell in v.flatten(1).t()] for token in a.t()]
            for v, a in zip(visual[n].chunk(HEADS), audio[n].chunk(HEADS))
        ]
        for n in range(BATCH)
    ]


def mean(numbers) -> float:
    numbers = list(numbers)
    return math.fsum(numbers) / len(numbers)


def test_total_variation():
    visual, audio, _ = features()
    sim = paired(visual, audio)
    want = mean(
        (head[t + 1][p] - head[t][p]) ** 2
        for image in sim
        for head in image
        for t in range(TOKENS - 1)
        for p in range(HEIGHT * WIDTH)
    )
    assert losses.total_variation(visual, audio).item() == pytest.approx(want, rel=1e-5)


def test_head_specialization():
    visual, audio, _ = features()
    want = mean(
        abs(image[0][t][p] * image[1][t][p])
        for image in paired(visual, audio)
        for t in range(TOKENS)
        for p in range(HEIGHT * WIDTH)
    )
    assert losses.head_specialization(visual, audio).item() == pytest.approx(want, rel=1e-5)
    with pytest.raises(ValueError, match="heads: expected at least 2, got 1"):
        losses.head_specialization(visual, audio, heads=1)


@pytest.mark.parametrize("power", [1, 2])
def test_silence(power):
    visual, audio, mask = features()
    silent = ~mask
    want = mean(
        abs(head[t][p]) ** power
        for n, image in enumerate(paired(visual, audio))
        for head in image
        for t in range(TOKENS)
        if silent[n, t]
        for p in range(HEIGHT * WIDTH)
    )
    assert losses.silence(visual, audio, silent, power=power).item() == pytest.approx(want, rel=1e-5)
    assert losses.silence(visual, audio, torch.zeros_like(silent)).item() == 0


def test_negative_pressure():
    visual, audio = torch.full((2, 4, 1, 2), 1.0), torch.full((3, 4, 2), -0.5)
    visual[:, 2:] = -1.0  # head 0: products of -1, head 1: of 1
    generator = torch.Generator().manual_seed(0)
    assert losses.negative_pressure(visual, audio, generator=generator).item() == pytest.approx(0.5)
    assert losses.negative_pressure(visual, visual.flatten(2), generator=generator).item() == 0


def test_regularisers_have_gradients():
    visual, audio, mask = features()
    terms = (
        losses.total_variation(visual, audio),
        losses.head_specialization(visual, audio),
        losses.silence(visual, audio, ~mask),
        losses.negative_pressure(visual, audio, generator=torch.Generator().manual_seed(1)),
    )
    for term in terms:
        for gradient in torch.autograd.grad(term, (visual, audio), retain_graph=True):
            assert gradient.any() and gradient.isfinite().all()


# ---- bad arguments ----


@pytest.mark.parametrize("loss", [losses.dense_av, losses.late_interaction])
def test_audio_without_tokens(loss):
    visual, audio, _ = features()
    with pytest.raises(ValueError, match=r"audio: expected \(M, C, T\), got \(4, 6\)"):
        loss(visual, audio[:, :, 0])


def test_tokens_have_to_be_said():
    visual, audio, _ = features()
    with pytest.raises(TypeError, match=r"tokens: expected ops\.TokenMean or ops\.TokenMax with audio \(M, C, T\)"):
        losses.ez_vsl(visual, audio)
    with pytest.raises(ValueError, match=r"tokens: expected with audio \(M, C, T\), got audio \(4, 6\)"):
        losses.ez_vsl(visual, audio[:, :, 0], tokens=ops.TokenMean())
    with pytest.raises(ValueError, match="head_pooling: expected one of"):
        losses.dense_av(visual, audio, head_pooling="mean")


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda v, a: losses.dense_av(v, a, mean_weight=2),
            ValueError,
            r"mean_weight: expected within \[0, 1\], got 2",
        ),
        (lambda v, a: losses.dense_av(v, a, mean_weight=-1), ValueError, r"mean_weight: expected .*, got -1"),
        (lambda v, a: losses.dense_av(v, a, scale=torch.ones(4)), ValueError, r"scale: expected .*, got \(4,\)"),
        (lambda v, a: losses.dense_av(v, a, tokens="mean"), TypeError, r"tokens: expected ops\.TokenMean .* 'mean'"),
        (lambda v, a: losses.ez_vsl(v, a, tokens="mean"), TypeError, r"tokens: expected ops\.TokenMean .* 'mean'"),
        (lambda v, a: losses.ssl_align([v], [a], tokens="mean"), TypeError, r"tokens: expected ops\.TokenMean"),
        (
            lambda v, a: losses.ssl_align([v], [a], tokens=ops.TokenMean(torch.ones(4, 9))),
            ValueError,
            r"tokens\.mask: expected \(M, T\) = \(4, 5\), got \(4, 9\)",
        ),
    ],
)
def test_bad_arguments_of_losses_are_named(call, error, message):
    visual, audio, _ = features()
    with pytest.raises(error, match=message):
        call(visual, audio)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_a_scale_at_its_bound_learns(scale):
    """Inside the bounds and at them the gradient is that of the loss with respect to log scale, by differences."""
    visual, audio, _ = features()
    module = losses.DenseAV(scale=scale)
    module.double()(visual.double(), audio.double() / 30).backward()

    def value(log_scale):
        return losses.dense_av(visual.double(), audio.double() / 30, scale=math.exp(log_scale)).item()

    step, at = 1e-5, math.log(scale)
    want = (value(at + step) - value(at - step)) / (2 * step)
    assert want != 0 and module.log_scale.grad.item() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda v, a: losses.silence(v, a, torch.ones(1, 3) > 0), ValueError, r"silent: expected \(\d, \d\) bool, got"),
        (lambda v, a: losses.silence(v, a, torch.ones(a.shape[::2])), ValueError, r"silent: .* torch\.float32"),
        (lambda v, a: losses.DenseAV(silence=0.1)(v, a), ValueError, r"silent: expected .* 0\.1 of silence, got None"),
        (lambda v, a: losses.silence(v, a, None), TypeError, "silent: expected a tensor, got NoneType"),
        (
            lambda v, a: losses.DenseAV()(v, a, silent=torch.ones(a.shape[::2])),
            ValueError,
            r"silent: .* torch\.float32",
        ),
        (
            lambda v, a: losses.total_variation(v, a, heads=5),
            ValueError,
            r"heads: expected a divisor of C = \d+, got 5",
        ),
        (
            lambda v, a: losses.negative_pressure(v, a, heads=5),
            ValueError,
            r"heads: expected a divisor of C = \d+, got 5",
        ),
        (
            lambda v, a: losses.head_specialization(v, a, heads=2.0),
            TypeError,
            r"heads: expected a whole number, got 2\.0",
        ),
        (lambda v, a: losses.negative_pressure(v[:0], a), ValueError, r"visual: expected at least one, got \(0, "),
    ],
)
def test_bad_arguments_of_regularisers_are_named(call, error, message):
    visual, audio, _ = features()
    with pytest.raises(error, match=message):
        call(visual, audio)
