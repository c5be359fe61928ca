"""SLAVC's product of a softmax over instances and a softmax over space, in log space."""

import torch
from torch import Tensor

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
    padded_audios,
    use_compiled,
)
from .cuda_chunks import DenseGradients, Pairs, chunks
from .reference import accumulate_dtype, similarity_maps

REDUCTIONS = ("sum", "max")  # in the order of csrc/params.h
INSTANCES = ("audio", "image")


def product_log_scores_reference(visual_loc, visual_avc, audio_loc, audio_avc, tau, reduce, instances):
    log_space = torch.log_softmax(similarity_maps(visual_loc, audio_loc) / tau, dim=2)
    log_instance = torch.log_softmax(similarity_maps(visual_avc, audio_avc) / tau, dim=1 if instances == "audio" else 0)
    log_product = log_instance + log_space
    return log_product.logsumexp(2) if reduce == "sum" else log_product.max(2).values


def product_log_scores(
    visual_loc: Tensor,
    visual_avc: Tensor,
    audio_loc: Tensor,
    audio_avc: Tensor,
    *,
    tau: float,
    reduce: str = "sum",
    instances: str = "audio",
    backend: str = "auto",
) -> Tensor:
    """`log((softmax(avc / tau, instances) * softmax(loc / tau, cells)).sum(cells))`, without an N x M x h x w map.

    loc and avc are the cosine maps `einsum("nchw,mc->nmhw", F.normalize(visual, dim=1), F.normalize(audio, dim=1))` of
    two embedding spaces (SLAVC, eq. 1-4 of its paper): where in the image, and which of the instances.

    Args:
        visual_loc, visual_avc: raw features (N, C, h, w); float32, bfloat16, float16 or float64.
        audio_loc, audio_avc: raw features (M, C), same dtype and device.
        tau: temperature of both softmaxes, > 0.
        reduce: "sum" over cells (the released program) or "max" (the paper).
        instances: axis of the instance softmax; "audio": over the M audios, for each image and cell (paper and
        program);
            "image": over the N images, for each audio and cell.
        backend: "auto", "compiled" (RuntimeError where there is no kernel) or "reference" (plain PyTorch).

    Returns:
        log q (N, M) <= 0; float32, or float64 for float64 inputs. Same input, number of threads and machine: same bits.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not match; unknown options; tau <= 0.
    """
    visual_loc, visual_avc, audio_loc, audio_avc = autocast_inputs(visual_loc, visual_avc, audio_loc, audio_avc)
    check_pair(visual_loc, audio_loc, ("visual_loc", "audio_loc"))
    check_pair(visual_avc, audio_avc, ("visual_avc", "audio_avc"))
    for name, loc, avc in (("visual_avc", visual_loc, visual_avc), ("audio_avc", audio_loc, audio_avc)):
        if (loc.shape, loc.dtype, loc.device) != (avc.shape, avc.dtype, avc.device):
            raise ValueError(
                f"{name}: expected {loc.dtype} {tuple(loc.shape)} on {loc.device} as in the loc space, "
                f"got {avc.dtype} {tuple(avc.shape)} on {avc.device}"
            )
    if not tau > 0:
        raise ValueError(f"tau: expected > 0, got {tau}")
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce: expected one of {REDUCTIONS}, got {reduce!r}")
    if instances not in INSTANCES:
        raise ValueError(f"instances: expected one of {INSTANCES}, got {instances!r}")
    features = visual_loc, visual_avc, audio_loc, audio_avc
    if not use_compiled(backend, visual_loc):
        return product_log_scores_reference(*features, tau, reduce, instances)
    keep = torch.is_grad_enabled() and any(f.requires_grad for f in features) and not on_cuda(visual_loc)
    return _product(*features, float(tau), reduce, instances, keep)[0]


# ---- the torch.library op ----


def _outputs(visual, audio, reduce, instances, keep):
    """scores; largest and log of the sum, over space and over instances; best cell; 1 / |visual| twice; kept alphas
    twice"""
    images, _, height, width = visual.shape
    audios, cells, dtype = audio.shape[0], height * width, accumulate_dtype(visual)
    kept = kept_shape(visual, audios, keep, maps=2)
    softmaxes = images if instances == "audio" else padded_audios(audios, dtype == torch.float64)
    return (
        visual.new_empty(images, audios, dtype=dtype),
        visual.new_empty(2, images, audios, dtype=dtype),
        visual.new_empty(2, softmaxes, cells, dtype=dtype),
        visual.new_empty(images if reduce == "max" else 0, audios, dtype=torch.int32),
        visual.new_empty(images, cells, dtype=dtype),
        visual.new_empty(images, cells, dtype=dtype),
        visual.new_empty(kept, dtype=dtype),
        visual.new_empty(kept, dtype=dtype),
    )


def _run(features, tau, reduce, instances, saved, grad_scores=None, grads=(None,) * 4):
    visual_loc, visual_avc, audio_loc, audio_avc = features
    scores, space_norm, instance_norm, best_cell, norm_loc, norm_avc, kept_loc, kept_avc = saved
    extension.product(
        kernel_shape(visual_loc, len(audio_loc)),
        tuple(map(address, (visual_loc, audio_loc, norm_loc, kept_loc, grads[0], grads[2]))),
        tuple(map(address, (visual_avc, audio_avc, norm_avc, kept_avc, grads[1], grads[3]))),
        tau=tau,
        reduce=REDUCTIONS.index(reduce),
        instances=INSTANCES.index(instances),
        kept=kept_images(kept_loc, visual_loc, len(audio_loc)),
        scores=address(scores),
        space_norm=address(space_norm),
        instance_norm=address(instance_norm),
        best_cell=address(best_cell),
        grad_scores=address(grad_scores),
        threads=torch.get_num_threads(),
    )


class _Cuda:
    """The kernels of CUDA: chunk of images by chunk, both maps of cosines are computed, and then used by several
    stages."""

    def __init__(self, features, tau, reduce, instances, saved, place):
        visual_loc, visual_avc, audio_loc, audio_avc = features
        self.kernels, self.where = place
        self.spaces = Pairs(visual_loc, audio_loc, saved[4], *place), Pairs(visual_avc, audio_avc, saved[5], *place)
        self.tau, self.reduce, self.instances = tau, reduce, instances
        self.scores, space_norm, instance_norm, self.best_cell = saved[:4]
        self.space_norm, self.instance_norm = space_norm.unbind(), instance_norm.unbind()

    def for_chunks(self, function, row_bytes=None, new_norms=False):
        """function(first image, images, cosines of both spaces)"""

        def call(first, count):
            cosines = [space.matrix() for space in self.spaces]
            for space, out in zip(self.spaces, cosines):
                self.kernels.alphas(space.pairs, out=address(out), **self.where)
            function(first, count, cosines)

        row_bytes = row_bytes or sum(space.matrix_bytes for space in self.spaces)
        for first, count in chunks(*self.spaces, row_bytes=row_bytes, new_norms=new_norms):
            call(first, count)

    def run(self, stage, first, count, cosines, **gradient):
        of_instances = first if self.instances == "audio" else 0
        space, best = self.spaces[0], self.best_cell if self.reduce == "max" else None
        self.kernels.product(
            stage,
            (
                space.dtype,
                REDUCTIONS.index(self.reduce),
                INSTANCES.index(self.instances),
                count,
                space.audios,
                space.cells,
            ),
            tau=self.tau,
            cosines=[address(map) for map in cosines],
            instance_norm=[address(norm, of_instances) for norm in self.instance_norm],
            space_norm=[address(norm, first) for norm in self.space_norm],
            scores=address(self.scores, first),
            best_cell=address(best, first),
            first=first == 0,
            last=first + count == space.images,
            **gradient,
            **self.where,
        )

    def forward(self):
        if self.instances == "image":  # their softmax is over all chunks
            self.for_chunks(lambda *chunk: self.run("instances", *chunk), new_norms=True)

        def score(*chunk):
            if self.instances == "audio":
                self.run("instances", *chunk)
            self.run("scores", *chunk)

        self.for_chunks(score, new_norms=self.instances == "audio")

    def backward(self, grad_scores, grads):
        gradients = [DenseGradients(space, *of) for space, of in zip(self.spaces, (grads[::2], grads[1::2]))]
        shares = torch.empty_like(self.instance_norm[0]) if self.instances == "image" else None

        def run(stage, first, *chunk, **more):
            self.run(stage, first, *chunk, grad_scores=address(grad_scores, first), shares=address(shares), **more)

        def add(first, count, cosines):
            run("slopes", first, count, cosines, norms=[norm for space in self.spaces for norm in space.addresses[2:]])
            for of, slopes in zip(gradients, cosines):
                of.add(first, slopes)

        if self.instances == "image":
            self.for_chunks(lambda *chunk: run("shares", *chunk))
        self.for_chunks(add, sum(of.row_bytes for of in gradients))
        for of in gradients:
            of.finish()


def _dense(visual_loc, visual_avc, audio_loc, audio_avc):
    layout = memory_format(visual_loc)
    return (
        visual_loc.contiguous(memory_format=layout),
        visual_avc.contiguous(memory_format=layout),
        audio_loc.contiguous(),
        audio_avc.contiguous(),
    )


@library.op("product_log_scores")
def _product(
    visual_loc: Tensor,
    visual_avc: Tensor,
    audio_loc: Tensor,
    audio_avc: Tensor,
    tau: float,
    reduce: str,
    instances: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    features = _dense(visual_loc, visual_avc, audio_loc, audio_avc)
    outputs = _outputs(visual_loc, audio_loc, reduce, instances, keep)
    if outputs[0].numel() and on_cuda(visual_loc):
        with kernels_for(visual_loc) as place:
            _Cuda(features, tau, reduce, instances, outputs, place).forward()
    elif outputs[0].numel():
        _run(features, tau, reduce, instances, outputs)
    return outputs


@_product.register_fake
def _(visual_loc, visual_avc, audio_loc, audio_avc, tau, reduce, instances, keep):
    return _outputs(visual_loc, audio_loc, reduce, instances, keep)


def _gradients(visual_loc, audio_loc, need_visual, need_audio):
    layout = memory_format(visual_loc)
    visual = [
        torch.empty_like(visual_loc, memory_format=layout) if need_visual else visual_loc.new_empty(0) for _ in "la"
    ]
    audio = [
        torch.empty_like(audio_loc, memory_format=torch.contiguous_format) if need_audio else audio_loc.new_empty(0)
        for _ in "la"
    ]
    return (*visual, *audio)


@library.op("product_log_scores_backward")
def _product_backward(
    grad_scores: Tensor,
    visual_loc: Tensor,
    visual_avc: Tensor,
    audio_loc: Tensor,
    audio_avc: Tensor,
    tau: float,
    reduce: str,
    instances: str,
    saved: list[Tensor],
    need_visual: bool,
    need_audio: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_kept(saved[-1], visual_loc.dtype == torch.float64)
    features = _dense(visual_loc, visual_avc, audio_loc, audio_avc)
    grads = _gradients(visual_loc, audio_loc, need_visual, need_audio)
    if not grad_scores.numel():
        return tuple(grad.zero_() for grad in grads)
    needed = [grad if need else None for grad, need in zip(grads, (need_visual, need_visual, need_audio, need_audio))]
    if on_cuda(visual_loc):
        with kernels_for(visual_loc) as place:
            _Cuda(features, tau, reduce, instances, saved, place).backward(grad_scores.contiguous(), needed)
    else:
        _run(features, tau, reduce, instances, saved, grad_scores.contiguous(), needed)
    return grads


@_product_backward.register_fake
def _(
    grad_scores, visual_loc, visual_avc, audio_loc, audio_avc, tau, reduce, instances, saved, need_visual, need_audio
):
    return _gradients(visual_loc, audio_loc, need_visual, need_audio)


def _setup_context(ctx, inputs, output):
    *features, ctx.tau, ctx.reduce, ctx.instances, _ = inputs
    ctx.save_for_backward(*features, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_scores, *_):
    none = (None,) * 4
    if grad_scores is None:
        return *none, *none
    saved = ctx.saved_tensors
    need = ctx.needs_input_grad[:4]
    grads = _product_backward(
        grad_scores,
        *saved[:4],
        ctx.tau,
        ctx.reduce,
        ctx.instances,
        list(saved[4:]),
        need[0] or need[1],
        need[2] or need[3],
    )
    return *(grad if wanted else None for grad, wanted in zip(grads, need)), *none


_product.register_autograd(_backward, setup_context=_setup_context)
