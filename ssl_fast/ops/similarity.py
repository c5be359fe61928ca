"""All-pairs cosine similarity maps, pooled over the cells of each image (LVS, MarginNCE, EZ-VSL, SSL-Align)."""

import functools

import torch
from torch import Tensor

from . import cuda_chunks, kernels, library
from .checks import autocast_inputs, check_pair, check_tensor, use_compiled, without_autocast
from .cosine import _cosine_map, _cosine_map_backward, cosine_map_reference
from .cuda_chunks import DenseGradients, Space, VisualGradient, for_chunks
from .kernels import buffer, dense, dense_audio, empty_gradients, rows_of
from .mean import mean_vector
from .poolings import KERNEL_POOLINGS, Max, Mean, Pooling, SoftThreshold
from .reference import accumulate_dtype, similarity_maps, unit
from .tokens import TokenPooling, check_tokens, fill_masked, scoring_of


def pooled_similarity_reference(visual: Tensor, audio: Tensor, pooling: Pooling) -> Tensor:
    return pooling.reference(similarity_maps(visual, audio))


def pooled_similarity(
    visual: Tensor,
    audio: Tensor,
    pooling: Pooling,
    *,
    tokens: TokenPooling | None = None,
    visual_mask: Tensor | None = None,
    heads: int = 1,
    head_pooling: str = "elementwise_max",
    normalize: bool = True,
    nonnegative: bool = False,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """`pool(einsum("nchw,mc->nmhw", F.normalize(visual, dim=1), F.normalize(audio, dim=1)))`, without the N x M x h x w
    map; with audio tokens `pool_t(pool_p(einsum("nchw,mct->nmthw", ...)))`, without the N x M x T x h x w map.

    Args:
        visual: raw features (N, C, h, w); float32, bfloat16, float16 or float64, channels first or last.
        audio: raw features (M, C), or (M, C, T) of T tokens a clip, same dtype and device.
        pooling: of the cells, one of `ops.poolings`: `Mean(mask=None)`, `SoftThreshold(epsilon=.65, beta=.03)`, `Max()`
            ...
        tokens: pooling of the tokens, after that of the cells: `TokenMean(mask)` or `TokenMax(mask)`.
        visual_mask: (N, h, w) bool, the cells to pool, as of padded images (default: all).
        heads: groups of C / heads channels; each has its own products.
        head_pooling: "elementwise_max", for every cell and token first (DenseAV), or "max" or "sum" of the scores of
        the
            heads, last.
        normalize: cosines of whole vectors, whose heads sum to the cosine; False: dot products of the features.
        nonnegative: products below 0 count as 0.
        bias: (N, M) or (N, M, heads), added to the products of a pair, as those of class tokens.
        backend: "auto" (the compiled kernel where there is one), "compiled" (RuntimeError where there is none) or
            "reference" (plain PyTorch).

    Returns:
        S (N, M); float32, or float64 for float64 inputs. A zero vector has cosine 0 and gradient 0; NaN in a pair gives
        NaN for that pair. Same input, number of threads and machine: same bits, forward and backward. On a CPU, S has
        the same bits for every number of threads too, but for `Mean`, which ends in a product of torch's. On CUDA, of
        16-bit features, a pass whose cosines are kept for a backward pass pools them in steps of 3e-5.

    Kernels pool one head's cells, so memory beyond inputs and gradients is heads x N x M x T. What they cannot pool
    computes the maps of a few images at a time with plain PyTorch, once more in the backward pass: element-wise maxima
    of heads, `nonnegative` or `bias` with another pooling than `Max`, and `visual_mask` with another than `Max` or
    `Mean`.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not match; a mask of wrong shape, or empty for an
        image or a clip.
    """
    check_pair(visual, audio, tokens=True)
    visual, audio = autocast_inputs(visual, audio, normalize=normalize)
    if not isinstance(pooling, Pooling):
        *names, last = (f"ops.{pooling.__name__}" for pooling in (Mean, *KERNEL_POOLINGS.values()))
        raise TypeError(f"pooling: expected {', '.join(names)} or {last}, got {pooling!r}")
    if isinstance(pooling, Mean) and pooling.mask is not None:
        _check_mask(pooling.mask, visual)
    if tokens is not None or audio.dim() == 3:
        check_tokens(tokens, audio)
    compiled = use_compiled(backend, visual)
    if audio.dim() == 2 and visual_mask is None and bias is None and heads == 1 and normalize and not nonnegative:
        return _cell_scores(visual, audio, pooling) if compiled else pooled_similarity_reference(visual, audio, pooling)
    if visual_mask is not None:
        if isinstance(pooling, Mean) and pooling.mask is not None:
            raise ValueError("visual_mask: expected none beside the mask of ops.Mean")
        check_visual_mask(visual_mask, visual)
    scoring = scoring_of(visual, audio, pooling, tokens, visual_mask, heads, head_pooling, nonnegative, bias)
    audio = audio[..., None] if audio.dim() == 2 else audio
    if normalize and not (compiled and heads == 1 and scoring.by_head):  # else by the kernels
        visual, audio, normalize = unit(visual), unit(audio), False
    if not compiled:
        return scoring.reference(visual, audio)
    if not scoring.by_head:
        return scoring.in_chunks(visual, audio)
    if visual_mask is not None and isinstance(pooling, Max):
        visual = fill_masked(visual, visual_mask)
    elif visual_mask is not None:
        pooling = Mean(visual_mask)
    scores = _cell_scores(visual, audio, pooling, normalize, heads)
    return scoring.of_heads(scores.view(heads, len(visual), len(audio), audio.shape[2]))


def _cell_scores(visual: Tensor, audio: Tensor, pooling: Pooling, normalized: bool = True, heads: int = 1) -> Tensor:
    """S (N, M) of visual (N, C, h, w) and audio (M, C), from the kernels; (heads * N, M * T) of audio (M, C, T)."""
    if not isinstance(pooling, Mean):
        return _pooled_similarity(visual, audio, *_options(visual, audio, pooling, None, normalized, heads))[0]
    rows = audio if audio.dim() == 2 else audio.transpose(1, 2).flatten(0, 1)
    if heads == 1:
        return _mean_similarity(visual, rows, pooling.mask, normalized)
    of_heads = zip(visual.chunk(heads, 1), rows.chunk(heads, 1))
    return torch.cat([_mean_similarity(*features, pooling.mask, normalized) for features in of_heads])


def similarity_and_map(
    visual: Tensor, audio: Tensor, pooling: SoftThreshold | Max, positives: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`pooled_similarity`, and `cosine_map(visual, audio[positives])`, in one pass over the features.

    positives: the audio of each image, int64 (N,). Returns S (N, M) and alpha (N, h, w), both differentiable; alpha is
    not with `Max`, as the gather of a maximum has no place for a gradient of the map.
    """
    check_pair(visual, audio)
    visual, audio = autocast_inputs(visual, audio)
    if not isinstance(pooling, SoftThreshold | Max):
        raise TypeError(f"pooling: expected ops.SoftThreshold or ops.Max, got {pooling!r}")
    check_tensor("positives", positives)
    if positives.shape != visual.shape[:1] or positives.dtype != torch.int64:
        raise ValueError(
            f"positives: expected int64 ({visual.shape[0]},), got {positives.dtype} {tuple(positives.shape)}"
        )
    if not use_compiled(backend, visual):
        maps = cosine_map_reference(visual, audio[positives])
        return pooled_similarity_reference(visual, audio, pooling), maps.detach() if pooling.sparse else maps
    scores, maps = _pooled_similarity(visual, audio, *_options(visual, audio, pooling, positives))[:2]
    return scores, maps.view(visual.shape[0], *visual.shape[2:])


def check_visual_mask(mask: Tensor, visual: Tensor) -> None:
    """(N, h, w) bool, of the cells to pool; ValueError, TypeError."""
    if isinstance(mask, Tensor) and mask.dtype != torch.bool:
        raise TypeError(f"visual_mask: expected bool, got {mask.dtype}")
    _check_mask(mask, visual, "visual_mask")


def _check_mask(mask, visual, name="mask"):
    check_tensor(name, mask)
    expected = (visual.shape[0], *visual.shape[2:])
    if tuple(mask.shape) != expected:
        raise ValueError(f"{name}: expected (N, h, w) = {expected}, got {tuple(mask.shape)}")
    if mask.requires_grad:
        raise ValueError(f"{name}: expected a tensor without gradient; there is none with respect to the mask")
    if mask.device != visual.device:
        raise ValueError(f"{name}: expected device {visual.device} to match visual, got {mask.device}")
    if not torch.compiler.is_compiling():  # a compiled graph cannot raise on values: NaN for such an image there
        if mask.numel() and (mask < 0).any():
            raise ValueError(f"{name}: expected weights >= 0, got a minimum of {mask.min().item()}")
        if not torch.isfinite(mask).all():
            raise ValueError(f"{name}: expected finite weights, got NaN or infinity")
        empty = (mask.flatten(1).sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"{name}: expected at least one cell with weight in every image, none in image {empty[0]}")


def _mean_similarity(visual, audio, mask, normalized):
    with without_autocast(visual):
        weight, dtype = None, accumulate_dtype(visual)
        if mask is not None:
            weight = mask.to(dtype)
            weight = weight / weight.sum((1, 2), keepdim=True)
        if not normalized:
            cells = visual.mean((2, 3), dtype=dtype) if weight is None else (visual * weight[:, None]).sum((2, 3))
            return cells @ audio.to(dtype).t()
        return mean_vector(visual, weight) @ mean_vector(audio[:, :, None, None]).t()  # one cell: its unit vector


# ---- the torch.library op ----


def _options(visual, audio, pooling, positives, normalized=True, heads=1):
    """Arguments of the op besides the features; alphas are cached where a backward pass will need them."""
    backward = torch.is_grad_enabled() and (visual.requires_grad or audio.requires_grad)
    cached = backward and not pooling.sparse
    if cached and kernels.runs_on_cuda(visual):  # dot products may be beyond the range of 16-bit fixed point
        cached = normalized and (visual.dtype.itemsize > 2 or pooling.parameters[-1] >= kernels.CACHED_DIVISOR)
    return pooling.kind, pooling.parameters, normalized, positives, cached, heads


def _outputs(visual, audio, kind, positives, cached, heads):
    """scores, positive map, residual of the pooling, 1 / |visual|, cached alphas; the images of a head follow those of
    the head before it"""
    images, audios, cells = heads * visual.shape[0], rows_of(audio), visual.shape[2] * visual.shape[3]
    dtype = accumulate_dtype(visual)
    return (
        visual.new_empty(images, audios, dtype=dtype),
        visual.new_empty(images if positives is not None else 0, cells, dtype=dtype),
        visual.new_empty(images, audios, dtype=torch.int32 if KERNEL_POOLINGS[kind].sparse else dtype),
        visual.new_empty(images, cells, dtype=dtype),
        kernels.empty_cache(visual, audios, cached, heads=heads),
    )


@library.op("pooled_similarity")
def _pooled_similarity(
    visual: Tensor,
    audio: Tensor,
    kind: str,
    parameters: list[float],
    normalized: bool,
    positives: Tensor | None,
    cached: bool,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    on_cuda = kernels.runs_on_cuda(visual)
    visual, audio = dense(visual), dense_audio(audio)
    if positives is not None:
        # which columns: see csrc/module.cpp, on a GPU torch's own check of an index
        if len(positives) and not len(audio):
            raise ValueError("positives: expected columns in [0, 0), as there is no audio")
        positives = positives.contiguous()
    outputs = _outputs(visual, audio, kind, positives, cached, heads)
    if outputs[0].numel():
        forward = _forward_cuda if on_cuda else _forward_cpu
        for head in range(heads):
            saved = outputs if heads == 1 else _of_head(visual, audio, heads, head, *outputs)
            forward(visual, audio, kind, parameters, normalized, positives, heads, head, *saved)
    return outputs


@_pooled_similarity.register_fake
def _(visual, audio, kind, parameters, normalized, positives, cached, heads):
    return _outputs(visual, audio, kind, positives, cached, heads)


def _of_head(visual, audio, heads, head, scores, maps, residual, inverse_norm, alphas):
    """Of `_outputs`, the images of one head."""
    first, end = head * len(visual), (head + 1) * len(visual)
    rows = kernels.cache_rows(visual, rows_of(audio))
    return scores[first:end], maps, residual[first:end], inverse_norm[first:end], alphas[first * rows : end * rows]


def _call_cpu(
    name,
    visual,
    audio,
    kind,
    parameters,
    normalized,
    positives,
    heads,
    head,
    scores,
    maps,
    residual,
    inverse_norm,
    alphas,
    grad_visual=None,
    grad_audio=None,
    **upstream,
):
    """The forward or the backward pass of one head; features as they lie in memory."""
    module, audios = kernels.extension, rows_of(audio)
    getattr(module, name)(
        kernels.shape_of(module, visual, audios, None, normalized, audio=audio, heads=heads, head=head),
        kernels.features_of(module, visual, audio, inverse_norm, alphas, grad_visual, grad_audio),
        pooling=getattr(module.Pooling, kind),
        parameters=parameters,
        cached_images=kernels.cached_images(alphas, visual, audios),
        positives=buffer(positives),
        positive_map=buffer(maps),
        scores=buffer(scores),
        residual=buffer(residual),
        threads=kernels.threads_for(kernels.product_flops(visual, audios) / heads),
        **upstream,
    )


_forward_cpu = functools.partial(_call_cpu, "similarity_forward")


def _forward_cuda(visual, audio, kind, parameters, normalized, positives, heads, head, *saved):
    scores, maps, residual, inverse_norm, alphas = saved
    with kernels.launch_on(visual) as launch:
        space = Space(launch, visual, audio, inverse_norm, normalized, heads, head)
        pooling = getattr(launch.kernels.Pooling, kind)
        cached = kernels.cached_images(alphas, visual, space.audios)

        def pool(chunk):
            launch.kernels.pool_forward(
                chunk.pairs,
                pooling=pooling,
                parameters=parameters,
                scores=buffer(scores, chunk.first),
                residual=buffer(residual, chunk.first),
                cached=buffer(alphas, chunk.first * space.cells) if chunk.first < cached else None,
                cached_images=min(max(cached - chunk.first, 0), chunk.images),
                **launch.args,
            )

        for_chunks([space], pool, first_pass=True)
    if positives is not None:
        maps.copy_(_cosine_map.function(visual, audio[positives])[0])


@library.op("pooled_similarity_backward", outside=4)
def _pooled_similarity_backward(
    grad_scores: Tensor,
    grad_map: Tensor | None,
    visual: Tensor,
    audio: Tensor,
    kind: str,
    parameters: list[float],
    normalized: bool,
    positives: Tensor | None,
    scores: Tensor,
    maps: Tensor,
    residual: Tensor,
    inverse_norm: Tensor,
    alphas: Tensor,
    need_visual: bool,
    need_audio: bool,
    heads: int,
) -> tuple[Tensor, Tensor]:
    kernels.check_cache(alphas, visual)
    visual, audio, grad_scores = dense(visual), dense_audio(audio), grad_scores.contiguous()
    grad_map = None if grad_map is None else grad_map.contiguous()
    positives = None if positives is None else positives.contiguous()
    gradients = empty_gradients(visual, audio, need_visual, need_audio)
    if not scores.numel():
        return gradients[0].zero_(), gradients[1].zero_()
    backward = _backward_cuda if kernels.runs_on_cuda(visual) else _backward_cpu
    wanted = [gradient if need else None for gradient, need in zip(gradients, (need_visual, need_audio))]
    for head, upstream in enumerate(grad_scores.chunk(heads) if heads > 1 else [grad_scores]):
        saved = scores, maps, residual, inverse_norm, alphas
        saved = saved if heads == 1 else _of_head(visual, audio, heads, head, *saved)
        pooling = kind, parameters, normalized, positives, heads, head
        backward(upstream, grad_map, visual, audio, *pooling, *saved, *wanted)
    return gradients


@_pooled_similarity_backward.register_fake
def _(grad_scores, grad_map, visual, audio, kind, parameters, normalized, positives, *rest):
    return empty_gradients(visual, audio, *rest[-3:-1])


def _backward_cpu(grad_scores, grad_map, *arguments):
    _call_cpu("similarity_backward", *arguments, grad_scores=buffer(grad_scores), grad_map=buffer(grad_map))


def _backward_cuda(
    grad_scores,
    grad_map,
    visual,
    audio,
    kind,
    parameters,
    normalized,
    positives,
    heads,
    head,
    scores,
    maps,
    residual,
    inverse_norm,
    alphas,
    grad_visual,
    grad_audio,
):
    with kernels.launch_on(visual) as launch:
        space = Space(launch, visual, audio, inverse_norm, normalized, heads, head)
        if KERNEL_POOLINGS[kind].sparse:
            _sparse_gradients(space, grad_scores, residual, grad_visual, grad_audio)
        else:
            pooling = getattr(launch.kernels.Pooling, kind)
            gradients = DenseGradients(space, grad_visual, grad_audio)
            cached = kernels.cached_images(alphas, visual, space.audios)

            def add(chunk):
                slopes = space.matrix(chunk.images)
                launch.kernels.pool_slopes(
                    chunk.pairs,
                    pooling=pooling,
                    parameters=parameters,
                    scores=buffer(scores, chunk.first),
                    residual=buffer(residual, chunk.first),
                    grad_scores=buffer(grad_scores, chunk.first),
                    slopes=buffer(slopes),
                    cached=buffer(alphas, chunk.first * space.cells) if chunk.first < cached else None,
                    **launch.args,
                )
                gradients.add(chunk, slopes)

            for_chunks([space], add, row_bytes=gradients.row_bytes, cached_images=cached)
            gradients.finish()
    if grad_map is not None:
        _add_map_gradients(grad_map, visual, audio, positives, maps, inverse_norm, grad_visual, grad_audio)


def _sparse_gradients(space, grad_scores, argmax, grad_visual, grad_audio):
    """Gradients of a pooling whose residual is the one cell of a pair that has a gradient."""
    launch = space.launch
    sums = None if grad_audio is None else space.audio_norm.new_zeros(space.audios, space.width)
    visual = None if grad_visual is None else VisualGradient(space, grad_visual)

    def add(chunk):
        of_chunk = {"grad_scores": buffer(grad_scores, chunk.first), "argmax": buffer(argmax, chunk.first)}
        if visual:
            rows = visual.rows(chunk)
            launch.kernels.max_backward_visual(
                chunk.pairs, **of_chunk, gradient=buffer(rows), real_gradient=space.is_real(rows), **launch.args
            )
            visual.write(chunk, rows)
        if sums is not None:
            launch.kernels.max_backward_audio(chunk.pairs, **of_chunk, sums=buffer(sums), **launch.args)

    for_chunks([space], add, row_bytes=visual.row_bytes if visual else 0)
    if sums is not None:
        space.write_audio(sums, grad_audio)


def _add_map_gradients(grad_map, visual, audio, positives, maps, inverse_norm, grad_visual, grad_audio):
    """To both gradients (None: not wanted), those of the map of each image with its positive; within the workspace."""
    own, sums = audio[positives], maps.new_zeros(audio.shape)
    step = max(1, cuda_chunks.WORKSPACE_BYTES // visual[0].nbytes)
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


def _setup_context(ctx, inputs, output):
    visual, audio, ctx.kind, ctx.parameters, ctx.normalized, positives, _, ctx.heads = inputs
    ctx.save_for_backward(visual, audio, positives, *output)
    ctx.mark_non_differentiable(*output[2:])
    if KERNEL_POOLINGS[ctx.kind].sparse:
        ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_scores, grad_map, *_):
    none = (None,) * 6
    if grad_scores is None and grad_map is None:
        return None, None, *none
    visual, audio, positives, scores, *rest = ctx.saved_tensors
    need_visual, need_audio = ctx.needs_input_grad[:2]
    grad_scores = torch.zeros_like(scores) if grad_scores is None else grad_scores
    pooling = ctx.kind, ctx.parameters, ctx.normalized, positives
    grad_visual, grad_audio = _pooled_similarity_backward(
        grad_scores, grad_map, visual, audio, *pooling, scores, *rest, need_visual, need_audio, ctx.heads
    )
    return grad_visual if need_visual else None, grad_audio if need_audio else None, *none


_pooled_similarity.register_autograd(_backward, setup_context=_setup_context, outputs=2)
