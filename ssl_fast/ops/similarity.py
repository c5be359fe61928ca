"""All-pairs cosine similarity maps, pooled over the cells of each image (LVS, MarginNCE, EZ-VSL, SSL-Align)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import cuda_chunks as rows
from . import library
from .checks import (
    address,
    autocast_inputs,
    check_kept,
    check_pair,
    extension,
    kept_images,
    kept_shape,
    kernel_shape,
    kernels_for,
    memory_format,
    on_cuda,
    use_compiled,
    without_autocast,
)
from .cosine import _cosine_map, _cosine_map_backward, cosine_map_reference
from .cuda_chunks import DenseGradients, Pairs, VisualGradient, chunks
from .mean import mean_vector
from .reference import accumulate_dtype, similarity_maps

# Logits of the soft threshold are cut off here, so that the sum of the weights never underflows in float32: pairs whose
# cells all lie 80 beta below epsilon are pooled by the plain mean.
LOWEST_LOGIT = -80.0


@dataclass(frozen=True)
class Mean:
    """S = mean over cells of alpha (SSL-Align's s_L), or over the cells of `mask` (N, h, w), weights >= 0."""

    mask: Tensor | None = None


@dataclass(frozen=True)
class SoftThreshold:
    """S = sum_p w alpha / sum_p w with w = sigmoid((alpha - epsilon) / beta) (LVS, MarginNCE)."""

    epsilon: float = 0.65
    beta: float = 0.03

    def __post_init__(self):
        if not self.beta > 0:
            raise ValueError(f"beta: expected > 0, got {self.beta}")


@dataclass(frozen=True)
class Max:
    """S = max over cells of alpha (EZ-VSL). The gradient goes to the first cell that attains it."""


Pooling = Mean | SoftThreshold | Max


def soft_threshold(maps: Tensor, epsilon: float, beta: float) -> Tensor:
    """Soft-threshold pooling of maps (..., cells) -> (...)."""
    weight = torch.sigmoid(((maps - epsilon) / beta).clamp_min(LOWEST_LOGIT))
    return (weight * maps).sum(-1) / weight.sum(-1)


def pooled_similarity_reference(visual: Tensor, audio: Tensor, pooling: Pooling) -> Tensor:
    maps = similarity_maps(visual, audio)
    if isinstance(pooling, SoftThreshold):
        return soft_threshold(maps, pooling.epsilon, pooling.beta)
    if isinstance(pooling, Max):
        return maps.max(-1).values
    if pooling.mask is None:
        return maps.mean(-1)
    weight = pooling.mask.flatten(1).to(maps.dtype)
    return (maps * weight[:, None]).sum(-1) / weight.sum(-1)[:, None]


def pooled_similarity(visual: Tensor, audio: Tensor, pooling: Pooling, *, backend: str = "auto") -> Tensor:
    """`pool(einsum("nchw,mc->nmhw", F.normalize(visual, dim=1), F.normalize(audio, dim=1)))`, without the N x M x h x w
    map.

    Args:
        visual: raw features (N, C, h, w); float32, bfloat16, float16 or float64, channels first or last.
        audio: raw features (M, C), same dtype and device.
        pooling: `Mean(mask=None)`, `SoftThreshold(epsilon=.65, beta=.03)` or `Max()`.
        backend: "auto" (the compiled kernel where there is one), "compiled" (RuntimeError where there is none) or
            "reference" (plain PyTorch).

    Returns:
        S (N, M); float32, or float64 for float64 inputs. A zero vector has cosine 0 and gradient 0; NaN in a pair gives
        NaN for that pair. Same input, number of threads and machine: same bits, forward and backward. On a CPU, S has
        the same bits for every number of threads too, but for `Mean`, which ends in a product of torch's.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not match; a mask of wrong shape, or empty for an
        image.
    """
    visual, audio = autocast_inputs(visual, audio)
    check_pair(visual, audio)
    if not isinstance(pooling, Pooling):
        raise TypeError(f"pooling: expected ops.Mean, ops.SoftThreshold or ops.Max, got {pooling!r}")
    if isinstance(pooling, Mean) and pooling.mask is not None:
        _check_mask(pooling.mask, visual)
    if not use_compiled(backend, visual):
        return pooled_similarity_reference(visual, audio, pooling)
    if isinstance(pooling, Mean):
        return _mean_similarity(visual, audio, pooling.mask)
    return _call(visual, audio, pooling, None)[0]


def similarity_and_map(
    visual: Tensor, audio: Tensor, pooling: SoftThreshold, positives: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`pooled_similarity`, and `cosine_map(visual, audio[positives])`, in one pass over the features.

    positives: the audio of each image, int64 (N,). Returns S (N, M) and alpha (N, h, w), both differentiable.
    """
    visual, audio = autocast_inputs(visual, audio)
    check_pair(visual, audio)
    if not isinstance(pooling, SoftThreshold):  # the gather of a maximum has no place for a gradient of the map
        raise TypeError(f"pooling: expected ops.SoftThreshold, got {pooling!r}")
    if positives.shape != visual.shape[:1] or positives.dtype != torch.int64:
        raise ValueError(
            f"positives: expected int64 ({visual.shape[0]},), got {positives.dtype} {tuple(positives.shape)}"
        )
    if not use_compiled(backend, visual):
        return pooled_similarity_reference(visual, audio, pooling), cosine_map_reference(visual, audio[positives])
    scores, maps = _call(visual, audio, pooling, positives)[:2]
    return scores, maps.view(visual.shape[0], *visual.shape[2:])


def _check_mask(mask, visual):
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask: expected a tensor, got {type(mask).__name__}")
    expected = (visual.shape[0], *visual.shape[2:])
    if tuple(mask.shape) != expected:
        raise ValueError(f"mask: expected (N, h, w) = {expected}, got {tuple(mask.shape)}")
    if mask.requires_grad:
        raise ValueError("mask: expected a tensor without gradient; there is none with respect to the mask")
    if mask.device != visual.device:
        raise ValueError(f"mask: expected device {visual.device} to match visual, got {mask.device}")
    if not torch.compiler.is_compiling():  # a compiled graph cannot raise on values: NaN for such an image there
        if mask.numel() and (mask < 0).any():
            raise ValueError(f"mask: expected weights >= 0, got a minimum of {mask.min().item()}")
        if not torch.isfinite(mask).all():
            raise ValueError("mask: expected finite weights, got NaN or infinity")
        empty = (mask.flatten(1).sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"mask: expected at least one cell with weight in every image, none in image {empty[0]}")


def _mean_similarity(visual, audio, mask):
    with without_autocast(visual):
        weight = None
        if mask is not None:
            weight = mask.to(accumulate_dtype(visual))
            weight = weight / weight.sum((1, 2), keepdim=True)
        return mean_vector(visual, weight) @ mean_vector(audio[:, :, None, None]).t()  # one cell: its unit vector


# ---- the torch.library op ----


def _call(visual, audio, pooling, positives):
    keep = torch.is_grad_enabled() and (visual.requires_grad or audio.requires_grad) and not on_cuda(visual)
    soft = isinstance(pooling, SoftThreshold)
    epsilon, beta = (pooling.epsilon, pooling.beta) if soft else (0.0, 1.0)
    return _pooled_similarity(
        visual, audio, "soft_threshold" if soft else "max", epsilon, beta, positives, keep and soft
    )


POOLINGS = {"soft_threshold": 0, "max": 1}  # in the order of csrc/params.h


def _outputs(visual, audio, pooling, positives, keep):
    """scores, positive map, what the pooling keeps of a pair, 1 / |visual|, kept alphas"""
    images, _, height, width = visual.shape
    audios, cells, dtype = audio.shape[0], height * width, accumulate_dtype(visual)
    return (
        visual.new_empty(images, audios, dtype=dtype),
        visual.new_empty(images if positives is not None else 0, cells, dtype=dtype),
        visual.new_empty(images, audios, dtype=torch.int32 if pooling == "max" else dtype),
        visual.new_empty(images, cells, dtype=dtype),
        visual.new_empty(kept_shape(visual, audios, keep), dtype=dtype),
    )


@library.op("pooled_similarity")
def _pooled_similarity(
    visual: Tensor, audio: Tensor, pooling: str, epsilon: float, beta: float, positives: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # on a GPU, torch's own check of an index: this one would wait for it
    if (
        positives is not None
        and positives.numel()
        and not on_cuda(positives)
        and not (positives.min() >= 0 and positives.max() < len(audio))
    ):
        raise ValueError(f"positives: expected columns in [0, {len(audio)}), got {positives.min()}..{positives.max()}")
    visual = visual.contiguous(memory_format=memory_format(visual))
    audio = audio.contiguous()
    scores, maps, pair, inverse_norm, kept = outputs = _outputs(visual, audio, pooling, positives, keep)
    if not scores.numel():
        pass
    elif on_cuda(visual):
        with kernels_for(visual) as place:
            pairs = Pairs(visual, audio, inverse_norm, *place)
            for first, _ in chunks(pairs, new_norms=True):
                _run_cuda(pairs, first, pooling, epsilon, beta, scores, pair)
        if positives is not None:
            maps.copy_(_cosine_map.function(visual, audio[positives])[0])
    else:
        extension.similarity(
            kernel_shape(visual, len(audio)),
            (address(visual), address(audio), address(inverse_norm), address(kept), 0, 0),
            pooling=POOLINGS[pooling],
            epsilon=epsilon,
            beta=beta,
            kept=kept_images(kept, visual, len(audio)),
            positives=address(positives),
            positive_map=address(maps),
            scores=address(scores),
            pair=address(pair),
            threads=torch.get_num_threads(),
        )
    return outputs


def _run_cuda(pairs, first, pooling, epsilon, beta, scores, pair, **gradient):
    pairs.kernels.similarity(
        pairs.pairs,
        pooling=POOLINGS[pooling],
        epsilon=epsilon,
        beta=beta,
        scores=address(scores, first),
        kept=address(pair, first),
        **gradient,
        **pairs.where,
    )


@_pooled_similarity.register_fake
def _(visual, audio, pooling, epsilon, beta, positives, keep):
    return _outputs(visual, audio, pooling, positives, keep)


def _gradients(visual, audio, need_visual, need_audio):
    return (
        torch.empty_like(visual, memory_format=memory_format(visual)) if need_visual else visual.new_empty(0),
        torch.empty_like(audio, memory_format=torch.contiguous_format) if need_audio else audio.new_empty(0),
    )


def _backward_cuda(
    grad_scores, visual, audio, pooling, epsilon, beta, scores, pair, inverse_norm, grad_visual, grad_audio
):
    with kernels_for(visual) as (kernels, where):
        pairs = Pairs(visual, audio, inverse_norm, kernels, where)
        if pooling == "max":
            _gather(pairs, grad_scores, pair, grad_visual, grad_audio)
            return
        gradients = DenseGradients(pairs, grad_visual, grad_audio)
        for first, _ in chunks(pairs, row_bytes=gradients.row_bytes):
            slopes = gradients.slopes()
            _run_cuda(
                pairs,
                first,
                pooling,
                epsilon,
                beta,
                scores,
                pair,
                grad_scores=address(grad_scores, first),
                slopes=address(slopes),
            )
            gradients.add(first, slopes)
        gradients.finish()


def _add_map_gradients(grad_map, visual, audio, positives, maps, inverse_norm, grad_visual, grad_audio):
    """To both gradients (None: not wanted), those of the map of each image with its positive; within the workspace."""
    own, sums = audio[positives], maps.new_zeros(audio.shape)
    step = max(1, rows.WORKSPACE_BYTES // visual[0].nbytes)
    for first in range(0, len(visual), step):
        part = slice(first, first + step)
        of_visual, of_audio = _cosine_map_backward.function(
            grad_map[part],
            visual[part],
            own[part],
            maps[part],
            inverse_norm[part],
            grad_visual is not None,
            grad_audio is not None,
        )
        if grad_visual is not None:
            grad_visual[part] += of_visual
        if grad_audio is not None:
            sums.index_put_((positives[part],), of_audio, accumulate=True)
    if grad_audio is not None:
        grad_audio += sums


def _gather(pairs, grad_scores, best, grad_visual, grad_audio):
    kernels, where = pairs.kernels, pairs.where
    sums = None if grad_audio is None else pairs.audio_norm.new_zeros(pairs.audios, pairs.width)
    visual = None if grad_visual is None else VisualGradient(pairs, grad_visual)
    for first, _ in chunks(pairs, row_bytes=visual.row_bytes if visual else 0):
        of_chunk = {"grad_scores": address(grad_scores, first), "best": address(best, first)}
        if visual:
            gradient = visual.of_chunk(first)
            kernels.gather_visual(
                pairs.pairs, **of_chunk, gradient=address(gradient), real_gradient=pairs.is_real(gradient), **where
            )
            visual.write(first, gradient)
        if grad_audio is not None:
            kernels.gather_audio(pairs.pairs, **of_chunk, sums=address(sums), **where)
    if grad_audio is not None:
        pairs.write_audio(sums, grad_audio)


@library.op("pooled_similarity_backward")
def _pooled_similarity_backward(
    grad_scores: Tensor,
    grad_map: Tensor | None,
    visual: Tensor,
    audio: Tensor,
    pooling: str,
    epsilon: float,
    beta: float,
    positives: Tensor | None,
    scores: Tensor,
    maps: Tensor,
    pair: Tensor,
    inverse_norm: Tensor,
    kept: Tensor,
    need_visual: bool,
    need_audio: bool,
) -> tuple[Tensor, Tensor]:
    check_kept(kept, visual.dtype == torch.float64)
    grad_scores, audio = grad_scores.contiguous(), audio.contiguous()
    grad_map = None if grad_map is None else grad_map.contiguous()
    visual = visual.contiguous(memory_format=memory_format(visual))
    grads = _gradients(visual, audio, need_visual, need_audio)
    if not scores.numel():
        return tuple(grad.zero_() for grad in grads)
    if on_cuda(visual):
        wanted = grads[0] if need_visual else None, grads[1] if need_audio else None
        _backward_cuda(grad_scores, visual, audio, pooling, epsilon, beta, scores, pair, inverse_norm, *wanted)
        if grad_map is not None:
            _add_map_gradients(grad_map, visual, audio, positives, maps, inverse_norm, *wanted)
        return grads
    extension.similarity(
        kernel_shape(visual, len(audio)),
        (
            address(visual),
            address(audio),
            address(inverse_norm),
            address(kept),
            address(grads[0]) if need_visual else 0,
            address(grads[1]) if need_audio else 0,
        ),
        pooling=POOLINGS[pooling],
        epsilon=epsilon,
        beta=beta,
        kept=kept_images(kept, visual, len(audio)),
        positives=address(positives),
        positive_map=address(maps),
        scores=address(scores),
        pair=address(pair),
        grad_scores=address(grad_scores),
        grad_map=address(grad_map),
        threads=torch.get_num_threads(),
    )
    return grads


@_pooled_similarity_backward.register_fake
def _(
    grad_scores,
    grad_map,
    visual,
    audio,
    pooling,
    epsilon,
    beta,
    positives,
    scores,
    maps,
    pair,
    inverse_norm,
    kept,
    need_visual,
    need_audio,
):
    return _gradients(visual, audio, need_visual, need_audio)


def _setup_context(ctx, inputs, output):
    visual, audio, ctx.pooling, ctx.epsilon, ctx.beta, positives, _ = inputs
    ctx.save_for_backward(visual, audio, positives, *output)
    ctx.mark_non_differentiable(*output[2:])
    if ctx.pooling == "max":
        ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_scores, grad_map, *_):
    none = (None,) * 5
    if grad_scores is None and grad_map is None:
        return None, None, *none
    visual, audio, positives, scores, *rest = ctx.saved_tensors
    need_visual, need_audio = ctx.needs_input_grad[:2]
    grad_scores = torch.zeros_like(scores) if grad_scores is None else grad_scores
    grad_visual, grad_audio = _pooled_similarity_backward(
        grad_scores,
        grad_map,
        visual,
        audio,
        ctx.pooling,
        ctx.epsilon,
        ctx.beta,
        positives,
        scores,
        *rest,
        need_visual,
        need_audio,
    )
    return grad_visual if need_visual else None, grad_audio if need_audio else None, *none


_pooled_similarity.register_autograd(_backward, setup_context=_setup_context)
