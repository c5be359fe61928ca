"""Cross-entropy of the rows of all-pairs scores, on a CPU: the loss, and the gradients of the features, from one pass
over the products.

The loss of an image needs no more than its row of scores. So the kernels score an image, take the loss of its row and
the gradient of that, and go on to the gradients of the features while the cosines of the image are in cache: three
products of all pairs, none computed again, and nothing saved for the backward pass but the gradients themselves.
"""

import torch
from torch import Tensor

from . import kernels, library
from .checks import autocast_inputs
from .cross_entropy import cross_entropy_backward
from .kernels import buffer, dense, empty_gradients
from .poolings import LogMeanExp, SoftThreshold
from .product import _dense, _gradients
from .reference import accumulate_dtype


def pooled_row_loss(
    visual: Tensor,
    audio: Tensor,
    pooling: SoftThreshold | LogMeanExp,
    positives: Tensor | None,
    tau: float,
    margin: float,
    background: tuple[float, float] | None = None,
) -> Tensor:
    """`fused_cross_entropy(pooled_similarity(visual, audio, pooling), positives, tau, margin, rows=True,
    columns=False)`, with the gradients of the features computed beside it.

    visual (N, C, h, w), audio (M, C), of which `check_pair` found nothing wrong; positives (N,) or None: the diagonal.
    background: epsilon and beta of the option `maps`, which are those of the positives.
    """
    visual, audio = autocast_inputs(visual, audio)
    if background is not None and positives is None:
        positives = torch.arange(len(visual), device=visual.device)
    options = pooling.kind, pooling.parameters, float(tau), float(margin), list(map(float, background or ()))
    loss = _pooled_row_loss(visual, audio, positives, *options, visual.requires_grad, audio.requires_grad)[0]
    return loss.clone()  # the loss itself is saved: `loss /= 2` would change it


def product_row_loss(
    visual_loc: Tensor,
    visual_avc: Tensor,
    audio_loc: Tensor,
    audio_avc: Tensor,
    positives: Tensor | None,
    *,
    tau: float,
    reduce: str,
) -> Tensor:
    """`fused_cross_entropy(product_log_scores(..., instances="audio"), positives, 1, 0, rows=True, columns=False)`,
    with the gradients of the features, as `check_product_features` gives them, computed beside it."""
    features = visual_loc, visual_avc, audio_loc, audio_avc
    need = [any(x.requires_grad for x in both) for both in (features[:2], features[2:])]
    return _product_row_loss(*features, positives, float(tau), reduce, *need)[0].clone()  # as above


# ---- the torch.library ops: the loss, and its gradients ----


@library.op("pooled_row_loss")
def _pooled_row_loss(
    visual: Tensor,
    audio: Tensor,
    positives: Tensor | None,
    kind: str,
    parameters: list[float],
    tau: float,
    margin: float,
    background: list[float],
    need_visual: bool,
    need_audio: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    visual, audio = dense(visual), audio.contiguous()
    loss, grad_visual, grad_audio = outputs = _pooled_outputs(visual, audio, need_visual, need_audio)
    rows, cells = (len(visual), len(audio)), (len(visual), visual.shape[2] * visual.shape[3])
    scores, residual, grad_scores = loss.new_empty(3, *rows)
    inverse_norm, positive_map, grad_map = loss.new_empty(3, *cells)
    no_cache, positives = loss.new_empty(0), None if positives is None else positives.contiguous()
    # products of both passes
    with kernels.launch_on(visual, 3 * kernels.product_flops(visual, len(audio))) as launch:
        launch.kernels.similarity_row_loss(
            kernels.shape_of(launch.kernels, visual, len(audio)),
            kernels.features_of(
                launch.kernels,
                visual,
                audio,
                inverse_norm,
                no_cache,
                grad_visual if need_visual else None,
                grad_audio if need_audio else None,
            ),
            pooling=getattr(launch.kernels.Pooling, kind),
            parameters=parameters,
            positives=buffer(positives),
            positive_map=buffer(positive_map),
            scores=buffer(scores),
            residual=buffer(residual),
            grad_scores=buffer(grad_scores),
            grad_map=buffer(grad_map) if background else None,
            tau=tau,
            margin=margin,
            background=tuple(background) or None,
            loss=buffer(loss),
            **launch.args,
        )
    return outputs


def _pooled_outputs(visual, audio, need_visual, need_audio):
    loss = visual.new_empty((), dtype=accumulate_dtype(visual))
    return loss, *empty_gradients(visual, audio, need_visual, need_audio)


@_pooled_row_loss.register_fake
def _(visual, audio, *options):
    return _pooled_outputs(visual, audio, *options[-2:])


@library.op("product_row_loss")
def _product_row_loss(
    visual_loc: Tensor,
    visual_avc: Tensor,
    audio_loc: Tensor,
    audio_avc: Tensor,
    positives: Tensor | None,
    tau: float,
    reduce: str,
    need_visual: bool,
    need_audio: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    features = visual_loc, visual_avc, audio_loc, audio_avc = _dense(visual_loc, visual_avc, audio_loc, audio_avc)
    loss, *gradients = outputs = _product_outputs(visual_loc, audio_loc, need_visual, need_audio)
    wanted = [x if need else None for x, need in zip(gradients, (need_visual, need_visual, need_audio, need_audio))]
    rows, cells = (len(visual_loc), len(audio_loc)), (len(visual_loc), visual_loc.shape[2] * visual_loc.shape[3])
    scores, grad_scores = loss.new_empty(2, *rows)
    pair_norm, instance_norm = loss.new_empty(4, *rows), loss.new_empty(2, *cells)
    norm_loc, norm_avc = loss.new_empty(2, *cells)
    positives = None if positives is None else positives.contiguous()
    argmax, no_cache = loss.new_empty(rows if reduce == "max" else 0, dtype=torch.int32), loss.new_empty(0)
    with kernels.launch_on(visual_loc, 6 * kernels.product_flops(visual_loc, len(audio_loc))) as launch:
        spaces = zip(features, features[2:], (norm_loc, norm_avc), (no_cache, no_cache), wanted, wanted[2:])
        loc, avc = (kernels.features_of(launch.kernels, *of_space) for of_space in spaces)
        launch.kernels.product_row_loss(
            kernels.shape_of(launch.kernels, visual_loc, len(audio_loc)),
            loc=loc,
            avc=avc,
            tau=tau,
            reduce=getattr(launch.kernels.Reduce, reduce),
            positives=buffer(positives),
            scores=buffer(scores),
            pair_norm=buffer(pair_norm),
            instance_norm=buffer(instance_norm),
            argmax=buffer(argmax),
            grad_scores=buffer(grad_scores),
            loss=buffer(loss),
            **launch.args,
        )
    return outputs


def _product_outputs(visual, audio, need_visual, need_audio):
    loss = visual.new_empty((), dtype=accumulate_dtype(visual))
    return loss, *_gradients(visual, audio, need_visual, need_audio)


@_product_row_loss.register_fake
def _(visual_loc, visual_avc, audio_loc, audio_avc, *options):
    return _product_outputs(visual_loc, audio_loc, *options[-2:])


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.options = len(inputs)


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * ctx.options
    loss, *gradients = ctx.saved_tensors
    wanted = [x if need else None for x, need in zip(gradients, ctx.needs_input_grad)]
    if not (library.may_return_saved(grad) and grad == 1):  # `loss.backward()` copies nothing
        wanted = [None if x is None else cross_entropy_backward(grad, loss, x) for x in wanted]
    return *wanted, *(None,) * (ctx.options - len(wanted))


for _op in (_pooled_row_loss, _product_row_loss):
    _op.register_autograd(_backward, setup_context=_setup_context, outputs=1)
