"""Symmetric late interaction (FILIP, ColBERT, DenseAV): the best cell of every token, the best token of every cell."""

import torch
from torch import Tensor

from . import kernels, library
from .checks import autocast_inputs, check_pair, use_compiled
from .kernels import buffer, dense, dense_audio, empty_cache, rows_of
from .poolings import Max
from .reference import accumulate_dtype, unit
from .similarity import _pooled_similarity, _pooled_similarity_backward, check_visual_mask, pooled_similarity
from .tokens import TokenMean, check_tokens, fill_masked, scoring_of


def late_interaction(
    visual: Tensor,
    audio: Tensor,
    *,
    visual_mask: Tensor | None = None,
    audio_mask: Tensor | None = None,
    heads: int = 1,
    head_pooling: str = "elementwise_max",
    normalize: bool = True,
    nonnegative: bool = False,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scores of all pairs of images and clips, in both directions of late interaction.

        by_token[n, m] = mean over tokens t of clip m of  max over cells p of image n of  alpha[n, m, p, t]
        by_cell[n, m]  = mean over cells p of image n of  max over tokens t of clip m of  alpha[n, m, p, t]

    FILIP (ICLR 2022) contrasts images with `by_cell` and clips with `by_token`; ColBERT sums over the tokens of a
    query, the mean times their number; DenseAV's "paired" score is half of both.

    visual (N, C, h, w); audio (M, C, T). visual_mask (N, h, w) bool and audio_mask (M, T) bool: the cells and tokens
    that count (default: all). Other arguments, dtypes and errors as in `ops.pooled_similarity`. Returns two (N, M).
    """
    check_pair(visual, audio, tokens=True)
    if audio.dim() != 3:
        raise ValueError(f"audio: expected (M, C, T), got {tuple(audio.shape)}")
    visual, audio = autocast_inputs(visual, audio, normalize=normalize)
    of_tokens = TokenMean(audio_mask)
    check_tokens(of_tokens, audio, "audio_mask")
    if audio_mask is not None and audio_mask.dtype != torch.bool:
        raise TypeError(f"audio_mask: expected bool, got {audio_mask.dtype}")
    if visual_mask is not None:
        check_visual_mask(visual_mask, visual)
    of_cells = TokenMean(None if visual_mask is None else visual_mask.flatten(1))
    options = None, heads, head_pooling, nonnegative
    by_token = scoring_of(visual, audio, Max(), of_tokens, *options, bias)
    exchanged_bias = None if bias is None else bias.transpose(0, 1)
    if not use_compiled(backend, visual):
        given = {"heads": heads, "head_pooling": head_pooling, "normalize": normalize, "nonnegative": nonnegative}
        given["backend"] = backend
        masks = visual_mask, None if audio_mask is None else audio_mask.unsqueeze(-1)
        return (
            pooled_similarity(visual, audio, Max(), tokens=of_tokens, visual_mask=masks[0], bias=bias, **given),
            pooled_similarity(
                *_exchanged(visual, audio), Max(), tokens=of_cells, visual_mask=masks[1], bias=exchanged_bias, **given
            ).t(),
        )
    by_cell = scoring_of(*_exchanged(visual, audio), Max(), of_cells, *options, exchanged_bias)
    if normalize and heads > 1:
        visual, audio, normalize = unit(visual), unit(audio), False
    if visual_mask is not None:
        visual = fill_masked(visual, visual_mask)
    if audio_mask is not None:
        audio = fill_masked(audio.unsqueeze(-1), audio_mask.unsqueeze(-1)).squeeze(-1)
    best_cells, _, _, best_tokens, _, _ = _late_interaction(visual, audio, normalize, heads)
    (images, *_, height, width), (clips, _, length) = visual.shape, audio.shape
    return (
        by_token.of_heads(best_cells.view(heads, images, clips, length)),
        by_cell.of_heads(best_tokens.view(heads, clips, images, height * width)).t(),
    )


def _exchanged(visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """The roles exchanged: a clip is an image of T x 1 cells, an image a clip of h w tokens."""
    return audio.unsqueeze(-1), visual.flatten(2)


# ---- the torch.library op: both directions from one product ----


def _outputs(visual, audio, heads):
    """Of both directions: scores, argmax, 1 / length, as of `pooled_similarity`."""
    dtype = accumulate_dtype(visual)

    def of(visual, audio):
        images, rows = heads * visual.shape[0], rows_of(audio)
        return (
            visual.new_empty(images, rows, dtype=dtype),
            visual.new_empty(images, rows, dtype=torch.int32),
            visual.new_empty(images, visual.shape[2] * visual.shape[3], dtype=dtype),
        )

    return *of(visual, audio), *of(*_exchanged(visual, audio))


@library.op("late_interaction")
def _late_interaction(
    visual: Tensor, audio: Tensor, normalized: bool, heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if kernels.runs_on_cuda(visual):
        options = "max", [], normalized, None, False, heads
        scores, _, argmax, norm, _ = _pooled_similarity.function(visual, audio, *options)
        back, _, back_argmax, back_norm, _ = _pooled_similarity.function(*_exchanged(visual, audio), *options)
        return scores, argmax, norm, back, back_argmax, back_norm
    visual, audio = dense(visual), dense_audio(audio)
    outputs = _outputs(visual, audio, heads)
    for head in range(heads if outputs[0].numel() else 0):
        scores, argmax, norm, back, back_argmax, back_norm = (x.chunk(heads)[head] for x in outputs)
        with kernels.launch_on(visual, kernels.product_flops(visual, rows_of(audio))) as launch:
            launch.kernels.similarity_forward(
                kernels.shape_of(
                    launch.kernels, visual, rows_of(audio), None, normalized, audio=audio, heads=heads, head=head
                ),
                kernels.features_of(launch.kernels, visual, audio, norm, empty_cache(visual, 0, False)),
                pooling=launch.kernels.Pooling.max,
                parameters=[],
                cached_images=0,
                positives=None,
                positive_map=None,
                scores=buffer(scores),
                residual=buffer(argmax),
                clip=audio.shape[2],
                clip_scores=buffer(back),
                clip_argmax=buffer(back_argmax),
                audio_inverse_norm=buffer(back_norm),
                **launch.args,
            )
    return outputs


@_late_interaction.register_fake
def _(visual, audio, normalized, heads):
    return _outputs(visual, audio, heads)


def _setup_context(ctx, inputs, output):
    visual, audio, ctx.normalized, ctx.heads = inputs
    ctx.save_for_backward(visual, audio, *output)
    ctx.mark_non_differentiable(*output[1:3], *output[4:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_scores, _argmax, _norm, grad_back, *_):
    visual, audio, *saved = ctx.saved_tensors
    need_visual, need_audio = ctx.needs_input_grad[:2]

    def gradients(grad, features, saved, needs):
        if grad is None:
            return None, None
        scores, argmax, norm = saved
        no_maps, no_alphas = scores.new_empty(0), empty_cache(features[0], rows_of(features[1]), False)
        residuals = scores, no_maps, argmax, norm, no_alphas
        options = "max", [], ctx.normalized, None
        found = _pooled_similarity_backward(grad, None, *features, *options, *residuals, *needs, ctx.heads)
        return [x if need else None for x, need in zip(found, needs)]

    of_visual, of_audio = gradients(grad_scores, (visual, audio), saved[:3], (need_visual, need_audio))
    back_audio, back_visual = gradients(grad_back, _exchanged(visual, audio), saved[3:], (need_audio, need_visual))
    back_visual = None if back_visual is None else back_visual.view(visual.shape)
    back_audio = None if back_audio is None else back_audio.squeeze(-1)
    return _sum(of_visual, back_visual), _sum(of_audio, back_audio), None, None


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


_late_interaction.register_autograd(_backward, setup_context=_setup_context)
