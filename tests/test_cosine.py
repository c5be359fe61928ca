"""The map of each image with its own audio."""

import pytest
import torch

from op_checks import DTYPES, Shape, dtypes, needs_compiled, planted
from ssl_fast import ops

SHAPE = Shape(4, 4, 24, 3, 5)


def features(dtype=torch.float32, shape=SHAPE):
    return [x.to(dtype) for x in planted(shape, seed=3, paired=True)]


@dtypes(*DTYPES)
def test_identical_orthogonal_and_opposite_vectors(dtype, backend):
    axis = torch.eye(24, dtype=dtype)
    audio = 3 * axis[:4]
    visual = axis[torch.tensor([[0, 1, 9], [4, 1, 8], [2, 2, 2], [3, 7, 0]])].transpose(1, 2)[:, :, None] * 0.25
    visual[3] = -visual[3]
    want = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1], [-1, 0, 0]])[:, None]
    maps = ops.cosine_map(visual, audio, backend=backend)
    assert maps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-2 if backend == "reference" and dtype.itemsize == 2 else 1e-6
    torch.testing.assert_close(maps, want.to(maps.dtype), rtol=0, atol=tolerance)


def test_torchs_own_cosine_similarity(backend):
    visual, audio = (x.requires_grad_() for x in features(torch.float64))
    want = torch.nn.functional.cosine_similarity(visual, audio[:, :, None, None], dim=1)
    got = ops.cosine_map(visual, audio, backend=backend)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    upstream = torch.randn_like(got)
    grads = [torch.autograd.grad(maps, (visual, audio), upstream) for maps in (got, want)]
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_the_diagonal_of_all_pairs(backend):
    """Pooled over maps of one cell, the scores of all pairs hold every paired map."""
    visual, audio = features(torch.float64)
    cells = visual.flatten(2).transpose(1, 2).reshape(60, 24, 1, 1)
    scores = ops.pooled_similarity(cells, audio, ops.Max(), backend=backend).view(4, 15, 4)
    want = torch.stack([scores[n, :, n] for n in range(4)]).view(4, 3, 5)
    torch.testing.assert_close(ops.cosine_map(visual, audio, backend=backend), want, rtol=1e-12, atol=1e-14)


def test_a_cell_and_its_audio_alone_get_its_gradient(backend):
    visual, audio = (x.requires_grad_() for x in features())
    ops.cosine_map(visual, audio, backend=backend)[2, 1, 4].backward()
    others = torch.ones(4, 3, 5, dtype=torch.bool)
    others[2, 1, 4] = False
    assert visual.grad[2, :, 1, 4].any() and not visual.grad.permute(0, 2, 3, 1)[others].any()
    assert audio.grad[2].any() and not audio.grad[[0, 1, 3]].any()


@needs_compiled
@pytest.mark.parametrize("power", [-30, 30])
def test_powers_of_two_change_no_bit(power):
    visual, audio = features()
    scale, results = 2.0**power, []
    for v, a in ((visual, audio), (visual * scale, audio / scale)):
        v, a = v.requires_grad_(), a.requires_grad_()
        maps = ops.cosine_map(v, a)
        results.append((maps, *torch.autograd.grad(maps.square().sum(), (v, a))))
    (want, want_visual, want_audio), (got, grad_visual, grad_audio) = results
    assert torch.equal(got, want)
    assert torch.equal(grad_visual * scale, want_visual) and torch.equal(grad_audio / scale, want_audio)


@needs_compiled
def test_pairs_do_not_depend_on_each_other():
    visual, audio = features()
    maps = ops.cosine_map(visual, audio)
    order = torch.tensor([3, 1, 0])
    assert torch.equal(ops.cosine_map(visual[order], audio[order]), maps[order])


@needs_compiled
@dtypes(*DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 512])
def test_cosines_stay_between_minus_one_and_one(dtype, channels):
    visual, audio = features(dtype, Shape(16, 16, channels, 7, 7))
    visual[:, :, 0] = 3 * audio[:, :, None]
    visual[:, :, 1] = -2 * audio[:, :, None]
    maps = ops.cosine_map(visual, audio)
    assert maps.abs().max() <= 1 + 16 * torch.finfo(maps.dtype).eps
    if dtype.itemsize > 2:  # a multiple of 3 is rounded in 16 bits
        torch.testing.assert_close(maps[:, :2].mean(1), torch.zeros_like(maps[:, 0]), rtol=0, atol=1e-6)
