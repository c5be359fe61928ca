"""Loss and gradients from one pass over the products, against the two passes, and what autograd may do with them."""

from functools import partial

import pytest
import torch

from op_checks import needs_compiled
from ssl_fast import losses, ops
from ssl_fast.ops import kernels
from ssl_fast.ops.cross_entropy import fused_cross_entropy
from ssl_fast.ops.row_loss import pooled_row_loss, product_row_loss
from test_bench import Recorded

pytestmark = needs_compiled

SHAPES = {  # N, M, C, h, w; positives
    "square": ((5, 5, 16, 3, 2), None),
    "more-audio": ((3, 70, 40, 7, 7), torch.tensor([69, 0, 69])),
    "large-maps": ((4, 17, 24, 23, 24), None),
    "one-cell": ((6, 6, 8, 1, 1), torch.tensor([5, 4, 3, 2, 1, 0])),
    "many-images": ((37, 38, 32, 2, 2), None),
}


def features(shape, dtype, layout=torch.contiguous_format, spaces=1, seed=0):
    count, audios, channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    visual = [draw(count, channels, height, width).contiguous(memory_format=layout) for _ in range(spaces)]
    return [x.requires_grad_() for x in (*visual, *(draw(audios, channels) for _ in range(spaces)))]


def same_bits(one_pass, two_passes, tensors):
    results = [(loss, *torch.autograd.grad(loss, tensors)) for loss in (one_pass, two_passes)]
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype and got.stride() == expected.stride()
        assert torch.equal(got, expected)


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("background", [None, (0.4, 0.03)], ids=["", "background"])
@pytest.mark.parametrize("pooling", [ops.SoftThreshold(), ops.LogMeanExp(0.1)], ids=lambda pooling: pooling.kind)
@pytest.mark.parametrize("side", ["both", "visual", "audio"])
def test_pooled(case, dtype, background, pooling, side, set_threads):
    shape, positives = SHAPES[case]
    options = {} if background is None else dict(zip(("epsilon", "beta"), background))
    for threads, layout in ((1, torch.contiguous_format), (3, torch.channels_last)):
        set_threads(threads)
        visual, audio = features(shape, dtype, layout)
        wanted = {"both": [visual, audio], "visual": [visual], "audio": [audio]}[side]
        for x in (visual, audio):
            x.requires_grad_(any(x is one for one in wanted))
        columns = torch.arange(shape[0]) if positives is None else positives
        scores, maps = ops.pooled_similarity(visual, audio, pooling), None
        if background is not None:
            options["maps"] = maps = ops.cosine_map(visual, audio[columns]).flatten(1)
        two = fused_cross_entropy(scores, positives, 0.07, -0.2, rows=True, columns=False, **options)
        one = pooled_row_loss(visual, audio, pooling, positives, 0.07, -0.2, background)
        if maps is None:
            same_bits(one, two, wanted)
            continue
        # the two passes add the gradient of the map to that of the scores as tensors of the features' dtype
        results = [(loss, *torch.autograd.grad(loss, wanted)) for loss in (one, two)]
        bound = {torch.float32: 3e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2}[dtype]
        for got, expected in zip(*results, strict=True):
            assert (got - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("side", ["both", "visual", "audio"])
def test_product(case, dtype, reduce, side, set_threads):
    shape, positives = SHAPES[case]
    set_threads(2)
    every = features(shape, dtype, spaces=2)
    wanted = {"both": every, "visual": every[:2], "audio": every[2:]}[side]
    given = [x if any(x is one for one in wanted) else x.detach() for x in every]
    scores = ops.product_log_scores(*given, tau=0.05, reduce=reduce)
    two = fused_cross_entropy(scores, positives, 1.0, 0.0, rows=True, columns=False)
    one = product_row_loss(*given, positives, tau=0.05, reduce=reduce)
    same_bits(one, two, wanted)


CALLS = {
    "margin_nce": losses.margin_nce,
    "lvs": losses.lvs,
    "lvs-plain": partial(losses.lvs, hard_negative=False),
    "slavc": lambda visual, audio, **options: losses.slavc(visual, visual, audio, audio, momentum=None, **options),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_step_of_a_loss_is_one_kernel(name, monkeypatch):
    recorded = Recorded(kernels.extension)
    monkeypatch.setattr(kernels, "extension", recorded)
    visual, audio = features((4, 4, 8, 3, 3), torch.float32)
    CALLS[name](visual, audio).backward()
    kernel = "product_row_loss" if name == "slavc" else "similarity_row_loss"
    assert recorded.names == [kernel]
    recorded.names.clear()
    with torch.no_grad():  # no gradients are computed for nothing
        CALLS[name](visual, audio)
    assert kernel not in recorded.names and recorded.names


@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_a_weighted_loss_again_and_of_one_side(name):
    visual, audio = features((4, 4, 8, 3, 3), torch.float64)
    loss = CALLS[name](visual, audio)
    first = torch.autograd.grad(loss, (visual, audio), retain_graph=True)
    kept = [x.clone() for x in first]
    tripled = torch.autograd.grad(3 * loss, (visual, audio), retain_graph=True)
    for three, one in zip(tripled, first):  # to the rounding of slavc's sum of two spaces
        torch.testing.assert_close(three, 3 * one, rtol=1e-14, atol=1e-16)
    loss.backward(retain_graph=True)
    (loss + loss).backward(retain_graph=True)  # accumulates into .grad, which must be nobody else's memory
    for x, one in zip((visual, audio), kept):
        torch.testing.assert_close(x.grad, 3 * one, rtol=1e-14, atol=1e-16)
    again = torch.autograd.grad(loss, (visual, audio))
    assert all(torch.equal(x, one) for x, one in zip(again, kept))
    alone = torch.autograd.grad(CALLS[name](visual, audio.detach()), visual)[0]
    assert torch.equal(alone, kept[0])


@pytest.mark.parametrize("name", CALLS)
def test_what_comes_back_is_the_callers(name):
    """A loss, and gradients of a graph that is kept, may be changed in place."""
    visual, audio = features((4, 4, 8, 3, 3), torch.float64)
    expected = torch.autograd.grad(CALLS[name](visual, audio), (visual, audio))
    loss = CALLS[name](visual, audio)
    for _ in range(2):
        for gradient, want in zip(torch.autograd.grad(loss, (visual, audio), retain_graph=True), expected):
            assert torch.equal(gradient, want)
            gradient.mul_(7)
    loss /= 4
    for gradient, want in zip(torch.autograd.grad(loss, (visual, audio)), expected):
        torch.testing.assert_close(4 * gradient, want, rtol=1e-14, atol=1e-16)


def test_factors_of_bfloat16_gradients_are_not_rounded():
    pair = features((4, 4, 64, 3, 3), torch.bfloat16)
    loss = losses.margin_nce(*pair)
    one = torch.autograd.grad(loss, pair, retain_graph=True)
    third = torch.autograd.grad(loss / 3, pair)
    for gradient, whole in zip(third, one):
        assert torch.equal(gradient, (whole.float() * torch.tensor(1 / 3)).bfloat16())


def test_features_decide_on_the_device():
    with torch.device("meta"):
        visual, audio = torch.randn(4, 8, 3, 3, device="cpu"), torch.randn(4, 8, device="cpu", requires_grad=True)
        assert losses.lvs(visual, audio).isfinite()
        assert losses.lvs(visual.to("meta"), audio.to("meta")).is_meta


@pytest.mark.parametrize("name", CALLS)
def test_no_second_derivative(name):
    visual, audio = features((4, 4, 8, 3, 3), torch.float64)
    gradient = torch.autograd.grad(CALLS[name](visual, audio), visual, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="cross_entropy_backward"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", CALLS)
def test_float16_gradients_are_scaled_before_they_are_rounded(name):
    """As torch.amp.GradScaler wants it: those of the loss itself underflow."""
    half = features((64, 64, 16, 3, 3), torch.float16)
    wide = [x.detach().double().requires_grad_() for x in half]
    scale = 2.0**14
    got = torch.autograd.grad(scale * CALLS[name](*half), half)
    truth = torch.autograd.grad(scale * CALLS[name](*wide, backend="reference"), wide)
    for gradient, expected in zip(got, truth):
        assert (gradient.double() - expected).norm() < 2e-3 * expected.norm()


@pytest.mark.parametrize("name", CALLS)
def test_autocast_and_compile(name):
    pair = features((5, 5, 16, 3, 2), torch.float32)
    call = CALLS[name]
    with torch.autocast("cpu", torch.bfloat16):
        loss = call(*pair)
        expected = call(*pair, backend="reference")
    assert loss.dtype == torch.float32
    results = [(x, *torch.autograd.grad(x, pair)) for x in (loss, expected)]
    for got, want in zip(*results):
        assert got.dtype == want.dtype and (got - want).norm() <= 2e-2 * want.norm()
    for dynamic in (None, True):
        torch.compiler.reset()
        compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for count in (5, 7):
            pair = features((count, count, 16, 3, 2), torch.float32)
            results = [(x, *torch.autograd.grad(3 * x, pair)) for x in (compiled(*pair), call(*pair))]
            assert all(torch.equal(got, want) for got, want in zip(*results))


@pytest.mark.parametrize("name", CALLS)
def test_bad_arguments_are_named(name):
    visual, audio = features((4, 4, 8, 3, 3), torch.float32)
    with pytest.raises(ValueError, match=r"positives: expected columns in \[0, 4\)"):
        CALLS[name](visual, audio, positives=torch.tensor([0, 1, 2, 4]))
    with pytest.raises(ValueError, match="positives: required where there are 4 images and 3 audios"):
        CALLS[name](visual, audio[:3])
    with pytest.raises(ValueError, match=r"audio.*: expected \(M, 8\)"):
        CALLS[name](visual, audio[:, :7])
    if name == "slavc":
        with pytest.raises(TypeError, match="visual_avc: expected a tensor, got NoneType"):
            losses.slavc(visual.detach(), None, audio.detach(), audio.detach(), momentum=None)
    if name != "lvs":  # whose background is a negative
        with pytest.raises(ValueError, match="audio: expected at least 2, a positive and a negative, got 1"):
            CALLS[name](visual[:1], audio[:1])
    else:
        assert CALLS[name](visual[:1], audio[:1]).isfinite()
