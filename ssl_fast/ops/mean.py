"""The mean of the unit vectors of each image: the whole of mean pooling, which needs no map of all pairs."""

import torch
from torch import Tensor

from . import library
from .checks import address, kernel_shape, kernels_for, memory_format, use_compiled
from .reference import accumulate_dtype, unit


def mean_vector(visual: Tensor, weight: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """`(F.normalize(visual, dim=1) * weight).sum((2, 3))`: the weighted sum of the unit vectors of each image.

    visual: raw features (N, C, h, w). weight: (N, h, w), without gradient; None: 1 / (h w) everywhere, the mean.
    -> (N, C), not normalised again; float32, or float64 for float64 inputs.
    """
    dtype = accumulate_dtype(visual)
    if use_compiled(backend, visual):
        return mean_direction(visual, None if weight is None else weight.flatten(1).to(dtype).contiguous())[0]
    vectors = unit(visual.to(dtype))
    return vectors.mean((2, 3)) if weight is None else (vectors * weight[:, None].to(dtype)).sum((2, 3))


@library.op("mean_direction")
def mean_direction(visual: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """visual (N, C, h, w), weight (N, h*w) summing to 1 over an image, or None -> (mean (N, C), 1 / |visual| (N,
    h*w))."""
    visual = visual.contiguous(memory_format=memory_format(visual))
    mean, inverse_norm = _outputs(visual)
    if visual.numel():
        with kernels_for(visual) as (kernels, where):
            kernels.mean(
                kernel_shape(visual, 0),
                visual=address(visual),
                weight=address(weight),
                inverse_norm=address(inverse_norm),
                out=address(mean),
                **where,
            )
    return mean, inverse_norm


def _outputs(visual):
    images, channels, height, width = visual.shape
    dtype = accumulate_dtype(visual)
    return visual.new_empty(images, channels, dtype=dtype), visual.new_empty(images, height * width, dtype=dtype)


@mean_direction.register_fake
def _(visual, weight):
    return _outputs(visual)


@library.op("mean_direction_backward")
def mean_direction_backward(grad: Tensor, visual: Tensor, weight: Tensor | None, inverse_norm: Tensor) -> Tensor:
    grad = grad.contiguous()
    visual = visual.contiguous(memory_format=memory_format(visual))
    grad_visual = torch.empty_like(visual, memory_format=memory_format(visual))
    if visual.numel():
        with kernels_for(visual) as (kernels, where):
            kernels.mean(
                kernel_shape(visual, 0),
                visual=address(visual),
                weight=address(weight),
                inverse_norm=address(inverse_norm),
                out=0,
                grad_out=address(grad),
                grad_visual=address(grad_visual),
                **where,
            )
    return grad_visual


@mean_direction_backward.register_fake
def _(grad, visual, weight, inverse_norm):
    return torch.empty_like(visual, memory_format=memory_format(visual))


def _setup_context(ctx, inputs, output):
    visual, weight = inputs
    ctx.save_for_backward(visual, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _):
    if grad is None:
        return None, None
    return mean_direction_backward(grad, *ctx.saved_tensors), None


mean_direction.register_autograd(_backward, setup_context=_setup_context)
