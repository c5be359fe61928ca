"""Scores of images with audio tokens, against loops over single pairs in float64."""

import pytest
import torch
from torch import Tensor

from op_checks import LAYOUTS, dtypes
from ssl_fast import ops
from ssl_fast.ops import checks
from token_checks import check_late_interaction, check_layout, loop, pooled_cells

IMAGES, CLIPS, CHANNELS, TOKENS, HEIGHT, WIDTH = 3, 4, 12, 5, 3, 4
POOLINGS = {
    "max": ops.Max(),
    "mean": ops.Mean(),
    "soft_threshold": ops.SoftThreshold(0.2, 0.1),
    "log_mean_exp": ops.LogMeanExp(0.2),
}
poolings = pytest.mark.parametrize("pooling", POOLINGS.values(), ids=POOLINGS)
backends = pytest.mark.parametrize("backend", ["auto", "reference"])
token_poolings = pytest.mark.parametrize("token_pooling", [ops.TokenMean, ops.TokenMax])


def features(seed: int = 0, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    visual = torch.randn(IMAGES, CHANNELS, HEIGHT, WIDTH, generator=generator)
    audio = torch.randn(CLIPS, CHANNELS, TOKENS, generator=generator)
    return visual.to(dtype).requires_grad_(), audio.to(dtype).requires_grad_()


def masks(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Of cells and of tokens; each image keeps a cell, and each clip a token."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(IMAGES, HEIGHT, WIDTH, generator=generator) > 0.4
    tokens = torch.rand(CLIPS, TOKENS, generator=generator) > 0.4
    cells[:, 1, 1] = tokens[:, 2] = True
    return cells, tokens


@pytest.mark.grid
@backends
@poolings
@token_poolings
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("head_pooling", ["elementwise_max", "max", "sum"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_scores_and_gradients(
    backend, pooling, token_pooling, masked, heads, head_pooling, normalize, nonnegative, biased
):
    visual, audio = features()
    cells, tokens = masks()
    if not masked:
        cells, tokens = torch.ones_like(cells), torch.ones_like(tokens)
    bias = torch.randn(IMAGES, CLIPS, heads, generator=torch.Generator().manual_seed(2)) * biased
    got = ops.pooled_similarity(
        visual,
        audio,
        pooling,
        tokens=token_pooling(tokens if masked else None),
        visual_mask=cells if masked else None,
        heads=heads,
        head_pooling=head_pooling,
        normalize=normalize,
        nonnegative=nonnegative,
        bias=bias if biased else None,
        backend=backend,
    )
    mean = token_pooling is ops.TokenMean
    want = loop(visual, audio, pooling, mean, cells, tokens, heads, head_pooling, normalize, nonnegative, bias)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(3))
    found = torch.autograd.grad(got, (visual, audio), upstream)
    expected = torch.autograd.grad(want, (visual, audio), upstream.double())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@dtypes(torch.float64, torch.float32, torch.bfloat16, torch.float16)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("pooling", [ops.Max(), ops.SoftThreshold(0.5, 0.5)], ids=["max", "soft"])
def test_dtypes_and_layouts(dtype, layout, heads, pooling):
    check_layout(*(layout(x.detach()) for x in features(dtype=dtype)), pooling, heads, normalize=False)


SETS = checks.extension.instruction_sets() if checks.extension else []


@pytest.mark.grid
@pytest.mark.parametrize("instruction_set", SETS)
@dtypes(torch.float64, torch.float32, torch.bfloat16, torch.float16)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed"])
@pytest.mark.parametrize("size", [(70, 23, 7, 5, 7), (96, 9, 31, 2, 2), (33, 40, 1, 3, 3), (12, 5, 6, 1, 1)], ids=str)
@pytest.mark.parametrize("pooling", [ops.Max(), ops.LogMeanExp(0.5)], ids=["max", "lme"])
def test_heads_and_tokens_in_place(instruction_set, dtype, layout, size, pooling, use_set):
    """Of channels that fill no panel of a kernel, and more audios than one block of them."""
    use_set(instruction_set)
    channels, clips, length, height, width = size
    visual, audio = torch.randn(3, channels, height, width), torch.randn(clips, channels, length)
    visual, audio = (LAYOUTS[layout](x.div(channels**0.25).to(dtype)) for x in (visual, audio))
    for heads in (1, 3 if channels % 3 == 0 else 2):
        check_layout(visual, audio, pooling, heads, normalize=heads == 1)


def test_dot_products_below_every_cosine():
    """A maximum that starts from a number below all cosines is wrong for dot products."""
    visual, audio = torch.full((2, 4, 2, 2), -5.0, requires_grad=True), torch.full((3, 4), 5.0)
    scores = ops.pooled_similarity(visual, audio, ops.Max(), normalize=False)
    assert (scores == -100).all()
    (gradient,) = torch.autograd.grad(scores.sum(), visual)
    assert (gradient[:, :, 0, 0] == 15).all() and not gradient.flatten(2)[:, :, 1:].any()


@poolings
def test_dot_products_without_tokens(pooling):
    visual, audio = features()
    clips = audio[:, :, 0]
    got = ops.pooled_similarity(visual, clips, pooling, normalize=False)
    alpha = torch.einsum("ncp,mc->nmp", visual.double().flatten(2), clips.double())
    want = pooled_cells(alpha, pooling)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
    for one, other in zip(*(torch.autograd.grad(x.sum(), (visual, audio)) for x in (got, want)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@backends
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
def test_late_interaction_in_both_directions(backend, masked, heads):
    visual, audio = features()
    cells, tokens = masks() if masked else (torch.ones(IMAGES, HEIGHT, WIDTH) > 0, torch.ones(CLIPS, TOKENS) > 0)
    bias = torch.randn(IMAGES, CLIPS, heads, generator=torch.Generator().manual_seed(2))
    given = {"visual_mask": cells, "audio_mask": tokens} if masked else {}
    by_token, by_cell = ops.late_interaction(
        visual, audio, heads=heads, normalize=False, bias=bias, backend=backend, **given
    )
    for n in range(IMAGES):
        for m in range(CLIPS):
            alpha = torch.stack(
                [
                    v[:, cells[n].flatten()].t() @ a[:, tokens[m]] + offset
                    for v, a, offset in zip(
                        visual[n].double().flatten(1).chunk(heads), audio[m].double().chunk(heads), bias[n, m]
                    )
                ]
            ).amax(0)
            assert by_token[n, m].item() == pytest.approx(alpha.amax(0).mean().item(), rel=2e-6, abs=2e-6)
            assert by_cell[n, m].item() == pytest.approx(alpha.amax(1).mean().item(), rel=2e-6, abs=2e-6)


@pytest.mark.grid
@pytest.mark.parametrize("instruction_set", SETS)
@dtypes(torch.float64, torch.float32, torch.bfloat16, torch.float16)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed"])
@pytest.mark.parametrize(
    "size", [(70, 23, 7, 5, 7), (24, 3, 100, 4, 4), (2200, 40, 2, 2, 2), (33, 40, 1, 3, 3), (12, 5, 6, 1, 1)], ids=str
)
def test_late_interaction_of_each_instruction_set(instruction_set, dtype, layout, size, use_set):
    """Clips that end within a vector, in the next panel, and in the next block of audios."""
    use_set(instruction_set)
    channels, clips, length, height, width = size
    visual, audio = torch.randn(3, channels, height, width), torch.randn(clips, channels, length)
    visual, audio = (LAYOUTS[layout](x.div(channels**0.25).to(dtype)) for x in (visual, audio))
    for heads in (1, 3 if channels % 3 == 0 else 2 if channels % 2 == 0 else 1):
        check_late_interaction(visual, audio, heads, normalize=heads == 1)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_one_direction_of_late_interaction(wanted):
    check_late_interaction(*(x.detach() for x in features()), 2, False, wanted)


def test_ties_and_nan_of_late_interaction():
    """Of equal tokens the first has the gradient; a NaN is the maximum, as in torch.max."""
    visual, audio = torch.ones(2, 4, 3, 3), torch.ones(3, 4, 40, requires_grad=True)
    _, by_cell = ops.late_interaction(visual, audio, normalize=False)
    (gradient,) = torch.autograd.grad(by_cell.sum(), audio)
    torch.testing.assert_close(gradient[:, :, 0], torch.full((3, 4), 2.0))
    assert not gradient[:, :, 1:].any()
    with torch.no_grad():
        audio[1, 0, 35] = torch.nan
    _, by_cell = ops.late_interaction(visual, audio, normalize=False)
    assert by_cell[:, 1].isnan().all() and by_cell[:, ::2].eq(4).all()


@pytest.mark.parametrize("normalize", [True, False])
def test_maps_of_tokens(normalize):
    visual, audio = features()
    audio = audio[:IMAGES]
    maps = ops.token_maps(visual, audio, normalize=normalize)
    assert maps.shape == (IMAGES, TOKENS, HEIGHT, WIDTH)
    for n in range(IMAGES):
        for t in range(TOKENS):
            sound = audio[n, :, t].double()
            want = torch.einsum("chw,c->hw", visual[n].double(), sound)
            if normalize:
                want = want / visual[n].double().norm(dim=0) / sound.norm()
            torch.testing.assert_close(maps[n, t].double(), want, rtol=2e-6, atol=2e-6)
    one = ops.token_maps(visual, audio[:, :, 2:3], normalize=normalize)[:, 0]
    if normalize:
        torch.testing.assert_close(one, ops.cosine_map(visual, audio[:, :, 2].contiguous()), rtol=1e-5, atol=1e-6)


def test_one_token_is_a_clip_without_tokens():
    visual, audio = features()
    for tokens in (ops.TokenMean(), ops.TokenMax()):
        scores = ops.pooled_similarity(visual, audio[:, :, :1], ops.Max(), tokens=tokens)
        assert torch.equal(scores, ops.pooled_similarity(visual, audio[:, :, 0].contiguous(), ops.Max()))


def test_weights_of_tokens():
    visual, audio = features()
    weight = torch.rand(CLIPS, TOKENS, generator=torch.Generator().manual_seed(4)) + 0.1
    scores = ops.pooled_similarity(visual, audio, ops.Max(), tokens=ops.TokenMean(weight))
    each = [ops.pooled_similarity(visual, audio[:, :, t].contiguous(), ops.Max()) * weight[:, t] for t in range(TOKENS)]
    torch.testing.assert_close(scores, sum(each) / weight.sum(1), rtol=1e-6, atol=1e-6)


@token_poolings
def test_a_clip_without_tokens(token_pooling):
    visual, audio = features()
    mask = torch.ones(CLIPS, TOKENS, dtype=torch.bool)
    mask[2] = False
    with pytest.raises(ValueError, match=r"tokens\.mask: expected at least one token in every clip, none in clip 2"):
        ops.pooled_similarity(visual, audio, ops.Max(), tokens=token_pooling(mask))
    scores = ops.pooled_similarity(visual, audio, ops.Max(), tokens=token_pooling(mask, empty=-0.5))
    assert (scores[:, 2] == -0.5).all() and scores.isfinite().all()
    for gradient in torch.autograd.grad(scores.sum(), (visual, audio)):
        assert gradient.isfinite().all()
    assert not torch.autograd.grad(
        ops.pooled_similarity(visual, audio, ops.Max(), tokens=token_pooling(mask, empty=-0.5)).sum(), audio
    )[0][2].any()


@pytest.mark.parametrize("pooling", [ops.Max(), ops.SoftThreshold(0.2, 0.1)], ids=["kernel", "chunks"])
def test_what_is_masked_has_no_gradient(pooling):
    visual, audio = features()
    cells, tokens = masks()
    hostile_visual = visual.detach().masked_fill(~cells[:, None], 1e30).requires_grad_()
    hostile_audio = audio.detach().masked_fill(~tokens[:, None], 1e30).requires_grad_()
    options = {"tokens": ops.TokenMax(tokens), "visual_mask": cells}
    clean = ops.pooled_similarity(visual, audio, pooling, **options)
    scores = ops.pooled_similarity(hostile_visual, hostile_audio, pooling, **options)
    assert torch.equal(scores, clean)
    of_visual, of_audio = torch.autograd.grad(scores.sum(), (hostile_visual, hostile_audio))
    assert not of_visual.masked_select(~cells[:, None]).any() and not of_audio.masked_select(~tokens[:, None]).any()


def test_same_bits_again_and_for_every_number_of_threads(monkeypatch):
    visual, audio = features()

    def once():
        scores = ops.pooled_similarity(visual, audio, ops.Max(), tokens=ops.TokenMean(), heads=2, normalize=False)
        return scores, *torch.autograd.grad(scores.square().sum(), (visual, audio))

    first, threads = once(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = once()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))
    assert torch.equal(first[0], single[0])


def test_memory_is_independent_of_cells():
    """The largest tensor that autograd keeps or makes is of heads x N x M x T numbers, not of as many maps."""
    visual, audio = torch.randn(8, 16, 32, 32, requires_grad=True), torch.randn(16, 16, 24, requires_grad=True)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                x.numel() for x in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(x, Tensor)
            )
            return out

    with Watch():
        scores = ops.pooled_similarity(visual, audio, ops.Max(), tokens=ops.TokenMean(), heads=2, normalize=False)
        scores.sum().backward()
    assert max(sizes) <= 8 * 16 * 32 * 32  # the features; the map of all pairs has 6,291,456 cells
    assert 8 * 16 * 24 * 2 in sizes


def test_what_no_kernel_pools_is_computed_in_chunks(monkeypatch):
    visual, audio = features()
    options = {"tokens": ops.TokenMean(), "heads": 2}
    whole = ops.pooled_similarity(visual, audio, ops.SoftThreshold(0.2, 0.1), **options)
    monkeypatch.setattr("ssl_fast.ops.tokens.CHUNK_BYTES", 1)
    chunked = ops.pooled_similarity(visual, audio, ops.SoftThreshold(0.2, 0.1), **options)
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)
    for one, other in zip(*(torch.autograd.grad(x.sum(), (visual, audio)) for x in (chunked, whole)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@backends
@pytest.mark.parametrize("head_pooling", ["elementwise_max", "sum"])
def test_weights_of_cells(backend, head_pooling, monkeypatch):
    """ops.Mean with its own mask, of weights, also where the images are taken one by one."""
    monkeypatch.setattr("ssl_fast.ops.tokens.CHUNK_BYTES", 1)
    visual, audio = features()
    weight = torch.rand(IMAGES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4)) + 0.1
    got = ops.pooled_similarity(
        visual,
        audio,
        ops.Mean(weight),
        tokens=ops.TokenMean(),
        heads=2,
        head_pooling=head_pooling,
        normalize=False,
        backend=backend,
    )
    pairs = zip(visual.double().flatten(2).chunk(2, 1), audio.double().chunk(2, 1), strict=True)
    alpha = torch.stack([torch.einsum("ncp,mct->nmtp", v, a) for v, a in pairs])
    alpha = alpha.amax(0) if head_pooling == "elementwise_max" else alpha.sum(0)
    share = weight.double().flatten(1) / weight.double().flatten(1).sum(1, keepdim=True)
    torch.testing.assert_close(got.double(), torch.einsum("nmtp,np->nmt", alpha, share).mean(-1), rtol=2e-6, atol=2e-6)


def test_compiled_graph():
    visual, audio = features()
    _, tokens = masks()

    def score(visual, audio):
        scores = ops.pooled_similarity(visual, audio, ops.Max(), tokens=ops.TokenMean(tokens), heads=2, normalize=False)
        by_token, by_cell = ops.late_interaction(visual, audio, audio_mask=tokens, heads=2)
        return scores + by_token - 2 * by_cell

    compiled = torch.compile(score, backend="aot_eager", fullgraph=True)
    want, got = score(visual, audio), compiled(visual, audio)
    assert torch.equal(got, want)
    for one, other in zip(*(torch.autograd.grad(x.sum(), (visual, audio)) for x in (got, want)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_no_images_and_no_clips():
    for images, clips in ((0, 3), (2, 0), (0, 0)):
        visual, audio = torch.randn(images, 4, 2, 2, requires_grad=True), torch.randn(clips, 4, 5, requires_grad=True)
        scores = ops.pooled_similarity(visual, audio, ops.Max(), tokens=ops.TokenMean(), heads=2)
        assert scores.shape == (images, clips)
        scores.sum().backward()
        assert visual.grad.shape == visual.shape and not audio.grad.any()
        for backend, options in ((b, o) for b in ("auto", "reference") for o in ({"nonnegative": True}, {"heads": 2})):
            mask = torch.ones(images, 2, 2, dtype=torch.bool)
            options |= {"tokens": ops.TokenMean(), "visual_mask": mask, "backend": backend}
            scores = ops.pooled_similarity(visual, audio, ops.SoftThreshold(), **options)
            assert scores.shape == (images, clips)
            assert not any(x.any() for x in torch.autograd.grad(scores.sum(), (visual, audio)))
        both = ops.late_interaction(visual, audio)
        assert [x.shape for x in both] == [(images, clips)] * 2
        assert not any(x.any() for x in torch.autograd.grad(both[0].sum() + both[1].sum(), (visual, audio)))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"tokens": None}, TypeError, r"tokens: expected ops\.TokenMean or ops\.TokenMax with audio \(M, C, T\)"),
        ({"tokens": ops.TokenMean(torch.ones(4, 6))}, ValueError, r"tokens\.mask: expected \(M, T\) = \(4, 5\), got"),
        ({"tokens": ops.TokenMean(torch.full((4, 5), -1.0))}, ValueError, r"tokens\.mask: expected finite weights"),
        ({"tokens": ops.TokenMax(torch.ones(4, 5))}, TypeError, r"tokens\.mask: expected bool for ops\.TokenMax"),
        ({"tokens": ops.TokenMax([[True]])}, TypeError, r"tokens\.mask: expected a tensor, got list"),
        ({"heads": 5}, ValueError, r"heads: expected a divisor of C = 12, got 5"),
        ({"heads": 0}, ValueError, r"heads: expected a divisor of C = 12, got 0"),
        ({"head_pooling": "mean"}, ValueError, r"head_pooling: expected one of .*, got 'mean'"),
        (
            {"bias": torch.zeros(4, 3)},
            ValueError,
            r"bias: expected \(N, M, heads\) = \(3, 4, 1\) or \(N, M\) = \(3, 4\)",
        ),
        ({"visual_mask": torch.ones(3, 3, 4)}, TypeError, r"visual_mask: expected bool"),
        ({"visual_mask": torch.zeros(3, 3, 4) > 0}, ValueError, r"visual_mask: expected at least one cell"),
        ({"visual_mask": torch.ones(3, 4, 3) > 0}, ValueError, r"visual_mask: expected \(N, h, w\) = \(3, 3, 4\)"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    visual, audio = features()
    with pytest.raises(error, match=message):
        ops.pooled_similarity(visual, audio, ops.Max(), **({"tokens": ops.TokenMean()} | change))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"audio_mask": torch.zeros(4, 5) > 0}, ValueError, r"audio_mask: expected at least one .* none in clip 0$"),
        ({"audio_mask": torch.ones(4, 6) > 0}, ValueError, r"audio_mask: expected \(M, T\) = \(4, 5\), got \(4, 6\)"),
        ({"audio_mask": torch.ones(4, 5)}, TypeError, r"audio_mask: expected bool, got torch\.float32"),
        ({"audio_mask": [[True]]}, TypeError, r"audio_mask: expected a tensor, got list"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias: expected \(N, M, heads\) = \(3, 4, 1\) .* got \(4,\)"),
        ({"bias": torch.zeros(4, 3)}, ValueError, r"bias: expected \(N, M, heads\) = \(3, 4, 1\) .* got \(4, 3\)"),
        ({"bias": [0.0]}, TypeError, r"bias: expected a tensor, got list"),
        ({"heads": True}, TypeError, r"heads: expected a whole number, got True"),
    ],
)
def test_bad_arguments_of_late_interaction_are_named(change, error, message):
    with pytest.raises(error, match=message):
        ops.late_interaction(*features(), **change)


@backends
@poolings
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masked_mean_under_autocast(backend, pooling, dtype):
    """Only features are rounded: scores, of float32, are those of the rounded features without autocast."""
    visual, audio = (x.detach().to(dtype) for x in features())
    mask, options = masks()[1], {"heads": 3, "head_pooling": "sum", "normalize": False, "backend": backend}
    # not of the einsum of the reference, which autocast computes in the dtype; the pooling of the tokens alone
    pooled = torch.randn(3, IMAGES, CLIPS, TOKENS, generator=torch.Generator().manual_seed(5))
    want = (pooled.double() * mask).sum(-1) / mask.sum(-1)
    with torch.autocast("cpu", dtype):
        got = ops.TokenMean(mask).pool(pooled)
        scores = ops.pooled_similarity(visual.float(), audio.float(), pooling, tokens=ops.TokenMean(mask), **options)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    without = ops.pooled_similarity(visual, audio, pooling, tokens=ops.TokenMean(mask), **options)
    torch.testing.assert_close(scores, without, rtol=1e-6, atol=1e-6)


def test_tokens_need_a_third_axis():
    visual, audio = features()
    with pytest.raises(ValueError, match=r"tokens: expected with audio \(M, C, T\), got audio \(4, 12\)"):
        ops.pooled_similarity(visual, audio[:, :, 0], ops.Max(), tokens=ops.TokenMean())
    with pytest.raises(ValueError, match=r"audio: expected \(M, 12, T\) to match visual's C=12"):
        ops.pooled_similarity(visual, audio[:, :, :, None], ops.Max())
    with pytest.raises(ValueError, match=r"audio: expected \(N, C, T\), got \(3, 12\)"):
        ops.token_maps(visual, audio[:3, :, 0])
