"""The compiled cross-entropy against log(1 + sum of exp) in float64, by rows and columns one at a time."""

import pytest
import torch

from op_checks import needs_compiled
from ssl_fast import losses
from ssl_fast.ops import kernels
from ssl_fast.ops.cross_entropy import fused_cross_entropy

pytestmark = needs_compiled
EPSILON, BETA = 0.4, 0.03


def by_hand(scores, positives, tau, margin, rows, columns, maps):
    count = len(scores)
    y = list(range(count)) if positives is None else positives.tolist()
    total = scores.new_zeros(())
    for i in range(count if rows else 0):
        others = [scores[i, j] for j in range(scores.shape[1]) if j != y[i]]
        if maps is not None:
            weight = torch.nn.functional.logsigmoid((EPSILON - maps[i]) / BETA).softmax(0)
            others.append((weight * maps[i]).sum())
        gaps = torch.stack([(other - scores[i, y[i]] + margin) / tau for other in others])
        total = total + torch.log1p(gaps.exp().sum()) / count
    for j in range(count if columns else 0):
        gaps = [(scores[i, j] - scores[j, j] + margin) / tau for i in range(count) if i != j]
        if gaps:
            total = total + torch.log1p(torch.stack(gaps).exp().sum()) / count
    return total


def inputs(shape, cells, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    maps = torch.rand(shape[0], cells, generator=generator, dtype=torch.float64) * 2 - 1 if cells else None
    return [None if x is None else x.to(dtype).requires_grad_() for x in (scores, maps)]


CASES = {
    "rows": ((5, 5), 0, None, True, False),
    "columns": ((7, 7), 0, None, False, True),
    "both": ((33, 33), 0, None, True, True),
    "both-and-extra-columns": ((16, 21), 0, None, True, True),
    "positives": ((3, 40), 0, torch.tensor([39, 0, 39]), True, False),
    "background": ((17, 17), 9, None, True, False),
    "background-and-positives": ((4, 16), 49, torch.tensor([15, 1, 1, 8]), True, False),
    "one": ((1, 2), 1, None, True, False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tau, margin", [(0.03, 0.0), (1.0, -0.2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradients(case, tau, margin, dtype, set_threads):
    shape, cells, positives, rows, columns = CASES[case]
    scores, maps = inputs(shape, cells, dtype)
    options = {"rows": rows, "columns": columns, "maps": maps, "epsilon": EPSILON, "beta": BETA}
    wide = [None if x is None else x.detach().double().requires_grad_() for x in (scores, maps)]
    truth = by_hand(wide[0], positives, tau, margin, rows, columns, wide[1])
    expected = torch.autograd.grad(truth, [x for x in wide if x is not None])
    found = []
    for threads in (1, 3):
        set_threads(threads)
        loss = fused_cross_entropy(scores, positives, tau, margin, **options)
        gradients = torch.autograd.grad(3 * loss, [x for x in (scores, maps) if x is not None])
        found.append((loss, *gradients))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    close = {"rtol": 2e-5, "atol": 1e-9} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-15}
    torch.testing.assert_close(loss.double(), truth, **close)
    for gradient, want in zip(gradients, expected):
        close["atol"] = 2e-5 * float(want.abs().max()) if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(gradient.double() / 3, want, **close)
    with torch.no_grad():
        assert torch.equal(fused_cross_entropy(scores, positives, tau, margin, **options), loss)


def test_far_from_zero():
    """Gaps whose exponentials leave float32, a loss far below 1, and maps that are all background or none."""
    scores = torch.tensor([[0.0, 500.0], [0.0, 500.0]], requires_grad=True)
    loss = fused_cross_entropy(scores, None, 1.0, 0.0, rows=True, columns=False)
    assert loss.item() == 250
    assert torch.autograd.grad(loss, scores)[0].tolist() == [[-0.5, 0.5], [0, 0]]
    tiny = fused_cross_entropy(torch.tensor([[0.0, -60], [-60, 0]]), None, 1.0, 0.0, rows=True, columns=True)
    assert tiny.item() == pytest.approx(2 * 8.75651076e-27, rel=1e-6)
    for maps in (torch.full((2, 3), 0.99), torch.full((2, 3), -0.99)):
        background = {"maps": maps, "epsilon": 0.4, "beta": 1e-3}
        loss = fused_cross_entropy(
            torch.zeros(2, 1), torch.zeros(2).long(), 1.0, 0.0, rows=True, columns=False, **background
        )
        assert loss.item() == pytest.approx(float(torch.log1p(maps[0, 0].double().exp())), rel=1e-6)


def test_nan_stays():
    scores = torch.zeros(3, 3)
    scores[1, 2] = torch.nan
    for rows, columns in ((True, False), (False, True)):
        assert fused_cross_entropy(scores, None, 0.1, 0.0, rows=rows, columns=columns).isnan()


def test_not_differentiable_twice_and_unknown_positives():
    scores, _ = inputs((4, 4), 0, torch.float64)
    loss = fused_cross_entropy(scores, None, 0.1, 0.0, rows=True, columns=False)
    with pytest.raises(RuntimeError, match="second derivative|cross_entropy_backward"):
        torch.autograd.grad(loss, scores, create_graph=True)[0].sum().backward()
    with pytest.raises(ValueError, match=r"positives: expected columns in \[0, 4\), got 0..4"):
        fused_cross_entropy(scores, torch.tensor([0, 1, 4, 2]), 0.1, 0.0, rows=True, columns=False)


@pytest.mark.parametrize(
    "options", [{}, {"margin": 0.1, "tri_map": False}, {"positives": torch.tensor([2, 9, 0, 9, 0, 9, 3])[::2]}]
)
def test_lvs_takes_the_background_from_the_kernel(options):
    generator = torch.Generator().manual_seed(0)
    visual, audio = (torch.randn(4, 8, *size, generator=generator, dtype=torch.float64) for size in ((3, 2), ()))
    results = []
    for backend in ("compiled", "reference"):
        features = [x.clone().requires_grad_() for x in (visual, audio)]
        loss = losses.lvs(*features, backend=backend, **options)
        results.append((loss, *torch.autograd.grad(loss, features)))
    for got, expected in zip(*results):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_little_arithmetic_runs_on_one_thread(monkeypatch, set_threads):
    set_threads(3)
    monkeypatch.setattr(kernels, "SERIAL_FLOPS", 1000)
    visual = torch.ones(2, 5, 3, 3)
    assert [kernels.threads_for(kernels.product_flops(visual, audios)) for audios in (5, 6)] == [1, 3]
