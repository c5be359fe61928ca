"""Audio that is nobody's positive, as more negatives: losses against loops that have it as often as it weighs."""

import math

import numpy as np
import pytest
import torch

from loss_loops import (
    CHANNELS,
    column_loss,
    features,
    flip,
    loop_ez_vsl,
    loop_fnac,
    loop_hard_positives,
    loop_lvs,
    loop_margin_nce,
    loop_slavc,
    loop_ssl_align,
    loop_ssl_tie,
    row_loss,
    slavc_features,
    slavc_log_scores,
)
from ssl_fast import losses, ops

PROJECT = torch.from_numpy(np.random.default_rng(9).standard_normal((2, 4, CHANNELS)))
WEIGHT = torch.tensor([1.0, 3.0])
COPIES = [0, 1, 1, 1]  # rows of the extra audio, as often as they weigh
# rows, columns, positives
LAYOUTS = {"square": (3, 3, None), "gathered": (3, 5, [4, 0, 2])}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    rows, columns, positives = LAYOUTS[request.param]
    return rows, columns, positives or list(range(rows)), None if positives is None else torch.tensor(positives)


def extra_audio(seed=11):
    return features(2, 2, seed)[1]


PAIR_LOSSES = {
    "ez_vsl": (losses.ez_vsl, loop_ez_vsl, {"margin": -0.2, "tau": 0.2, "mean_weight": 0.4}),
    "margin_nce": (losses.margin_nce, loop_margin_nce, {"symmetric": True, "beta": 0.2, "tau": 0.2}),
    "lvs": (losses.lvs, loop_lvs, {"margin": -0.1, "tau": 0.2}),
    "lvs-plain": (losses.lvs, loop_lvs, {"hard_negative": False, "tau": 0.2}),
    "lvs-released": (losses.lvs, loop_lvs, {"diagonal": "released", "tau": 0.5}),
    "fnac": (losses.fnac, loop_fnac, {"tau": 0.2}),
}


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_weights_count_columns(name, layout, backend):
    loss, loop, options = PAIR_LOSSES[name]
    rows, columns, order, positives = layout
    (visual, audio), extra = features(rows, columns, seed=3), extra_audio()
    negatives = losses.ExtraNegatives(extra, weight=WEIGHT)
    value = loss(visual, audio, positives=positives, extra_negatives=negatives, backend=backend, **options)
    assert float(value) == pytest.approx(loop(visual, torch.cat([audio, extra[COPIES]]), order, **options), rel=1e-10)


def test_two_contrasts_of_ssl_tie_and_similar_samples_of_hard_positives(layout, backend):
    rows, columns, order, positives = layout
    (visual, audio), (other, similar), extra = features(rows, columns, 1), features(rows, rows, 2), extra_audio()
    options = {"beta": 0.2, "tau": 0.2}
    more = {"positives": positives, "extra_negatives": losses.ExtraNegatives(extra, weight=WEIGHT), "backend": backend}
    every = torch.cat([audio, extra[COPIES]])
    value = losses.ssl_tie(visual, audio, other, flip, **options, **more)
    assert float(value) == pytest.approx(loop_ssl_tie(visual, every, other, order, **options), rel=1e-10)
    value = losses.hard_positives(visual, audio, other, similar, symmetric=True, **options, **more)
    expected = loop_hard_positives(visual, every, other, similar, order, symmetric=True, **options)
    assert float(value) == pytest.approx(expected, rel=1e-10)


def projections():
    return {"project_visual": lambda x: x @ PROJECT[0].t(), "project_audio": lambda x: x @ PROJECT[1].t()}


def test_views_of_ssl_align_have_the_same(layout, backend):
    rows, columns, order, positives = layout
    (v, a), (w, b), extra = features(rows, columns, 1), features(rows, columns, 2, size=(1, 2)), extra_audio()
    more = {"symmetric": True, "positives": positives, "backend": backend}
    negatives = losses.ExtraNegatives(extra, weight=WEIGHT)
    value = losses.ssl_align([v, w], [a, b], **projections(), **more, extra_negatives=negatives)
    every = [torch.cat([audio, extra[COPIES]]) for audio in (a, b)]
    expected = loop_ssl_align([v, w], every, order, symmetric=True, **projections())
    assert float(value) == pytest.approx(expected, rel=1e-10)
    project_visual, project_audio = projections().values()
    given = losses.ssl_align(
        [v, w],
        [a, b],
        projected_visuals=[project_visual(x.mean((2, 3))) for x in (v, w)],
        projected_audios=[project_audio(x) for x in (a, b)],
        extra_negatives=losses.ExtraNegatives((extra, project_audio(extra)), weight=WEIGHT),
        **more,
    )
    assert float(given) == pytest.approx(expected, rel=1e-10)


def loop_slavc_term(visual_loc, visual_avc, audio_loc, audio_avc, order, tau):
    """Both directions, the last two columns weighing WEIGHT in the cross-entropy and 1 in the softmax over audio."""
    logs = slavc_log_scores(visual_loc, visual_avc, audio_loc, audio_avc, tau)
    weighed = [[*row[:-1], row[-1] + math.log(3)] for row in logs]
    return (row_loss(weighed, order, 1.0) + column_loss(logs, order, 1.0)) / 2


def slavc_case(rows, columns):
    """Four features, those of the momentum nets, and four extra ones."""
    extra = [x[:2] for seed in (20, 30) for x in slavc_features(2, 2, seed)[2:]]
    return slavc_features(rows, columns), slavc_features(rows, columns, seed=7), extra


def test_both_spaces_and_momentum_of_slavc(layout, backend):
    rows, columns, order, positives = layout
    online, slow, extra = slavc_case(rows, columns)
    more = {"positives": positives, "backend": backend, "tau": 0.3}
    negatives = losses.ExtraNegatives(extra, weight=WEIGHT)
    value = losses.slavc(*online, momentum=slow, negatives="both", extra_negatives=negatives, **more)
    fast, other = (
        [torch.cat(pair) for pair in zip(audio, sounds)]
        for audio, sounds in ((online[2:], extra[:2]), (slow[2:], extra[2:]))
    )
    expected = sum(
        loop_slavc_term(*visual, *audio, order, 0.3) for visual, audio in ((online[:2], other), (slow[:2], fast))
    )
    assert float(value) == pytest.approx(expected, rel=1e-10)
    value = losses.slavc(*online, momentum=None, extra_negatives=losses.ExtraNegatives(extra[:2]), **more)
    expected = loop_slavc(*online[:2], *fast, order, momentum=None, tau=0.3)
    assert float(value) == pytest.approx(expected, rel=1e-10)


# ---- sounds over time ----


def clips(seed):
    """visual (3, C, h, w); audio (3, C, 2) and extra audio (2, C, 2), with masks."""
    (visual, first), (_, second) = features(3, 5, seed), features(3, 5, seed + 1)
    audio, mask = torch.stack([first, second], 2), torch.tensor([[1, 1], [1, 0], [0, 1], [0, 1], [1, 1]]).bool()
    return visual, audio[:3], mask[:3], audio[3:], mask[3:]


def token_scores(visual, audio, mask, normalize=True):
    """(N, M): maximum over cells, mean over tokens that count; and maximum over these tokens, mean over cells."""
    cells = visual.flatten(2)
    if normalize:
        cells, audio = (x / x.norm(dim=1, keepdim=True) for x in (cells, audio))
    by_token, by_cell = [], []
    for clip, keep in zip(audio, mask):
        products = torch.einsum("ncp,ct->npt", cells, clip[:, keep])
        by_token.append(products.amax(1).mean(1))
        by_cell.append(products.amax(2).mean(1))
    return torch.stack(by_token, 1).tolist(), torch.stack(by_cell, 1).tolist()


@pytest.mark.parametrize("own_mask", [True, False])
@pytest.mark.parametrize("extra_mask", [True, False])
def test_clips_have_masks_of_their_own(own_mask, extra_mask, backend):
    visual, audio, mask, sounds, kept = clips(5)
    mask = mask if own_mask else None
    every = [torch.ones(len(x), 2).bool() if m is None else m for x, m in ((audio, mask), (sounds, kept))]
    every = every if extra_mask else [every[0], torch.ones(2, 2).bool()]
    joined, masks = torch.cat([audio, sounds[COPIES]]), torch.cat([every[0], every[1][COPIES]])
    negatives = losses.ExtraNegatives(sounds, kept if extra_mask else None, WEIGHT)
    more = {"extra_negatives": negatives, "backend": backend}
    by_token, by_cell = token_scores(visual, joined, masks)
    got = losses.ez_vsl(visual, audio, tau=0.2, tokens=ops.TokenMean(mask), **more)
    expected = row_loss(by_token, range(3), 0.2) + column_loss(by_token, range(3), 0.2)
    assert float(got) == pytest.approx(expected, rel=1e-10)
    got = losses.late_interaction(visual, audio, tau=0.2, audio_mask=mask, **more)
    expected = (row_loss(by_cell, range(3), 0.2) + column_loss(by_token, range(3), 0.2)) / 2
    assert float(got) == pytest.approx(expected, rel=1e-10)
    by_token, by_cell = token_scores(visual, joined, masks, normalize=False)
    got = losses.dense_av(visual, audio, heads=1, scale=2.0, tokens=ops.TokenMean(mask), **more)
    expected = (row_loss(by_token, range(3), 0.5) + column_loss(by_token, range(3), 0.5)) / 2
    assert float(got) == pytest.approx(expected, rel=1e-10)


def test_views_of_ssl_align_with_tokens(backend):
    """A clip of two tokens that are alike is their vector."""
    (v, a), (w, b), extra = features(3, 3, 1), features(3, 3, 2), extra_audio()
    twice, negatives = [x[..., None].expand(-1, -1, 2) for x in (a, b)], extra[..., None].expand(-1, -1, 2)
    mask = torch.tensor([[True, True], [True, False]])
    value = losses.ssl_align(
        [v, w],
        twice,
        **projections(),
        tokens=ops.TokenMean(),
        extra_negatives=losses.ExtraNegatives(negatives, mask),
        backend=backend,
    )
    plain = losses.ssl_align([v, w], [a, b], **projections(), extra_negatives=losses.ExtraNegatives(extra))
    torch.testing.assert_close(value, plain, rtol=1e-10, atol=0)


def test_class_tokens_have_a_term_for_each_column():
    visual, audio, _, sounds, _ = clips(5)
    bias = torch.randn(3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    got = losses.dense_av(visual, audio, heads=1, bias=bias, extra_negatives=losses.ExtraNegatives(sounds))
    every = torch.ones(5, 2).bool()
    scores = torch.tensor(token_scores(visual, torch.cat([audio, sounds]), every, normalize=False)[0])
    scores = (scores + bias).tolist()
    assert float(got) == pytest.approx((row_loss(scores, range(3), 1.0) + column_loss(scores, range(3), 1.0)) / 2)


# ---- gradients, limits, errors ----


def gradient_cases():
    (v, a), (w, b), extra = features(3, 3, 1), features(3, 3, 2), extra_audio()
    online, slow, sounds = slavc_case(3, 3)

    def negatives(*audio, **more):
        return losses.ExtraNegatives(audio[0] if len(audio) == 1 else audio, weight=WEIGHT, **more)

    def align(v, w, a, b, e):
        return losses.ssl_align([v, w], [a, b], **projections(), symmetric=True, extra_negatives=negatives(e))

    def slavc(*x):
        every = negatives(*x[4:], *sounds[2:])
        return losses.slavc(*x[:4], momentum=slow, tau=0.3, negatives="both", extra_negatives=every)

    def lvs(v, a, e):
        return losses.lvs(v, a, beta=0.2, tau=0.3, extra_negatives=negatives(e))

    def fnac(v, a, e):
        return losses.fnac(v, a, tau=0.3, extra_negatives=negatives(e))

    def dense_av(v, a, e):
        kept = torch.tensor([[True, False], [True, True]])
        return losses.dense_av(v, a, heads=1, tokens=ops.TokenMean(), extra_negatives=negatives(e, mask=kept))

    return {
        "ssl_align": (align, (v, w, a, b, extra)),
        "slavc": (slavc, (*online, *sounds[:2])),
        "lvs": (lvs, (v, a, extra)),
        "fnac": (fnac, (v, a, extra)),
        "dense_av": (dense_av, (v, torch.stack([a, b], 2), torch.stack([extra, extra.flip(0)], 2))),
    }


@pytest.mark.parametrize("name", gradient_cases())
def test_gradients_are_those_of_finite_differences(name):
    loss, x = gradient_cases()[name]
    assert torch.autograd.gradcheck(loss, [t.requires_grad_() for t in x], eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["ssl_align", "slavc"])
def test_compiles_without_a_graph_break(name):
    loss, x = gradient_cases()[name]
    x = [t.requires_grad_() for t in x]
    compiled, plain = torch.compile(loss, fullgraph=True, backend="aot_eager")(*x), loss(*x)
    torch.testing.assert_close(compiled, plain)
    for one, other in zip(torch.autograd.grad(compiled, x), torch.autograd.grad(plain, x)):
        torch.testing.assert_close(one, other)


def test_one_pair_has_silence_for_its_negative():
    """Cosines 1 with the sound and 0 with the silence: log(1 + w exp(-1 / tau)), and no other image."""
    audio = torch.eye(2, dtype=torch.float64)
    visual = audio[:1, :, None, None]
    silence = losses.ExtraNegatives(audio[1:], weight=5.0)
    value = losses.margin_nce(visual, audio[:1], margin=0.0, tau=0.5, extra_negatives=silence)
    assert float(value) == pytest.approx(math.log1p(5 * math.exp(-1 / 0.5)), rel=1e-12)
    with pytest.raises(ValueError, match="visual: expected at least 2 images"):
        losses.ez_vsl(visual, audio[:1], extra_negatives=silence)


def test_several_positives_beside_extra_negatives():
    """Cosines 1 with the own class, 0 with the other and with silence: log(1 + (2 + w) / (2 exp(1 / tau)))."""
    audio = torch.eye(3, dtype=torch.float64)
    sounds = audio[[0, 0, 1, 1]]
    same, visual = (sounds @ sounds.t()).bool(), sounds[:, :, None, None]
    silence = losses.ExtraNegatives(audio[2:], weight=0.5)
    value = losses.margin_nce(visual, sounds, margin=0.0, tau=0.5, positives=same, extra_negatives=silence)
    assert float(value) == pytest.approx(math.log1p(2.5 / (2 * math.exp(2))), rel=1e-12)


def test_modules_take_them():
    (visual, audio), extra = features(4, 4), losses.ExtraNegatives(extra_audio(), weight=2.0)
    for module, loss in ((losses.EZVSL(tau=0.1), losses.ez_vsl), (losses.LVS(tau=0.1), losses.lvs)):
        value = module(visual, audio, extra_negatives=extra)
        assert torch.equal(value, loss(visual, audio, tau=0.1, extra_negatives=extra))
        assert value > module(visual, audio)
        assert torch.equal(
            module(visual, audio, extra_negatives=losses.ExtraNegatives(audio[:0])), module(visual, audio)
        )
    tie = losses.SSLTIE(tau=0.1)(visual, audio, flip(visual), flip, extra_negatives=extra)
    assert torch.equal(tie, losses.ssl_tie(visual, audio, flip(visual), flip, tau=0.1, extra_negatives=extra))


V, A = features(4, 4)
CLIPS = A[..., None].expand(-1, -1, 3)
HALF, MASK = A.clone().requires_grad_(), torch.ones(4, 2, dtype=torch.bool)
Extra = losses.ExtraNegatives
VALUE_ERRORS = {
    "channels": (Extra(A[:2, :3]), r"extra_negatives.audio: expected \(2, 5\) to match audio, got \(2, 3\)"),
    "tokens": (Extra(CLIPS), r"extra_negatives.audio: expected \(K, 5\), got \(4, 5, 3\)"),
    "parts": (Extra([A, A]), "extra_negatives.audio: expected that of audio, got 2 tensors"),
    "weight": (Extra(A, weight=0.0), "extra_negatives.weight: expected finite numbers > 0, got 0.0"),
    "weights": (Extra(A, weight=torch.ones(3)), r"extra_negatives.weight: expected \(4,\) .*, got \(3,\)"),
    "gradient": (Extra(A, weight=HALF[:, 0]), r"expected \(4,\) without gradient, got \(4,\) with gradient"),
    "mask": (Extra(A, MASK), r"extra_negatives.mask: expected none with audio \(K, C\), got \(4, 2\)"),
    "infinity": (Extra(A, weight=math.inf), "extra_negatives.weight: expected finite numbers > 0, got inf"),
    "nan": (Extra(A, weight=math.nan), "extra_negatives.weight: expected finite numbers > 0, got nan"),
}
TYPE_ERRORS = {
    "a tensor": (A, r"extra_negatives: expected losses.ExtraNegatives, got Tensor"),
    "weights in a list": (Extra(A, weight=[1.0]), "extra_negatives.weight: expected a number or a tensor, got list"),
    "nothing": (Extra(None), "extra_negatives.audio: expected a tensor, or a sequence of them, got NoneType"),
    "a list": (Extra([[1.0]]), r"extra_negatives.audio: expected a tensor, got list"),
    "dtype": (Extra(A.float()), "extra_negatives.audio: expected torch.float64 to match audio, got torch.float32"),
}


@pytest.mark.parametrize("name", [*VALUE_ERRORS, *TYPE_ERRORS])
def test_bad_ones_are_named(name):
    extra, message = (VALUE_ERRORS | TYPE_ERRORS)[name]
    with pytest.raises(TypeError if name in TYPE_ERRORS else ValueError, match=message):
        losses.ez_vsl(V, A, extra_negatives=extra)


OTHER_ERRORS = {
    "mask": (
        lambda: losses.ez_vsl(V, CLIPS, tokens=ops.TokenMean(), extra_negatives=Extra(CLIPS, MASK)),
        r"extra_negatives.mask: expected \(K, T\) = \(4, 3\), got \(4, 2\)",
    ),
    "mask of the audio": (
        lambda: losses.ez_vsl(V, CLIPS, tokens=ops.TokenMean(MASK), extra_negatives=Extra(CLIPS)),
        r"tokens.mask: expected \(M, T\) = \(4, 3\), got \(4, 2\)",
    ),
    "spaces": (
        lambda: losses.slavc(V, V, A, A, momentum=None, extra_negatives=Extra(A)),
        "extra_negatives.audio: expected that of audio_loc, audio_avc, got 1 tensors",
    ),
    "momentum": (
        lambda: losses.slavc(V, V, A, A, momentum=(V, V, A, A), extra_negatives=Extra((A, A, A, HALF))),
        "extra_negatives.audio of momentum audio_avc: expected no gradient, got requires_grad=True",
    ),
    "space": (
        lambda: losses.slavc(V, V, A, A, momentum=None, extra_negatives=Extra((A, A[:2]))),
        r"extra_negatives.audio of audio_avc: expected \(4, 5\) to match audio_avc, got \(2, 5\)",
    ),
    "projections": (
        lambda: losses.ssl_align([V], [A], projected_visuals=[A], projected_audios=[A], extra_negatives=Extra(A)),
        "extra_negatives.audio: expected that of audio, projected, got 1 tensors",
    ),
    "positives": (
        lambda: losses.ez_vsl(V, A, positives=torch.tensor([0, 1, 2, 4]), extra_negatives=Extra(A)),
        r"positives: expected columns in \[0, 4\), got values in \[0, 4\]",
    ),
    "no audio": (lambda: losses.ez_vsl(V[:0], A[:0], extra_negatives=Extra(A)), "expected at least one image"),
}


@pytest.mark.parametrize("name", OTHER_ERRORS)
def test_what_does_not_fit_is_named(name):
    call, message = OTHER_ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()
