"""Losses against loops written straight from the equations, closed forms and identities."""

import math

import numpy as np
import pytest
import torch

from loss_loops import (
    CHANNELS,
    HEIGHT,
    WIDTH,
    features,
    flip,
    loop_attention_pooled,
    loop_ez_vsl,
    loop_fnac,
    loop_hard_positives,
    loop_lvs,
    loop_margin_nce,
    loop_slavc,
    loop_ssl_align,
    loop_ssl_tie,
    loop_sspl,
    slavc_features,
    soft_mean,
)
from ssl_fast import losses, ops

PAIR_LOSSES = {
    "margin_nce": (losses.margin_nce, loop_margin_nce, {}),
    "margin_nce-symmetric": (
        losses.margin_nce,
        loop_margin_nce,
        {"symmetric": True, "margin": 0.1, "epsilon": 0.5, "beta": 0.1},
    ),
    "margin_nce-warm-up": (losses.margin_nce, loop_margin_nce, {"mean_weight": 0.3}),
    "lvs": (losses.lvs, loop_lvs, {}),
    "lvs-plain": (losses.lvs, loop_lvs, {"tri_map": False, "hard_negative": False}),
    "lvs-margin": (losses.lvs, loop_lvs, {"tri_map": False, "margin": -0.3, "tau": 0.1, "mean_weight": 1.0}),
    "lvs-released": (losses.lvs, loop_lvs, {"diagonal": "released", "tau": 0.5, "margin": -0.3}),
    "lvs-released-plain": (losses.lvs, loop_lvs, {"diagonal": "released", "tau": 0.5, "hard_negative": False}),
    "ez_vsl": (losses.ez_vsl, loop_ez_vsl, {}),
    "ez_vsl-margin": (losses.ez_vsl, loop_ez_vsl, {"margin": -0.2, "tau": 0.07, "mean_weight": 0.4}),
    "fnac": (losses.fnac, loop_fnac, {}),
    "fnac-nce": (losses.fnac, loop_fnac, {"weights": (0.0, 0.0, 0.0)}),
    "fnac-other": (losses.fnac, loop_fnac, {"weights": (1.0, 20.0, 300.0), "threshold": 0.3, "tau": 0.2}),
}
# rows, columns, positives
LAYOUTS = {"square": (4, 4, None), "shuffled": (4, 4, [2, 0, 3, 1]), "gathered": (3, 6, [4, 0, 5])}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    rows, columns, positives = LAYOUTS[request.param]
    return rows, columns, positives, None if positives is None else torch.tensor(positives)


def order(positives, rows):
    return list(range(rows)) if positives is None else positives


@pytest.mark.grid
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_pair_losses_equal_loops(name, layout, backend):
    loss, loop, options = PAIR_LOSSES[name]
    rows, columns, positives, tensor = layout
    visual, audio = features(rows, columns, seed=3)
    value = loss(visual, audio, positives=tensor, backend=backend, **options)
    assert value.dtype == torch.float64 and value.shape == ()
    assert float(value) == pytest.approx(loop(visual, audio, order(positives, rows), **options), rel=1e-10)


@pytest.mark.grid
@pytest.mark.parametrize("negatives", ["audio", "image", "both"])
@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("with_momentum", [True, False])
def test_slavc_equals_loops(negatives, reduce, with_momentum, layout, backend):
    rows, columns, positives, tensor = layout
    online, copies = slavc_features(rows, columns), slavc_features(rows, columns, seed=7)
    options = {"tau": 0.1, "reduce": reduce, "negatives": negatives, "momentum": copies if with_momentum else None}
    value = losses.slavc(*online, positives=tensor, backend=backend, **options)
    assert float(value) == pytest.approx(loop_slavc(*online, order(positives, rows), **options), rel=1e-10)


@pytest.mark.grid
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("projected", [False, True])
def test_ssl_align_equals_loops_over_nine_pairs(symmetric, projected, layout, backend):
    """Views of different map sizes, projections as callables and as tensors."""
    rows, columns, positives, tensor = layout
    sizes = ((HEIGHT, WIDTH), (1, 1), (3, 2))
    views = [features(rows, columns, seed, size=size) for seed, size in enumerate(sizes)]
    visuals, audios = [v for v, _ in views], [a for _, a in views]
    weights = torch.from_numpy(np.random.default_rng(9).standard_normal((2, 4, CHANNELS)))
    projections = {"project_visual": lambda x: x @ weights[0].t(), "project_audio": lambda x: x @ weights[1].t()}
    projections = projections if projected else {}
    options = {"positives": tensor, "symmetric": symmetric, "backend": backend}
    value, terms = losses.ssl_align(visuals, audios, **projections, **options, return_terms=True)
    expected = loop_ssl_align(visuals, audios, order(positives, rows), symmetric=symmetric, **projections)
    localization = loop_ssl_align(visuals, audios, order(positives, rows), symmetric=symmetric)
    assert float(value) == pytest.approx(expected, rel=1e-10)
    assert float(terms["localization"]) == pytest.approx(localization, rel=1e-10)
    assert float(terms["localization"] + terms["alignment"]) == pytest.approx(float(value), rel=1e-12)
    without = losses.ssl_align(visuals, audios, **projections, **options, alignment=False)
    assert float(without) == pytest.approx(localization, rel=1e-10)
    if projected:
        given = losses.ssl_align(
            visuals,
            audios,
            **options,
            projected_visuals=[projections["project_visual"](v.mean((2, 3))) for v in visuals],
            projected_audios=[projections["project_audio"](a) for a in audios],
        )
        assert float(given) == pytest.approx(float(value), rel=1e-12)


@pytest.mark.parametrize(
    "pooling, pool", [(ops.Max(), max), (ops.SoftThreshold(0.5, 0.1), lambda c: soft_mean(c, 0.5, 0.1))]
)
def test_ssl_align_takes_any_pooling(pooling, pool, backend):
    visual, audio = features(4, 4)
    value = losses.ssl_align([visual], [audio], pooling=pooling, backend=backend)
    assert float(value) == pytest.approx(loop_ssl_align([visual], [audio], range(4), pool=pool), rel=1e-10)
    mean_only = losses.ssl_align([visual], [audio], pooling=pooling, mean_weight=1.0, backend=backend)
    assert float(mean_only) == pytest.approx(loop_ssl_align([visual], [audio], range(4)), rel=1e-10)


def test_ssl_tie_equals_loops(layout, backend):
    rows, columns, positives, tensor = layout
    visual, audio = features(rows, columns, seed=1)
    transformed, _ = features(rows, columns, seed=2)
    for options in ({}, {"weight": 3.0, "hard_negative": False, "tau": 0.1}, {"distance": "l1"}):
        value = losses.ssl_tie(visual, audio, transformed, flip, positives=tensor, backend=backend, **options)
        expected = loop_ssl_tie(visual, audio, transformed, order(positives, rows), **options)
        assert float(value) == pytest.approx(expected, rel=1e-10)


def test_ssl_tie_of_equivariant_features_is_lvs():
    visual, audio = features(4, 4)
    value, terms = losses.ssl_tie(visual, audio, flip(visual), flip, return_terms=True)
    assert terms["equivariance"] == 0
    assert float(value) == pytest.approx(float(losses.lvs(visual, audio)), rel=1e-12)


def test_ssl_tie_detach_map_stops_one_side_only():
    visual, audio = features(4, 4)
    transformed = features(4, 4, seed=5)[0].requires_grad_()
    visual.requires_grad_()

    def gradients(weight, detach):
        loss = losses.ssl_tie(visual, audio, transformed, flip, weight=weight, detach_map=detach)
        return torch.autograd.grad(loss, (visual, transformed))

    contrast, both, detached = gradients(0.0, False), gradients(1.0, False), gradients(1.0, True)
    assert torch.equal(detached[0], contrast[0]) and not torch.allclose(both[0], contrast[0])
    torch.testing.assert_close(detached[1], both[1])


@pytest.mark.grid
@pytest.mark.parametrize("combine", ["mean", "sum", "logsumexp"])
@pytest.mark.parametrize("options", [{}, {"margin": -0.2, "mean_weight": 0.3, "tau": 0.2}, {"symmetric": True}])
def test_hard_positives_equal_loops(combine, options, layout, backend):
    """Maps of the similar images may have another size."""
    rows, columns, positives, tensor = layout
    visual, audio = features(rows, columns, seed=1)
    similar = features(rows, rows, seed=2, size=(3, 2))
    options = options | {"combine": combine}
    value = losses.hard_positives(visual, audio, *similar, positives=tensor, backend=backend, **options)
    expected = loop_hard_positives(visual, audio, *similar, order(positives, rows), **options)
    assert float(value) == pytest.approx(expected, rel=1e-10)


def test_hard_positives_that_are_the_pair_itself_are_margin_nce():
    visual, audio = features(5, 5)
    value = losses.hard_positives(visual, audio, visual, audio, margin=-0.2)
    torch.testing.assert_close(value, losses.margin_nce(visual, audio), rtol=1e-12, atol=0)


def test_sum_of_hard_positives_rewards_a_collapsed_net():
    """All cosines 1: four of them against one, log(1 + 3 exp(-3 / tau)), where their mean leaves log 4."""
    visual, audio = torch.ones(4, 3, 2, 2, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    one, tau = (visual, audio, visual, audio), 0.5
    values = {c: float(losses.hard_positives(*one, combine=c, tau=tau)) for c in ("mean", "sum", "logsumexp")}
    expected = {"mean": math.log(4), "sum": math.log1p(3 * math.exp(-3 / tau)), "logsumexp": math.log(7 / 4)}
    assert values == pytest.approx(expected, rel=1e-9)


def simsiam(seed=4):
    weights = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, CHANNELS, CHANNELS)))
    return lambda x: (x @ weights[0], torch.tanh(x @ weights[0]) @ weights[1])


def test_sspl_equals_loops(backend):
    (first, audio), (second, _) = features(4, 4, seed=1), features(4, 4, seed=2, size=(3, 2))
    pooled = losses.attention_pooled(first, audio, backend=backend)
    torch.testing.assert_close(pooled, loop_attention_pooled(first, audio), rtol=1e-10, atol=1e-12)
    value = losses.sspl([first, second], audio, simsiam(), backend=backend)
    assert float(value) == pytest.approx(loop_sspl([first, second], audio, simsiam()), rel=1e-10)


def test_sspl_stops_the_gradient_of_projections():
    """With an identity as predictor, each view is pulled to the other's projection, which stands still: half of the
    gradient of the plain cosine reaches it by its own prediction, and nothing by its projection."""
    (first, audio), (second, _) = features(4, 4, seed=1), features(4, 4, seed=2)
    first.requires_grad_()
    (got,) = torch.autograd.grad(losses.sspl([first, second], audio, lambda x: (x, x)), first)
    target = losses.attention_pooled(second, audio)
    cosines = torch.nn.functional.cosine_similarity(losses.attention_pooled(first, audio), target)
    (whole,) = torch.autograd.grad(-cosines.mean(), first)
    torch.testing.assert_close(got, whole / 2)
    (nothing,) = torch.autograd.grad(
        losses.sspl([first, second], audio, lambda x: (x, torch.ones_like(x) + 0 * x)), first
    )
    assert not nothing.any()


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


def gradcheck_cases():
    def pairs(loss, **options):
        return lambda *x: loss(*x, **options), features(3, 4, seed=6)

    positives = {"positives": torch.tensor([2, 0, 3])}
    weights = torch.from_numpy(np.random.default_rng(4).standard_normal((2, 3, CHANNELS)))

    def align(*x):
        project = [lambda t: t @ weights[0].t(), lambda t: t @ weights[1].t()]
        return losses.ssl_align(x[:2], x[2:], *project, symmetric=True, **positives)

    def slavc(**options):
        return lambda *x: losses.slavc(*x, tau=0.3, **options, **positives), slavc_features(3, 4)

    (v, a), (w, b) = features(3, 4, seed=1), features(3, 4, seed=2)

    def hard_positives(*x):
        return losses.hard_positives(*x, beta=0.2, tau=0.3, combine="logsumexp", **positives)

    c = features(3, 3, seed=5)[1]
    return {
        "hard_positives": (hard_positives, (v, a, w, c)),
        "attention_pooled": (losses.attention_pooled, (v, c)),
        "ssl_align": (align, (v, w, a, b)),
        "margin_nce": pairs(losses.margin_nce, symmetric=True, mean_weight=0.2, beta=0.2, **positives),
        "lvs": pairs(losses.lvs, beta=0.2, tau=0.3, margin=-0.2, **positives),
        "lvs-released": pairs(losses.lvs, beta=0.2, tau=0.5, diagonal="released", **positives),
        "ez_vsl": pairs(losses.ez_vsl, margin=-0.1, tau=0.2, **positives),
        "fnac": pairs(losses.fnac, tau=0.3, **positives),
        "slavc": slavc(momentum=slavc_features(3, 4, seed=8), negatives="both"),
        "slavc-max": slavc(momentum=None, reduce="max"),
        "ssl_tie": (lambda *x: losses.ssl_tie(*x, flip, beta=0.2, tau=0.3, **positives), (v, a, w)),
    }


@pytest.mark.parametrize("name", gradcheck_cases())
def test_gradcheck(name):
    loss, inputs = gradcheck_cases()[name]
    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in inputs], eps=1e-6, atol=1e-6, rtol=1e-5)


def test_slavc_gradient_reaches_the_online_side_of_each_term():
    online, copies = slavc_features(4, 4), slavc_features(4, 4, seed=7)
    [x.requires_grad_() for x in online]
    total = torch.autograd.grad(losses.slavc(*online, momentum=copies), online)
    image = torch.autograd.grad(losses.slavc(*online[:2], *copies[2:], momentum=None), online[:2])
    sound = torch.autograd.grad(losses.slavc(*copies[:2], *online[2:], momentum=None), online[2:])
    for got, expected in zip(total, (*image, *sound)):
        torch.testing.assert_close(got, expected)


# ---------------------------------------------------------------------------------------------------------------------
# Identities


ROW_LOSSES = {
    "ssl_align": lambda v, a, **options: losses.ssl_align([v], [a], **options),
    "margin_nce": losses.margin_nce,
    "lvs": losses.lvs,
    "lvs-released": lambda v, a, **options: losses.lvs(v, a, diagonal="released", tau=0.5, **options),
    "slavc": lambda v, a, **options: losses.slavc(v, v.flip(1), a, a.flip(1), momentum=None, **options),
    "hard_positives": lambda v, a, **options: losses.hard_positives(
        v, a, v.flip(1), v.detach().mean((2, 3)), beta=0.2, **options
    ),
}
SQUARE_LOSSES = {
    **ROW_LOSSES,
    "ez_vsl": losses.ez_vsl,
    "fnac": lambda v, a, **options: losses.fnac(v, a, weights=(1.0, 1.0, 1.0), **options),
    "ssl_tie": lambda v, a, **options: losses.ssl_tie(v, a, v.roll(1, 2), flip, **options),
}


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_blocks_of_rows_average_to_the_square_problem(name):
    """Each row against all gathered audio: what data-parallel training computes on its shard."""
    loss, (visual, audio) = ROW_LOSSES[name], features(6, 6)
    blocks = [loss(visual[k : k + 2], audio, positives=torch.arange(k, k + 2)) for k in (0, 2, 4)]
    torch.testing.assert_close(sum(blocks) / 3, loss(visual, audio), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SQUARE_LOSSES)
def test_positives_undo_a_shuffle_of_the_audio(name):
    loss, (visual, audio) = SQUARE_LOSSES[name], features(5, 5)
    shuffle = torch.tensor([3, 1, 4, 0, 2])
    shuffled = loss(visual, audio[shuffle], positives=torch.argsort(shuffle))
    torch.testing.assert_close(shuffled, loss(visual, audio), rtol=1e-12, atol=0)


def test_symmetric_losses_do_not_see_which_side_is_called_visual():
    """On maps of one cell the two modalities can change places."""
    _, x = features(1, 5, seed=1)
    _, y = features(1, 5, seed=2)
    image, sound = x[:, :, None, None], y[:, :, None, None]
    for loss in (
        lambda *p: losses.margin_nce(*p, symmetric=True),
        losses.ez_vsl,
        lambda v, a: losses.ssl_align([v], [a], symmetric=True),
    ):
        torch.testing.assert_close(loss(image, y), loss(sound, x), rtol=1e-12, atol=0)
    halves = (losses.margin_nce(image, y) + losses.margin_nce(sound, x)) / 2
    torch.testing.assert_close(losses.margin_nce(image, y, symmetric=True), halves, rtol=1e-12, atol=0)


@pytest.mark.parametrize("margin", [-0.2, 0.0, 0.3])
def test_margin_in_closed_form(margin):
    """Orthogonal one-cell features: cosine 1 on the diagonal, 0 elsewhere."""
    audio = torch.eye(4, dtype=torch.float64)
    visual = 3 * audio[:, :, None, None]
    direction = math.log1p(3 * math.exp((margin - 1) / 0.2))
    assert float(losses.margin_nce(visual, audio, margin=margin, tau=0.2)) == pytest.approx(direction, rel=1e-12)
    assert float(losses.ez_vsl(visual, audio, margin=margin, tau=0.2)) == pytest.approx(2 * direction, rel=1e-12)
    hard = math.log1p(3 * math.exp((margin - 1) / 0.2) + math.exp(margin / 0.2))  # background = the only cell: cosine 1
    assert float(losses.lvs(visual, audio, margin=margin, tau=0.2)) == pytest.approx(hard, rel=1e-12)


def test_margin_zero_is_the_plain_loss():
    visual, audio = features(4, 4)
    assert torch.equal(losses.ez_vsl(visual, audio, margin=0.0), losses.ez_vsl(visual, audio))
    plain = losses.lvs(visual, audio, hard_negative=False, margin=0.0)
    assert torch.equal(losses.margin_nce(visual, audio, margin=0.0), plain)


# ---------------------------------------------------------------------------------------------------------------------
# Where the published programs, or float32, go wrong


def test_lvs_with_negative_cosines_on_the_diagonal():
    """The published mask multiplies a diagonal score of -.05 by -99: a logit of +70.7 among the negatives."""
    audio = torch.eye(4, dtype=torch.float64)
    towards = torch.full((4, 4), 0.0, dtype=torch.float64)
    towards.fill_diagonal_(-0.05)
    rest = torch.nn.functional.one_hot(torch.arange(4)).to(torch.float64) * math.sqrt(1 - 0.05**2)
    visual = torch.cat([towards, rest], 1)[:, :, None, None].expand(-1, -1, 7, 7)  # the rest in channels without sound
    audio = torch.cat([audio, torch.zeros(4, 4, dtype=torch.float64)], 1)
    scores = ops.pooled_similarity(visual, audio, ops.SoftThreshold())
    own = scores.diagonal()[:, None]
    published = torch.cat([own, scores * (1 - 100 * torch.eye(4)), own], 1) / 0.07
    exploded = torch.nn.functional.cross_entropy(published, torch.zeros(4, dtype=torch.long))
    assert float(exploded) == pytest.approx(71.4, abs=0.1)
    assert float(losses.lvs(visual, audio, diagonal="released")) == pytest.approx(float(exploded), rel=1e-10)
    positive, negative = math.exp(-0.05 / 0.07), 1.0
    expected = -math.log(positive / (positive + 3 * negative + positive))
    assert float(losses.lvs(visual, audio)) == pytest.approx(expected, rel=1e-10)


def test_lvs_of_a_collapsed_net_in_closed_form():
    """All cosines .001, as of a net that starts: eight pairs and the background are alike, log 9; the positive that the
    released program leaves among the negatives adds exp(-.1 / tau)."""
    audio = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(8, 2)
    visual = torch.tensor([0.001, math.sqrt(1 - 1e-6)], dtype=torch.float64)[None, :, None, None].expand(8, 2, 3, 3)
    assert float(losses.lvs(visual, audio)) == pytest.approx(math.log(9), rel=1e-9)
    released = float(losses.lvs(visual, audio, diagonal="released"))
    assert released == pytest.approx(math.log(9 + math.exp(-0.1 / 0.07)), rel=1e-9) and released > 2.22


@pytest.mark.parametrize("options", [{}, {"tri_map": False, "epsilon": 0.3}, {"beta": 0.001}])
def test_lvs_is_finite_where_a_whole_map_is_foreground(options):
    """float32 1 - sigmoid(20) is 0, and the published background score 0 / 0. Here it tends to the smallest cosine."""
    audio = torch.eye(3, 4)
    visual = audio[:, :, None, None].repeat(1, 1, 2, 2)
    visual[:, 3, 0, 0] = 0.3  # one cell a little off: cosine 1 / sqrt(1.09) = .958
    visual.requires_grad_()
    loss = losses.lvs(visual, audio, **options)
    (gradient,) = torch.autograd.grad(loss, visual)
    if "beta" in options:  # too steep for a loop in floating point: the background is the cell with the lowest cosine
        low = 1 / math.sqrt(1.09)
        pooled = (3 + low) / 4
        expected = math.log1p(math.exp((low - pooled) / 0.07) + 2 * math.exp(-pooled / 0.07))
    else:
        expected = loop_lvs(visual.detach().double(), audio.double(), range(3), **options)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_small_losses_keep_their_digits_in_float32(backend):
    """One minus nearly one: a loss of 3 exp(-33) must not come out as 0 or as rounding noise."""
    audio = torch.eye(4)
    visual = audio[:, :, None, None].repeat(1, 1, 2, 2).requires_grad_()
    loss = losses.ez_vsl(visual, audio, backend=backend)
    assert float(loss.detach()) == pytest.approx(2 * 3 * math.exp(-1 / 0.03), rel=2e-5)
    assert torch.equal(losses.fnac(visual, audio, weights=(0.0, 0.0, 0.0), backend=backend), loss)


@pytest.mark.parametrize("name", SQUARE_LOSSES)
def test_zero_vectors_give_finite_losses_and_no_gradient(name, backend):
    visual, audio = features(4, 4, dtype=torch.float32)
    visual[0], audio[1], visual[2, :, 0, 0] = 0, 0, 0
    inputs = visual.requires_grad_(), audio.requires_grad_()
    loss = SQUARE_LOSSES[name](*inputs, backend=backend)
    gradients = torch.autograd.grad(loss, inputs)
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients)
    assert not gradients[0][0].any() and not gradients[1][1].any() and not gradients[0][2, :, 0, 0].any()


@pytest.mark.parametrize("name", SQUARE_LOSSES)
def test_autocast_keeps_float32_losses(name):
    visual, audio = features(6, 6, dtype=torch.float32)
    exact = SQUARE_LOSSES[name](visual, audio)
    with torch.autocast("cpu", torch.bfloat16):
        half = SQUARE_LOSSES[name](visual.bfloat16(), audio.bfloat16())
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(exact), rel=0.1, abs=0.1)


def test_alignment_scores_are_not_rounded_under_autocast():
    visual, audio = features(6, 6, dtype=torch.float32)
    projected = {"projected_visuals": [visual.mean((2, 3))], "projected_audios": [audio]}
    exact = losses.ssl_align([visual], [audio], **projected, return_terms=True)[1]["alignment"]
    with torch.autocast("cpu", torch.bfloat16):
        cast = losses.ssl_align([visual], [audio], **projected, return_terms=True)[1]["alignment"]
    assert torch.equal(cast, exact)


@pytest.mark.grid
@pytest.mark.parametrize("name", SQUARE_LOSSES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-4), (torch.bfloat16, 0.1), (torch.float16, 0.05)])
def test_lower_precision_agrees_with_float64(name, dtype, tolerance, backend):
    visual, audio = features(6, 6, dtype=dtype)
    value = SQUARE_LOSSES[name](visual, audio, backend=backend)
    assert value.dtype == torch.float32
    exact = SQUARE_LOSSES[name](visual.double(), audio.double(), backend="reference")
    assert float(value) == pytest.approx(float(exact), rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", SQUARE_LOSSES)
def test_compiles_without_a_graph_break(name):
    visual, audio = features(4, 4)
    visual.requires_grad_()
    loss = SQUARE_LOSSES[name]
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(visual, audio)
    (gradient,) = torch.autograd.grad(value, visual)
    expected = loss(visual, audio)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, visual)[0])


# ---------------------------------------------------------------------------------------------------------------------
# Modules and errors


def test_modules_equal_functions():
    visual, audio = features(4, 4)
    copies = tuple(x.flip(0) for x in (visual, visual, audio, audio))
    assert losses.LOSSES.keys() == {
        *("ssl_align", "margin_nce", "lvs", "ez_vsl", "slavc", "fnac", "ssl_tie", "hard_positives", "sspl"),
        "dense_av",
    }
    pairs = [
        (losses.EZVSL(tau=0.1)(visual, audio), losses.ez_vsl(visual, audio, tau=0.1)),
        (losses.EZVSL(tau=0.1)(visual, audio, margin=-0.2), losses.ez_vsl(visual, audio, tau=0.1, margin=-0.2)),
        (losses.LVS(tri_map=False)(visual, audio), losses.lvs(visual, audio, tri_map=False)),
        (losses.MarginNCE(symmetric=True)(visual, audio), losses.margin_nce(visual, audio, symmetric=True)),
        (losses.FNAC(weights=(1, 2, 3))(visual, audio), losses.fnac(visual, audio, weights=(1, 2, 3))),
        (
            losses.SLAVC(reduce="max")(visual, visual, audio, audio, momentum=copies),
            losses.slavc(visual, visual, audio, audio, momentum=copies, reduce="max"),
        ),
        (
            losses.SSLTIE(weight=2.0, tau=0.1)(visual, audio, flip(visual), flip),
            losses.ssl_tie(visual, audio, flip(visual), flip, weight=2.0, tau=0.1),
        ),
        (
            losses.HardPositives(combine="sum")(visual, audio, flip(visual), audio),
            losses.hard_positives(visual, audio, flip(visual), audio, combine="sum"),
        ),
        (
            losses.SSPL()([visual, flip(visual)], audio, simsiam()),
            losses.sspl([visual, flip(visual)], audio, simsiam()),
        ),
    ]
    for module, function in pairs:
        assert torch.equal(module, function)
    project = torch.nn.Linear(CHANNELS, 3, dtype=torch.float64), torch.nn.Linear(CHANNELS, 3, dtype=torch.float64)
    module = losses.SSLAlign(*project, tau=0.2)
    assert len(list(module.parameters())) == 4  # projections are trained with the rest
    assert torch.equal(module([visual], [audio]), losses.ssl_align([visual], [audio], *project, tau=0.2))


def test_modules_say_their_options():
    assert repr(losses.EZVSL(margin=-0.1)) == "EZVSL(tau=0.03, margin=-0.1, mean_weight=0.0, backend='auto')"
    assert "epsilon_negative=0.4" in repr(losses.SSLTIE()) and "pooling=Mean(mask=None)" in repr(losses.SSLAlign())
    assert "max over cells" in losses.EZVSL.__doc__


V, A = features(4, 4)
GRADIENT = A.clone().requires_grad_()
VALUE_ERRORS = {
    "tau": (lambda: losses.ez_vsl(V, A, tau=0), "tau: expected > 0, got 0"),
    "tau of a module": (lambda: losses.SSLTIE(tau=-1.0), "tau: expected > 0, got -1.0"),
    "tau is nan": (lambda: losses.slavc(V, V, A, A, momentum=None, tau=math.nan), "tau: expected > 0, got nan"),
    "beta": (lambda: losses.lvs(V, A, beta=0.0), "beta: expected > 0, got 0.0"),
    "empty": (lambda: losses.margin_nce(V[:0], A[:0]), "expected at least one image and one audio, got 0 and 0"),
    "empty fnac": (lambda: losses.fnac(V[:0], A[:0]), "expected at least one image and one audio, got 0 and 0"),
    "one pair": (lambda: losses.ez_vsl(V[:1], A[:1]), "audio: expected at least 2, a positive and a negative, got 1"),
    "one image": (lambda: losses.ez_vsl(V[:1], A, positives=torch.tensor([0])), "visual: expected at least 2 images"),
    "rectangular": (lambda: losses.ez_vsl(V[:3], A), "positives: required where there are 3 images and 4 audios"),
    "rectangular lvs": (lambda: losses.lvs(V[:3], A), "positives: required where there are 3 images and 4 audios"),
    "positives too high": (
        lambda: losses.margin_nce(V[:2], A, positives=torch.tensor([0, 4])),
        r"expected columns in \[0, 4\), got values in \[0, 4\]",
    ),
    "positives too low": (lambda: losses.fnac(V[:2], A, positives=torch.tensor([-1, 1])), r"got values in \[-1, 1\]"),
    "positives shape": (
        lambda: losses.lvs(V, A, positives=torch.tensor([0, 1])),
        r"expected \(4,\) int64 or .*, got \(2,\)",
    ),
    "positives dtype": (lambda: losses.ez_vsl(V, A, positives=torch.arange(4.0)), r"got \(4,\) torch.float32"),
    "channels": (lambda: losses.ez_vsl(V, A[:, :3]), r"audio: expected .* 5\)"),
    "dimensions": (lambda: losses.lvs(V[0], A), r"visual: expected \(N, C, h, w\)"),
    "mean weight": (lambda: losses.ez_vsl(V, A, mean_weight=1.5), r"mean_weight: expected within \[0, 1\], got 1.5"),
    "reduce": (lambda: losses.slavc(V, V, A, A, momentum=None, reduce="mean"), "reduce: expected one of .*'mean'"),
    "negatives": (lambda: losses.slavc(V, V, A, A, momentum=None, negatives="all"), "negatives: expected .*'all'"),
    "diagonal": (lambda: losses.lvs(V, A, diagonal="kept"), "diagonal: expected one of .*'released'.*, got 'kept'"),
    "momentum count": (lambda: losses.slavc(V, V, A, A, momentum=(V, A)), "momentum: expected visual_loc, .* got 2"),
    "momentum shape": (
        lambda: losses.slavc(V, V, A, A, momentum=(V, V, A, A[:3])),
        r"momentum audio_avc: expected \(4, 5\), got \(3, 5\)",
    ),
    "momentum gradient": (
        lambda: losses.slavc(V, V, A, A, momentum=(V, V, GRADIENT, A)),
        "momentum audio_loc: expected no gradient",
    ),
    "views differ": (lambda: losses.ssl_align([V, V[:3]], [A]), "visuals: expected views of one batch size"),
    "one projection": (lambda: losses.ssl_align([V], [A], torch.nn.Identity()), "expected both or neither, got one"),
    "two projections": (
        lambda: losses.ssl_align([V], [A], abs, abs, projected_visuals=[A], projected_audios=[A]),
        "got both",
    ),
    "projected views": (
        lambda: losses.ssl_align([V, V], [A], projected_visuals=[A], projected_audios=[A]),
        "projected_visuals: expected 2, one per view, got 1",
    ),
    "transform": (
        lambda: losses.ssl_tie(V, A, V, lambda maps: maps[:, 0]),
        r"transform: expected maps \(4, 1, 2, 3\) .* got \(4, 2, 3\)",
    ),
    "combine": (lambda: losses.hard_positives(V, A, V, A, combine="max"), "combine: expected one of .*, got 'max'"),
    "similar images": (
        lambda: losses.hard_positives(V, A, V[:3], A),
        r"similar_visual: expected \(4, C, h, w\), one of each image, got \(3, 5, 2, 3\)",
    ),
    "similar sounds": (lambda: losses.hard_positives(V, A, V, A[:3]), r"similar_audio: expected \(4, C\), .*\(3, 5\)"),
    "hard positives alone": (
        lambda: losses.hard_positives(V[:1], A[:1], V[:1], A[:1]),
        "audio: expected at least 2, a positive and a negative, got 1",
    ),
    "views of sspl": (lambda: losses.sspl([V], A, simsiam()), "visuals: expected two views of each image, got 1"),
    "pairs of sspl": (lambda: losses.sspl([V, V], A[:3], simsiam()), r"audio: expected \(4, 5\)"),
    "backend": (lambda: losses.ez_vsl(V, A, backend="cuda"), "backend: expected"),
    "distance": (lambda: losses.ssl_tie(V, A, V, flip, distance="mae"), "distance: expected one of"),
}
TYPE_ERRORS = {
    "positives in a list": (
        lambda: losses.ez_vsl(V, A, positives=[0, 1, 2, 3]),
        "positives: expected a tensor .* got list",
    ),
    "dtypes": (lambda: losses.lvs(V, A.float()), "audio: expected torch.float64"),
    "no list of views": (lambda: losses.ssl_align(V, [A]), "visuals: expected a list .* got a tensor"),
    "no view": (lambda: losses.ssl_align([V], []), "audios: expected a list of at least one view, got none"),
    "lvs option": (lambda: losses.ssl_tie(V, A, V, flip, epsilon2=0.4), "expected options of lvs, .* epsilon2"),
    "module option": (lambda: losses.EZVSL(temperature=1.0), "ez_vsl: expected options among tau, .* temperature"),
}


@pytest.mark.parametrize("name", [*VALUE_ERRORS, *TYPE_ERRORS])
def test_bad_input_is_named(name):
    call, message = (VALUE_ERRORS | TYPE_ERRORS)[name]
    with pytest.raises(TypeError if name in TYPE_ERRORS else ValueError, match=message):
        call()


def test_lvs_of_one_pair_has_its_own_background_as_negative():
    visual, audio = features(1, 1)
    assert float(losses.lvs(visual, audio)) == pytest.approx(loop_lvs(visual, audio, [0]), rel=1e-10)
