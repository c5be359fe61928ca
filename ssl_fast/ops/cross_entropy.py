"""Cross-entropy of the scores of all pairs, on a CPU: the loss and its gradient from one pass of a kernel."""

import torch
from torch import Tensor

from . import kernels, library
from .kernels import buffer


def fused_cross_entropy(
    scores: Tensor,
    positives: Tensor | None,
    tau: float,
    margin: float,
    *,
    rows: bool,
    columns: bool,
    maps: Tensor | None = None,
    epsilon: float = 0.0,
    beta: float = 1.0,
) -> Tensor:
    """Mean over rows of log(1 + sum over the others of exp((s - positive + margin) / tau)), plus that over columns.

    scores (N, K) float32 or float64 on a CPU; positives (N,) int64, the column of each row's positive, or None: the
    diagonal. columns: without positives only, of the first N columns. maps (N, P): one more negative of each row is its
    background, the mean of the map weighted by sigmoid((epsilon - map) / beta). Differentiable, once.
    ValueError for a column of a positive that does not exist.
    """
    backward = torch.is_grad_enabled() and (scores.requires_grad or (maps is not None and maps.requires_grad))
    return _cross_entropy(scores, maps, positives, rows, columns, tau, margin, epsilon, beta, backward)[0]


def _outputs(scores, maps, backward):
    """loss; gradients of scores and of maps"""
    return (
        scores.new_empty(()),
        scores.new_empty(scores.shape if backward else 0),
        scores.new_empty(maps.shape if backward and maps is not None else 0),
    )


@library.op("cross_entropy")
def _cross_entropy(
    scores: Tensor,
    maps: Tensor | None,
    positives: Tensor | None,
    rows: bool,
    columns: bool,
    tau: float,
    margin: float,
    epsilon: float,
    beta: float,
    backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    scores = scores.contiguous()
    maps, positives = (None if x is None else x.contiguous() for x in (maps, positives))
    outputs = loss, grad_scores, grad_maps = _outputs(scores, maps, backward)
    count, width = scores.shape
    with kernels.launch_on(scores, count * width * kernels.EXPONENTIAL_FLOPS) as launch:
        launch.kernels.cross_entropy(
            float64=scores.dtype == torch.float64,
            of_rows=rows,
            of_columns=columns,
            rows=count,
            columns=width,
            tau=tau,
            margin=margin,
            positives=buffer(positives),
            scores=buffer(scores),
            maps=buffer(maps),
            cells=0 if maps is None else maps.shape[1],
            epsilon=epsilon,
            beta=beta,
            loss=buffer(loss),
            grad_scores=buffer(grad_scores) if backward else None,
            grad_maps=buffer(grad_maps) if backward and maps is not None else None,
            **launch.args,
        )
    return outputs


@_cross_entropy.register_fake
def _(scores, maps, positives, rows, columns, tau, margin, epsilon, beta, backward):
    return _outputs(scores, maps, backward)


@library.op("cross_entropy_backward", outside=2)
def cross_entropy_backward(grad: Tensor, origin: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of a loss, times the 0-dimensional `grad` that arrives. origin: for torch to see what a second
    derivative, which there is none of, would be of."""
    return gradient * grad  # in this order: torch would round the first factor to the dtype of the second


@cross_entropy_backward.register_fake
def _(grad, origin, gradient):
    return torch.empty_like(gradient)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, *_):
    none = (None,) * 8
    if grad is None:
        return None, None, *none
    scores, *gradients = ctx.saved_tensors
    wanted = zip(gradients, ctx.needs_input_grad)
    return *(cross_entropy_backward(grad, scores, one) if need else None for one, need in wanted), *none


_cross_entropy.register_autograd(_backward, setup_context=_setup_context, outputs=1)
