"""What the tests of the ops share: the ops under one signature, hostile inputs, a truth in numpy, and errors."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from ssl_fast import ops
from ssl_fast.ops import checks
from ssl_fast.ops.poolings import LOWEST_LOGIT
from ssl_fast.ops.similarity import similarity_and_map

needs_compiled = pytest.mark.skipif(checks.extension is None, reason=f"no compiled module: {checks.extension_error}")

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def dtypes(*which):
    return pytest.mark.parametrize("dtype", which, ids=[str(x).removeprefix("torch.") for x in which])


TAU = 0.1  # of log-sum-exp pooling
EPSILON, BETA = 0.45, 0.05  # planted correlations lie on both sides of epsilon


class Shape(NamedTuple):
    images: int
    audios: int
    channels: int
    height: int
    width: int


# Panels of audios hold 4 to 32 lanes and tiles 6 or 14 cells: one less, just enough, one more, and much less.
SHAPES = {
    "1x1": Shape(5, 33, 64, 1, 1),
    "2x3": Shape(3, 32, 33, 2, 3),
    "7x7": Shape(4, 31, 512, 7, 7),
    "14x14": Shape(2, 70, 130, 14, 14),
    "28x28": Shape(2, 31, 64, 28, 28),
    "one-image": Shape(1, 32, 130, 7, 7),
    "one-audio": Shape(6, 1, 33, 7, 7),
    "one-pair": Shape(1, 1, 7, 2, 3),
    "one-channel": Shape(3, 31, 1, 2, 3),
    "one-number": Shape(1, 1, 1, 1, 1),
    "few-channels": Shape(3, 70, 7, 7, 7),
    "many-channels": Shape(2, 33, 512, 2, 3),
    "many-images": Shape(33, 3, 33, 2, 3),
}


class Extra(NamedTuple):
    mask: torch.Tensor  # (N, h, w)
    positives: torch.Tensor  # (N,)


def extra_for(shape: Shape) -> Extra:
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(shape.images, shape.height, shape.width, generator=generator)
    mask[:, -1, -1] += 0.5
    positives = torch.randint(shape.audios, (shape.images,), generator=generator)
    return Extra(torch.where(mask < 0.4, 0, mask), positives)


# ---- inputs ----


def planted(shape: Shape, seed: int, paired: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 features (N, C, h, w), (M, C) of many lengths, whose cosines fill [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    audios, cells = shape.images if paired else shape.audios, shape.height * shape.width
    audio = torch.nn.functional.normalize(random(audios, shape.channels), dim=1)
    noise = torch.nn.functional.normalize(random(shape.images, shape.channels, cells), dim=1)
    chosen = torch.randint(audios, (shape.images, cells), generator=generator)
    strength = torch.rand(shape.images, 1, cells, generator=generator, dtype=torch.float64) * 3 - 0.5
    visual = noise + strength * audio[chosen].transpose(1, 2)
    visual = visual * torch.exp(0.5 * random(shape.images, 1, cells))
    audio = audio * torch.exp(0.5 * random(audios, 1))
    return 3 * visual.unflatten(2, (shape.height, shape.width)), 3 * audio


def _slices(x):  # every second element of each axis of a larger buffer, all of whose other values are NaN
    buffer = x.new_full([2 * size + 1 for size in x.shape], float("nan"))
    view = buffer[tuple(slice(1, None, 2) for _ in x.shape)]
    return view.copy_(x)


def _offset(x):  # contiguous, but one element behind an aligned address and between NaNs
    buffer = x.new_full([x.numel() + 2], float("nan"))
    return buffer[1:-1].view(x.shape).copy_(x)


def _channel_slice(x):  # some channels of a larger tensor
    buffer = x.new_full([x.shape[0], x.shape[1] + 5, *x.shape[2:]], float("nan"))
    return buffer[:, 3:-2].copy_(x)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "slices": _slices,
    "offset": _offset,
    "channel-slice": _channel_slice,
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "reversed-axes": lambda x: x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))),
    "expanded": lambda x: x[:1].expand_as(x),  # all images equal: stride 0
    "expanded-rows": lambda x: x[:, :, :1].expand_as(x) if x.dim() == 4 else x,
}


# ---- the ops, and what they must give ----


def _soft_threshold(alpha, epsilon, beta):
    x = np.maximum((alpha - epsilon) / beta, LOWEST_LOGIT)
    weight = 1 / (1 + np.exp(-x))
    total = weight.sum(2, keepdims=True)
    score = (weight * alpha).sum(2, keepdims=True) / total
    change = (x > LOWEST_LOGIT) * (1 - weight) / beta * (alpha - score)
    return score[..., 0], weight / total * (1 + change), weight / total * (1 + abs(change))


def _log_mean_exp(alpha, tau):
    top = alpha.max(2, keepdims=True)
    powers = np.exp((alpha - top) / tau)
    score = top[..., 0] + tau * np.log(powers.mean(2))
    slope = powers / powers.sum(2, keepdims=True)
    return score, slope, slope


def _pooled(kind, epsilon=EPSILON, beta=BETA, tau=TAU):
    def truth(alphas, extra):
        (alpha,) = alphas
        rows, positives = np.arange(len(alpha)), extra.positives.cpu().numpy()
        if kind == "max":
            score, slope = alpha.max(2), np.zeros_like(alpha)
            np.put_along_axis(slope, alpha.argmax(2)[..., None], 1, 2)
            size = slope
        elif kind in ("soft", "soft+map"):
            score, slope, size = _soft_threshold(alpha, epsilon, beta)
        elif kind == "log-mean-exp":
            score, slope, size = _log_mean_exp(alpha, tau)
        else:
            weight = extra.mask.flatten(1).cpu().numpy() if kind == "masked" else np.ones_like(alpha[:, 0])
            weight = weight.astype(alpha.dtype)
            slope = size = np.broadcast_to((weight / weight.sum(1, keepdims=True))[:, None], alpha.shape)
            score = (slope * alpha).sum(2)

        def pull(grad, grad_map=None):
            G, sizes = slope * grad[..., None], size * abs(grad)[..., None]
            if grad_map is not None:
                grad_map = grad_map.reshape(len(G), -1)
                G[rows, positives] += grad_map
                sizes[rows, positives] += abs(grad_map)
            return ((G, sizes),)

        if kind != "soft+map":
            return (score,), pull
        return (score, alpha[rows, positives].reshape(extra.mask.shape)), pull

    return truth


def _map_truth(alphas, extra):
    (alpha,) = alphas
    rows = np.arange(len(alpha))

    def pull(grad):
        G = np.zeros_like(alpha)
        G[rows, rows] = grad.reshape(len(G), -1)
        return ((G, abs(G)),)

    return (alpha[rows, rows].reshape(extra.mask.shape),), pull


def _log_softmax(x, axis):
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def _product_truth(tau, reduce, instances):
    axis = 1 if instances == "audio" else 0

    def truth(alphas, extra):
        loc, avc = alphas
        instance, space = _log_softmax(avc / tau, axis), _log_softmax(loc / tau, 2)
        x = instance + space
        top = x.max(2, keepdims=True)
        if reduce == "sum":
            score = top + np.log(np.exp(x - top).sum(2, keepdims=True))
            share = np.exp(x - score)
        else:
            score, share = top, np.zeros_like(x)
            np.put_along_axis(share, x.argmax(2)[..., None], 1, 2)

        def pull(grad):
            u = share * grad[..., None]
            others = np.exp(space) * u.sum(2, keepdims=True), np.exp(instance) * u.sum(axis, keepdims=True)
            return [((u - other) / tau, (abs(u) + abs(other)) / tau) for other in others]

        return (score[..., 0],), pull

    return truth


class Op(NamedTuple):
    call: Callable  # (*features, extra, backend) -> outputs
    # (cosines (N, M, cells) of each space, extra) -> outputs, and a function of their gradients that returns, for each
    # space, the gradient of the cosines and its magnitude before terms cancel
    truth: Callable
    spaces: int = 1
    paired: bool = False
    library_product: bool = False  # ends in torch's matrix product, whose bits depend on the number of threads

    def features(self, shape: Shape, dtype=torch.float64, layout="contiguous", seed=0) -> list[torch.Tensor]:
        """All visual features, then all audio features: (loc, avc) of each where there are two spaces."""
        pairs = [planted(shape, seed + 100 * i, self.paired) for i in range(self.spaces)]
        return [LAYOUTS[layout](x.to(dtype)) for kind in zip(*pairs) for x in kind]


def _pooling_op(kind, pooling, *options, library_product=False, **more):
    def call(visual, audio, extra, backend):
        return (ops.pooled_similarity(visual, audio, pooling(extra), backend=backend),)

    return Op(call, _pooled(kind, *options, **more), library_product=library_product)


def log_mean_exp_op(tau=TAU):
    return _pooling_op("log-mean-exp", lambda extra: ops.LogMeanExp(tau), tau=tau)


def soft_op(epsilon=EPSILON, beta=BETA):
    return _pooling_op("soft", lambda extra: ops.SoftThreshold(epsilon, beta), epsilon, beta)


def _with_map(visual, audio, extra, backend):
    return similarity_and_map(visual, audio, ops.SoftThreshold(EPSILON, BETA), extra.positives, backend=backend)


def product_op(tau=0.07, reduce="sum", instances="audio"):
    def call(visual_loc, visual_avc, audio_loc, audio_avc, extra, backend):
        return (
            ops.product_log_scores(
                visual_loc,
                visual_avc,
                audio_loc,
                audio_avc,
                tau=tau,
                reduce=reduce,
                instances=instances,
                backend=backend,
            ),
        )

    return Op(call, _product_truth(tau, reduce, instances), spaces=2)


OPS = {
    "mean": _pooling_op("mean", lambda extra: ops.Mean(), library_product=True),
    "masked-mean": _pooling_op("masked", lambda extra: ops.Mean(extra.mask), library_product=True),
    "soft-threshold": soft_op(),
    "max": _pooling_op("max", lambda extra: ops.Max()),
    "log-mean-exp": log_mean_exp_op(),
    "similarity-and-map": Op(_with_map, _pooled("soft+map")),
    "product-sum-audio": product_op(),
    "product-max-audio": product_op(reduce="max"),
    "product-sum-image": product_op(instances="image"),
    "product-max-image": product_op(reduce="max", instances="image"),
    "cosine-map": Op(
        lambda visual, audio, extra, backend: (ops.cosine_map(visual, audio, backend=backend),), _map_truth, paired=True
    ),
}


# ---- evaluation ----


class Result(NamedTuple):
    outputs: list
    gradients: list  # one per feature, None where not wanted

    def tensors(self):
        return [*self.outputs, *(g for g in self.gradients if g is not None)]


def upstream(outputs) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in outputs]


def evaluate(op: Op, features, extra: Extra, backend: str = "compiled", wanted=None) -> Result:
    """Outputs, and the gradients with respect to the `wanted` features (indices; all)."""
    wanted = range(len(features)) if wanted is None else wanted
    features = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(features)]
    outputs = op.call(*features, extra, backend)
    gradients = torch.autograd.grad(outputs, [features[i] for i in wanted], upstream(outputs))
    found = dict(zip(wanted, gradients, strict=True))
    return Result([x.detach() for x in outputs], [found.get(i) for i in range(len(features))])


class Truth(NamedTuple):
    outputs: list
    gradients: list
    output_scales: list  # norms that errors are divided by
    gradient_scales: list


def _norm(x):
    return float(np.sqrt((np.asarray(x, np.longdouble) ** 2).sum()))


def truth_of(op: Op, features, extra: Extra, precision=np.float64) -> Truth:
    """By the equations, in numpy of the given precision, from the values of `features`."""
    visuals, audios = (
        [x.detach().double().cpu().numpy().astype(precision) for x in part]
        for part in (features[: op.spaces], features[op.spaces :])
    )
    spaces, shortest = [], 2.0**-14 if features[0].dtype == torch.float16 else 1e-12  # others count as zero vectors
    for visual, audio in zip(visuals, audios, strict=True):
        visual = visual.reshape(*visual.shape[:2], -1)
        lengths = [np.sqrt((x**2).sum(1, keepdims=True)) for x in (visual, audio)]
        inverse = [np.where(length < shortest, 0, 1 / np.maximum(length, shortest)) for length in lengths]
        spaces.append((visual * inverse[0], audio * inverse[1], *inverse))
    alphas = [np.matmul(audio[None], visual) for visual, audio, *_ in spaces]
    outputs, pull = op.truth(alphas, extra)
    dtype = torch.float64 if features[0].dtype == torch.float64 else torch.float32
    grads = upstream([torch.empty(x.shape, dtype=dtype) for x in outputs])
    grads = [x.double().numpy().astype(precision) for x in grads]
    found = []
    for (visual, audio, *inverse), (G, size) in zip(spaces, pull(*grads), strict=True):
        G, size, lanes = np.swapaxes(G, 1, 2), np.swapaxes(size, 1, 2), np.swapaxes(visual, 1, 2)  # (N, cells, M or C)

        def products(G, audio, lanes):
            return np.matmul(G, audio[None]).swapaxes(1, 2), np.matmul(G.swapaxes(1, 2), lanes).sum(0)

        unit_gradients, squares = products(G, audio, lanes), products(size**2, audio**2, lanes**2)
        for x, scale, unit_gradient, square in zip((visual, audio), inverse, unit_gradients, squares, strict=True):
            gradient = (unit_gradient - x * (x * unit_gradient).sum(1, keepdims=True)) * scale
            found.append((gradient, max(_norm(gradient), _norm(np.sqrt(square) * scale))))  # of terms of random signs
    found = found[::2] + found[1::2]
    gradients = [(g.reshape(x.shape), scale) for (g, scale), x in zip(found, features, strict=True)]
    typical = 1 if op.spaces == 2 else _norm(alphas[0]) / max(alphas[0].size, 1) ** 0.5  # a log probability; a cosine
    return Truth(
        list(outputs),
        [g for g, _ in gradients],
        [max(_norm(x), typical * x.size**0.5) for x in outputs],
        [scale for _, scale in gradients],
    )


def relative_errors(result: Result, truth: Truth) -> list[float]:
    """Norm of the error of each output and gradient, relative to the norm of the truth."""
    pairs = [
        *zip(result.outputs, truth.outputs, truth.output_scales, strict=True),
        *zip(result.gradients, truth.gradients, truth.gradient_scales, strict=True),
    ]
    return [
        _norm(got.double().cpu().numpy() - want) / scale if scale else _norm(got.double().cpu().numpy())
        for got, want, scale in pairs
    ]


# Added to the bounds, in units in the last place: the reference may be exact by chance where there are few numbers.
# Rounding to 16 bits alone costs a quarter.
FLOOR = {torch.float32: 5, torch.float64: 5, torch.bfloat16: 0.75, torch.float16: 0.75}


def assert_accurate(op: Op, features, extra: Extra, factor: float = 2, floor: bool = True) -> None:
    """The compiled op errs at most `factor` times what the eager reference in the same dtype errs, norm by norm.

    Where eager float16 overflows there is nothing to compare with: two units in the last place of the tensor's dtype.
    """
    truth = truth_of(op, features, extra, np.longdouble if features[0].dtype == torch.float64 else np.float64)
    result = evaluate(op, features, extra)
    errors, eager = (relative_errors(r, truth) for r in (result, evaluate(op, features, extra, "reference")))
    dtypes = [x.dtype for x in result.tensors()]
    units = [torch.finfo(dtype).eps for dtype in dtypes]
    bounds = [
        factor * other + floor * FLOOR[dtype] * unit if np.isfinite(other) else 2 * unit
        for other, dtype, unit in zip(eager, dtypes, units, strict=True)
    ]
    report = "; ".join(
        f"{error / unit:.3g} ulp (eager {other / unit:.3g}, at most {bound / unit:.3g})"
        for error, other, bound, unit in zip(errors, eager, bounds, units, strict=True)
    )
    fine = all(error <= bound for error, bound in zip(errors, bounds, strict=True))
    assert fine, f"outputs, then gradients: {report}"


def assert_accurate_on_average(op: Op, shape: Shape, dtype=torch.float32, inputs: int = 6) -> None:
    """Root mean squares of the errors over several inputs: at most three times those of eager. For parameters with
    which the rounding of one cosine can decide how large an error is. Where eager leaves float16, anything but NaN."""
    extra, squares = extra_for(shape), []
    for seed in range(inputs):
        features = op.features(shape, dtype, seed=seed)
        truth = truth_of(op, features, extra, np.longdouble if dtype == torch.float64 else np.float64)
        results = [evaluate(op, features, extra, backend) for backend in ("compiled", "reference")]
        squares.append([np.square(relative_errors(result, truth)) for result in results])
    errors, eager = np.sqrt(np.mean(squares, 0))
    units = np.array([torch.finfo(x.dtype).eps * FLOOR[x.dtype] for x in results[0].tensors()])
    assert (errors <= np.where(np.isfinite(eager), 3 * eager + units, np.inf)).all(), (errors, eager)
