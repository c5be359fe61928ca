"""The mean of the unit vectors of each image: the whole of mean pooling, which needs no map of all pairs."""

import torch
from torch import Tensor

from . import kernels, library
from .checks import use_compiled
from .kernels import buffer, dense
from .reference import accumulate_dtype, unit


def mean_vector(visual: Tensor, weight: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """`(F.normalize(visual, dim=1) * weight).sum((2, 3))`: the weighted sum of the unit vectors of each image.

    visual: raw features (N, C, h, w). weight: (N, h, w), without gradient; None: 1 / (h w) everywhere, the mean.
    -> (N, C), not normalised again; float32, or float64 for float64 inputs.
    """
    dtype = accumulate_dtype(visual)
    if use_compiled(backend, visual):
        return mean_direction(visual, None if weight is None else weight.flatten(1).to(dtype).contiguous())[0]
    vectors = unit(visual, dtype)
    return vectors.mean((2, 3)) if weight is None else (vectors * weight[:, None].to(dtype)).sum((2, 3))


def mean_vectors(visual: Tensor, weights: Tensor, *, backend: str = "auto") -> Tensor:
    """`mean_vector` by each of weights (K, N, h, w) -> (K, N, C), on a CPU in one pass over the features."""
    if not visual.is_cuda and use_compiled(backend, visual):
        return mean_direction(visual, weights.flatten(2).to(accumulate_dtype(visual)).contiguous())[0]
    return torch.stack([mean_vector(visual, weight, backend=backend) for weight in weights])


@library.op("mean_direction")
def mean_direction(visual: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """visual (N, C, h, w), weight (N, h*w), or None: 1 / (h w) -> (mean (N, C), 1 / |visual| (N, h*w)). On a CPU also
    weight (K, N, h*w) -> mean (K, N, C)."""
    visual = dense(visual)
    mean, inverse_norm = _outputs(visual, weight)
    if visual.numel():
        with kernels.launch_on(visual, kernels.pass_flops(visual)) as launch:
            launch.kernels.mean_forward(
                kernels.shape_of(launch.kernels, visual, 0),
                visual=buffer(visual),
                weight=buffer(weight),
                means=_means(weight),
                inverse_norm=buffer(inverse_norm),
                out=buffer(mean),
                **launch.args,
            )
    return mean, inverse_norm


def _means(weight):
    return len(weight) if weight is not None and weight.dim() == 3 else 1


def _outputs(visual, weight):
    images, channels, height, width = visual.shape
    dtype, rows = accumulate_dtype(visual), (images,) if weight is None else weight.shape[:-1]
    return visual.new_empty(*rows, channels, dtype=dtype), visual.new_empty(images, height * width, dtype=dtype)


@mean_direction.register_fake
def _(visual, weight):
    return _outputs(visual, weight)


@library.op("mean_direction_backward", outside=2)
def mean_direction_backward(grad: Tensor, visual: Tensor, weight: Tensor | None, inverse_norm: Tensor) -> Tensor:
    grad = grad.contiguous()
    visual = dense(visual)
    grad_visual = torch.empty_like(visual, memory_format=kernels.memory_format(visual))
    if visual.numel():
        with kernels.launch_on(visual, kernels.pass_flops(visual)) as launch:
            launch.kernels.mean_backward(
                kernels.shape_of(launch.kernels, visual, 0),
                visual=buffer(visual),
                weight=buffer(weight),
                means=_means(weight),
                inverse_norm=buffer(inverse_norm),
                grad_out=buffer(grad),
                grad_visual=buffer(grad_visual),
                **launch.args,
            )
    return grad_visual


@mean_direction_backward.register_fake
def _(grad, visual, weight, inverse_norm):
    return torch.empty_like(visual, memory_format=kernels.memory_format(visual))


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
