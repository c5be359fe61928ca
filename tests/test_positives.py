"""Several positives of an image, a bool matrix: losses against MIL-NCE's equation in Python floats, and limits."""

import math

import numpy as np
import pytest
import torch

from loss_loops import CHANNELS, cosine, features, flip, loop_scores, mean, slavc_features, slavc_log_scores, soft_mean
from ssl_fast import losses, ops

# column 0 has only positives, column 4 none
POSITIVES = [[1, 1, 0, 0, 0], [1, 0, 0, 1, 0], [1, 1, 1, 1, 0], [1, 0, 1, 0, 0]]
MATRIX = torch.tensor(POSITIVES, dtype=torch.bool)
ROWS, COLUMNS = MATRIX.shape
PROJECT = torch.from_numpy(np.random.default_rng(9).standard_normal((2, 4, CHANNELS)))


def lines(scores, positives, tau, margin):
    """Mean over rows with a positive of -log(sum over positives / sum over all), as in the equation."""
    found = []
    for row, chosen in zip(scores, positives):
        if any(chosen):
            good = sum(math.exp((s - margin) / tau) for s, y in zip(row, chosen) if y)
            bad = sum(math.exp(s / tau) for s, y in zip(row, chosen) if not y)
            found.append(-math.log(good / (good + bad)))
    return mean(found)


def columns(scores, positives, tau, margin):
    return lines(zip(*scores), zip(*positives), tau, margin)


def both(scores, positives, tau=1.0, margin=0.0):
    return lines(scores, positives, tau, margin) + columns(scores, positives, tau, margin)


def of_align(visuals, audios, positives, tau):
    total = 0
    for visual in visuals:
        for audio in audios:
            pooled = (visual.mean((2, 3)) @ PROJECT[0].t()).tolist()
            aligned = [[cosine(x, y) for y in (audio @ PROJECT[1].t()).tolist()] for x in pooled]
            total += both(loop_scores(visual, audio, mean), positives, tau) + both(aligned, positives, tau)
    return total / 2


def of_slavc(visual_loc, visual_avc, audio_loc, audio_avc, positives, tau):
    return both(slavc_log_scores(visual_loc, visual_avc, audio_loc, audio_avc, tau), positives) / 2


def token_scores(visual, audio, normalize):
    """(N, M) of (N, M, T) maxima over cells and heads, of one token or two."""
    cells = visual.flatten(2)
    if normalize:
        cells, audio = cells / cells.norm(dim=1, keepdim=True), audio / audio.norm(dim=1, keepdim=True)
    return torch.einsum("ncp,mct->nmtp", cells, audio)


def late(visual, audio, positives, tau):
    alpha = token_scores(visual, audio, True)
    by_cell, by_token = alpha.amax(2).mean(-1).tolist(), alpha.amax(3).mean(-1).tolist()
    return (lines(by_cell, positives, tau, 0) + columns(by_token, positives, tau, 0)) / 2


def inputs(seed=1):
    visual, audio = features(COLUMNS, COLUMNS, seed)
    return visual[:ROWS], audio


def cases():
    (v, a), (w, b) = inputs(1), inputs(2)
    project = [lambda x, p=p: x @ p.t() for p in PROJECT]
    clips = torch.stack([a, b], 2)
    four = [x[:ROWS] if i < 2 else x for i, x in enumerate(slavc_features(COLUMNS, COLUMNS))]
    slow = [x.flip(1) for x in four]
    pooled = loop_scores(v, a, lambda c: soft_mean(c, 0.65, 0.2))
    warm = loop_scores(v, a, max, 0.4)

    def slavc(*x, **more):
        return losses.slavc(*x, momentum=slow, tau=0.3, negatives="both", **more)

    def align(*x, **more):
        return losses.ssl_align(x[:2], x[2:], *project, tau=0.2, symmetric=True, **more)

    def margin_nce(*x, **more):
        return losses.margin_nce(*x, symmetric=True, beta=0.2, tau=0.2, **more)

    def lvs(*x, **more):
        return losses.lvs(*x, beta=0.2, tau=0.2, margin=-0.3, hard_negative=False, **more)

    def ez_vsl(*x, **more):
        return losses.ez_vsl(*x, tau=0.2, margin=0.1, mean_weight=0.4, **more)

    return {
        "ez_vsl": (ez_vsl, (v, a), both(warm, POSITIVES, 0.2, 0.1)),
        "margin_nce": (margin_nce, (v, a), both(pooled, POSITIVES, 0.2, -0.2) / 2),
        "lvs": (lvs, (v, a), lines(pooled, POSITIVES, 0.2, -0.3)),
        "ssl_align": (align, (v, w, a, b), of_align([v, w], [a, b], POSITIVES, 0.2)),
        "slavc": (
            slavc,
            four,
            of_slavc(*four[:2], *slow[2:], POSITIVES, 0.3) + of_slavc(*slow[:2], *four[2:], POSITIVES, 0.3),
        ),
        "fnac": (
            lambda *x, **more: losses.fnac(*x, weights=(0.0, 0.0, 0.0), tau=0.2, **more),
            (v, a),
            both(loop_scores(v, a, max), POSITIVES, 0.2),
        ),
        "dense_av": (
            lambda *x, **more: losses.dense_av(*x, scale=2.0, heads=1, **more),
            (v, clips),
            both((2 * token_scores(v, clips, False).amax(3).mean(2)).tolist(), POSITIVES) / 2,
        ),
        "late_interaction": (
            lambda *x, **more: losses.late_interaction(*x, tau=0.2, **more),
            (v, clips),
            late(v, clips, POSITIVES, 0.2),
        ),
    }


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_matrix_equals_the_equation(name, backend):
    loss, x, expected = CASES[name]
    assert float(loss(*x, positives=MATRIX, backend=backend)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name):
    loss, x, _ = CASES[name]
    loss_of = lambda *x: loss(*x, positives=MATRIX)  # noqa: E731
    assert torch.autograd.gradcheck(loss_of, [t.detach().requires_grad_() for t in x], eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["ez_vsl"])
def test_compiles_without_a_graph_break(name):
    loss, x, expected = CASES[name]
    x = [t.detach().requires_grad_() for t in x]
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(*x, positives=MATRIX)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    got = torch.autograd.grad(value, x)
    for one, other in zip(got, torch.autograd.grad(loss(*x, positives=MATRIX), x)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("tau", [0.03, 0.07, 0.3])
def test_one_positive_in_each_row_is_the_index_form_bit_for_bit(tau):
    order = torch.tensor([3, 0, 5, 1])
    matrix = torch.nn.functional.one_hot(order, 6).bool()
    for seed in range(20):
        visual, audio = features(6, 6, seed, dtype=torch.float32)
        for loss in (losses.margin_nce, losses.ez_vsl):
            plain = {"tau": tau, "backend": "reference"}
            square = loss(visual, audio, positives=torch.eye(6, dtype=torch.bool), **plain)
            assert torch.equal(square, loss(visual, audio, **plain))
            torch.testing.assert_close(loss(visual, audio, tau=tau), square, rtol=1e-4, atol=1e-9)
        rows = [losses.margin_nce(visual[:4], audio, positives=y, **plain) for y in (order, matrix)]
        assert torch.equal(*rows)
        # columns are summed in another order
        both = [losses.ez_vsl(visual[:4], audio, positives=y, **plain) for y in (order, matrix)]
        torch.testing.assert_close(*both, rtol=1e-6, atol=0)


def test_images_of_one_sound_are_negatives_of_each_other_as_indices_and_positives_as_a_matrix():
    """All cosines 1, three images of two sounds: columns of (images 0 and 1), (2)."""
    visual, audio = torch.ones(3, 2, 1, 1, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    order = torch.tensor([0, 0, 1])
    rows = math.log(2)
    value = losses.ez_vsl(visual, audio, positives=order)
    assert float(value) == pytest.approx(rows + math.log(3))
    value = losses.ez_vsl(visual, audio, positives=torch.nn.functional.one_hot(order, 2).bool())
    assert float(value) == pytest.approx(rows + (math.log(3 / 2) + math.log(3)) / 2)


def test_small_losses_keep_their_digits_in_float32(backend):
    """Two classes of two: cosines 1 within, 0 between. L = 2 log(1 + exp(-1 / tau))."""
    audio = torch.eye(2).repeat(2, 1)
    visual = audio[:, :, None, None].repeat(1, 1, 2, 2)
    same = (audio @ audio.t()).bool()
    value = losses.ez_vsl(visual, audio, positives=same, backend=backend)
    assert float(value) == pytest.approx(2 * math.exp(-1 / 0.03), rel=2e-5)


def test_a_row_of_positives_alone_has_neither_loss_nor_gradient(backend):
    positives = [row[:4] for row in POSITIVES]
    matrix = torch.tensor(positives, dtype=torch.bool)
    visual, audio = features(4, 4)
    x = visual.requires_grad_(), audio.requires_grad_()
    value = losses.margin_nce(*x, tau=0.2, positives=matrix, backend=backend)
    assert value.item() == pytest.approx(
        lines(loop_scores(*x, lambda c: soft_mean(c, 0.65, 0.03)), positives, 0.2, -0.2), rel=1e-10
    )
    gradient, _ = torch.autograd.grad(value, x)
    assert gradient.isfinite().all() and [bool(g.any()) for g in gradient] == [True, True, False, True]


def test_a_batch_of_one_class_has_neither_loss_nor_gradient():
    visual, audio = inputs()
    x = visual.requires_grad_(), audio.requires_grad_()
    value = losses.ez_vsl(*x, positives=torch.ones_like(MATRIX))
    assert value == 0 and not any(gradient.any() for gradient in torch.autograd.grad(value, x))


V, A = features(4, 4)
EYE = torch.eye(4, dtype=torch.bool)
ERRORS = {
    "shape": (
        lambda: losses.ez_vsl(V, A, positives=EYE[:, :3]),
        r"expected \(4,\) int64 or \(4, 4\) bool, got \(4, 3\)",
    ),
    "vector": (lambda: losses.ez_vsl(V, A, positives=EYE[0]), r"or \(4, 4\) bool, got \(4,\) torch.bool"),
    "not bool": (lambda: losses.ez_vsl(V, A, positives=EYE.long()), r"or \(4, 4\) bool, got \(4, 4\) torch.int64"),
    "row": (
        lambda: losses.margin_nce(V, A, positives=EYE & (torch.arange(4) != 2)),
        "positives: expected at least one in every row, none in row 2",
    ),
    "ssl_tie": (lambda: losses.ssl_tie(V, A, V, flip, positives=EYE), r"expected \(N,\) int64 of which ssl_tie .* got"),
    "hard_positives": (
        lambda: losses.hard_positives(V, A, V, A, positives=EYE),
        r"positives: expected \(N,\) int64 beside the similar samples, .* got \(4, 4\) torch.bool",
    ),
    "fnac": (lambda: losses.fnac(V, A, positives=EYE), r"positives: expected \(N,\) int64 with L1 terms"),
    "fnac's terms": (
        lambda: losses.fnac(V, A, positives=EYE, weights=(0, 0, 0), return_terms=True),
        r"positives: expected \(N,\) int64 with L1 terms",
    ),
    "lvs": (lambda: losses.lvs(V, A, positives=EYE), r"positives: expected \(N,\) int64 with hard_negative"),
    "released": (
        lambda: losses.lvs(V, A, positives=EYE, hard_negative=False, diagonal="released"),
        r"positives: expected \(N,\) int64 with diagonal='released'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_positives_are_named(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_modules_take_a_matrix():
    visual, audio = inputs()
    value = losses.EZVSL(tau=0.1)(visual, audio, positives=MATRIX)
    assert torch.equal(value, losses.ez_vsl(visual, audio, tau=0.1, positives=MATRIX))
    pooled = ops.pooled_similarity(visual, audio, ops.Max()).tolist()
    assert float(value) == pytest.approx(both(pooled, POSITIVES, 0.1), rel=1e-10)
