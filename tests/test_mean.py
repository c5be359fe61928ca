"""The mean direction of each image, which is all of mean pooling."""

import pytest
import torch

from op_checks import DTYPES, Shape, dtypes, needs_compiled, planted
from ssl_fast import ops
from ssl_fast.ops.mean import mean_direction, mean_vectors

pytestmark = needs_compiled
SHAPE = Shape(5, 7, 41, 3, 5)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def visual_and_weight(dtype=torch.float64, shape=SHAPE):
    weight = torch.rand(shape.images, shape.height * shape.width, generator=torch.Generator().manual_seed(4))
    weight = (weight * (weight > 0.3)).double()
    weight[:, 0] += 0.1
    weight = weight / weight.sum(1, keepdim=True)
    return planted(shape, seed=2)[0].to(dtype), weight.to(torch.promote_types(dtype, torch.float32))


def loop(visual, weight):
    """One image, one cell at a time."""
    rows, lengths = [], []
    for image, weights in zip(visual.flatten(2).double(), weight, strict=True):
        norms = [image[:, p].square().sum().sqrt() for p in range(image.shape[1])]
        rows.append(sum(w * image[:, p] / norm for p, (w, norm) in enumerate(zip(weights, norms, strict=True))))
        lengths.append(torch.stack(norms))
    return torch.stack(rows), torch.stack(lengths)


@layouts
@pytest.mark.parametrize("weighted", [False, True])
@dtypes(*DTYPES)
def test_mean_and_inverse_norms(layout, weighted, dtype):
    visual, weight = visual_and_weight(dtype)
    uniform = torch.full_like(weight, 1 / 15)
    want, lengths = loop(visual, weight if weighted else uniform)
    mean, inverse_norm = mean_direction(visual.contiguous(memory_format=layout), weight if weighted else None)
    assert mean.dtype == inverse_norm.dtype == weight.dtype
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(mean.double(), want, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(inverse_norm.double(), 1 / lengths, rtol=tolerance, atol=0)


def test_equal_cells_give_their_unit_vector():
    visual = torch.arange(1.0, 42.0).view(1, 41, 1, 1).expand(2, 41, 3, 5)
    mean, _ = mean_direction(visual, None)
    torch.testing.assert_close(mean, torch.nn.functional.normalize(visual[:, :, 0, 0]), rtol=1e-6, atol=0)


def test_opposite_cells_cancel():
    visual = torch.randn(3, 41, 1, 1, generator=torch.Generator().manual_seed(1)) * torch.tensor([[[[1.0, -4.0]]]])
    mean, _ = mean_direction(visual, None)
    assert mean.abs().max() < 1e-7
    scores = ops.pooled_similarity(visual, torch.randn(4, 41), ops.Mean())
    assert scores.abs().max() < 1e-6


@layouts
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_against_autograd_of_the_loop(layout, weighted):
    visual, weight = visual_and_weight()
    visual = visual.contiguous(memory_format=layout).requires_grad_()
    mean, inverse_norm = mean_direction(visual, weight if weighted else None)
    assert not inverse_norm.requires_grad
    upstream = torch.randn_like(mean)
    (got,) = torch.autograd.grad(mean, visual, upstream)
    want, _ = loop(visual, weight if weighted else torch.full_like(weight, 1 / 15))
    (want,) = torch.autograd.grad(want, visual, upstream)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-14)
    if weighted:
        assert not got.flatten(2).transpose(1, 2)[weight == 0].any()


def test_zero_vectors_have_no_direction():
    visual, weight = visual_and_weight(torch.float32)
    visual[1, :, 0, 0] = 0
    visual[3] = 0
    visual.requires_grad_()
    mean, inverse_norm = mean_direction(visual, weight)
    assert not mean[3].any() and not inverse_norm[3].any() and inverse_norm[1, 0] == 0
    mean.square().sum().backward()
    assert not visual.grad[3].any() and not visual.grad[1, :, 0, 0].any() and visual.grad[1].any()


@pytest.mark.parametrize("size", [1, 4, 7, 14, 20])
def test_the_mean_of_many_cells(size):
    """As exact as the wider sum: each score is the mean of the cosines of its cells."""
    shape = Shape(3, 6, 70, size, size)
    visual, audio = (x.float() for x in planted(shape, seed=size))
    cells = visual.double().flatten(2)
    maps = [torch.nn.functional.cosine_similarity(cells, a.double()[:, None], dim=1) for a in audio]
    want = torch.stack([alpha.mean(1) for alpha in maps], 1)
    got = ops.pooled_similarity(visual, audio, ops.Mean())
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-7)


@pytest.mark.parametrize("length", [1e-9, 1e14])
def test_gradient_of_very_short_and_very_long_vectors(length):
    visual = (planted(SHAPE, seed=2)[0] * length).requires_grad_()
    upstream = torch.randn(SHAPE.images, SHAPE.channels, generator=torch.Generator().manual_seed(3))
    want, _ = loop(visual, torch.full((SHAPE.images, 15), 1 / 15))
    (want,) = torch.autograd.grad(want, visual, upstream.double())
    single = visual.detach().float().requires_grad_()
    (got,) = torch.autograd.grad(mean_direction(single, None)[0], single, upstream)
    torch.testing.assert_close(got.double() * length, want * length, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_means_of_one_pass(layout, backend, dtype):
    visual = torch.randn(5, 37, 3, 4).to(dtype).contiguous(memory_format=layout).requires_grad_()
    weights, wide = torch.rand(3, 5, 3, 4), visual.detach().double().requires_grad_()
    means = mean_vectors(visual, weights, backend=backend)
    expected = (torch.nn.functional.normalize(wide)[None] * weights[:, :, None]).sum((3, 4))
    upstream = torch.randn(expected.shape)
    (got,), (want,) = (
        torch.autograd.grad(means, visual, upstream),
        torch.autograd.grad(expected, wide, upstream.double()),
    )
    torch.testing.assert_close(means.double(), expected, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 2e-2)
    assert (got.double() - want).norm() <= (1e-6 if dtype == torch.float32 else 8e-3) * want.norm()
