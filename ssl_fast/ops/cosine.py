"""Cosine similarity map of each image with its own audio."""

import torch
from torch import Tensor

from . import kernels, library
from .checks import autocast_inputs, check_pair, use_compiled
from .kernels import buffer, dense
from .reference import accumulate_dtype, unit


def cosine_map_reference(visual: Tensor, audio: Tensor) -> Tensor:
    return torch.einsum("nchw,nc->nhw", unit(visual), unit(audio)).to(accumulate_dtype(visual))


def cosine_map(visual: Tensor, audio: Tensor, *, backend: str = "auto") -> Tensor:
    """`einsum("nchw,nc->nhw", F.normalize(visual, dim=1), F.normalize(audio, dim=1))`: the localization map of each
    pair.

    Args:
        visual: raw features (N, C, h, w); float32, bfloat16, float16 or float64, channels first or last.
        audio: raw features (N, C), same dtype and device.
        backend: "auto", "compiled" (RuntimeError where there is no kernel) or "reference" (plain PyTorch).

    Returns:
        alpha (N, h, w) in [-1, 1]; float32, or float64 for float64 inputs. A zero vector has cosine 0 and gradient 0.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not match.
    """
    check_pair(visual, audio, paired=True)
    visual, audio = autocast_inputs(visual, audio)
    if not use_compiled(backend, visual):
        return cosine_map_reference(visual, audio)
    return _cosine_map(visual, audio)[0].view(visual.shape[0], *visual.shape[2:])


def _outputs(visual):
    images, _, height, width = visual.shape
    dtype = accumulate_dtype(visual)
    return visual.new_empty(images, height * width, dtype=dtype), visual.new_empty(images, height * width, dtype=dtype)


@library.op("cosine_map")
def _cosine_map(visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    visual = dense(visual)
    audio = audio.contiguous()
    maps, inverse_norm = _outputs(visual)
    if visual.numel():
        with kernels.launch_on(visual, kernels.pass_flops(visual)) as launch:
            launch.kernels.cosine_forward(
                kernels.shape_of(launch.kernels, visual, len(audio)),
                visual=buffer(visual),
                audio=buffer(audio),
                out=buffer(maps),
                inverse_norm=buffer(inverse_norm),
                **launch.args,
            )
    return maps, inverse_norm


@_cosine_map.register_fake
def _(visual, audio):
    return _outputs(visual)


@library.op("cosine_map_backward", outside=3)
def _cosine_map_backward(
    grad: Tensor, visual: Tensor, audio: Tensor, maps: Tensor, inverse_norm: Tensor, need_visual: bool, need_audio: bool
) -> tuple[Tensor, Tensor]:
    grad, audio = grad.contiguous(), audio.contiguous()
    visual = dense(visual)
    grad_visual, grad_audio = _gradients(visual, audio, need_visual, need_audio)
    if visual.numel():
        with kernels.launch_on(visual, kernels.pass_flops(visual)) as launch:
            launch.kernels.cosine_backward(
                kernels.shape_of(launch.kernels, visual, len(audio)),
                visual=buffer(visual),
                audio=buffer(audio),
                out=buffer(maps),
                inverse_norm=buffer(inverse_norm),
                grad_out=buffer(grad),
                grad_visual=buffer(grad_visual) if need_visual else None,
                grad_audio=buffer(grad_audio) if need_audio else None,
                **launch.args,
            )
    return grad_visual, grad_audio


def _gradients(visual, audio, need_visual, need_audio):
    return (
        torch.empty_like(visual, memory_format=kernels.memory_format(visual)) if need_visual else visual.new_empty(0),
        audio.new_empty(audio.shape if need_audio else 0, dtype=accumulate_dtype(audio)),
    )


@_cosine_map_backward.register_fake
def _(grad, visual, audio, maps, inverse_norm, need_visual, need_audio):
    return _gradients(visual, audio, need_visual, need_audio)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, *_):
    if grad is None:
        return None, None
    need_visual, need_audio = ctx.needs_input_grad
    visual, audio, maps, inverse_norm = ctx.saved_tensors
    grad_visual, grad_audio = _cosine_map_backward(grad, visual, audio, maps, inverse_norm, need_visual, need_audio)
    return grad_visual if need_visual else None, grad_audio.to(audio.dtype) if need_audio else None


_cosine_map.register_autograd(_backward, setup_context=_setup_context, outputs=1)
