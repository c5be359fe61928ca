"""SLAVC's product of a softmax over instances and a softmax over space, in log space."""

import functools

import torch
from torch import Tensor

from . import kernels, library
from .checks import autocast_inputs, check_pair, use_compiled
from .cuda_chunks import DenseGradients, Space, for_chunks, unpack
from .kernels import buffer, dense
from .poolings import check_divisor
from .reference import accumulate_dtype, similarity_maps

REDUCTIONS = ("sum", "max")
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
        tau: temperature of both softmaxes, 1e-20 to 1e20.
        reduce: "sum" over cells (the released program) or "max" (the paper).
        instances: axis of the instance softmax; "audio": over the M audios, for each image and cell (paper and
            program); "image": over the N images, for each audio and cell.
        backend: "auto", "compiled" (RuntimeError where there is no kernel) or "reference" (plain PyTorch).

    Returns:
        log q (N, M) <= 0; float32, or float64 for float64 inputs. Same input, number of threads and machine: same bits.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not match; unknown options; tau out of range.
    """
    features = check_product_features(visual_loc, visual_avc, audio_loc, audio_avc, tau, reduce, instances)
    if not use_compiled(backend, visual_loc):
        return product_log_scores_reference(*features, tau, reduce, instances)
    backward = torch.is_grad_enabled() and any(f.requires_grad for f in features)
    return _product(*features, float(tau), reduce, instances, backward)[0]


def check_product_features(
    visual_loc: Tensor,
    visual_avc: Tensor,
    audio_loc: Tensor,
    audio_avc: Tensor,
    tau: float,
    reduce: str,
    instances: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The features as autocast has them; ValueError and TypeError as of `product_log_scores`."""
    check_pair(visual_loc, audio_loc, ("visual_loc", "audio_loc"))
    check_pair(visual_avc, audio_avc, ("visual_avc", "audio_avc"))
    visual_loc, visual_avc, audio_loc, audio_avc = autocast_inputs(visual_loc, visual_avc, audio_loc, audio_avc)
    for name, loc, avc in (("visual_avc", visual_loc, visual_avc), ("audio_avc", audio_loc, audio_avc)):
        if (loc.shape, loc.dtype, loc.device) != (avc.shape, avc.dtype, avc.device):
            raise ValueError(
                f"{name}: expected {loc.dtype} {tuple(loc.shape)} on {loc.device} as in the loc space, "
                f"got {avc.dtype} {tuple(avc.shape)} on {avc.device}"
            )
    check_divisor("tau", tau)
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce: expected one of {REDUCTIONS}, got {reduce!r}")
    if instances not in INSTANCES:
        raise ValueError(f"instances: expected one of {INSTANCES}, got {instances!r}")
    return visual_loc, visual_avc, audio_loc, audio_avc


# ---- the torch.library op ----


def _outputs(visual, audio, reduce, instances, cached):
    """scores; maxima and logs of sums, of a pair and over instances (csrc/params.h); argmax; 1 / |visual| twice; cached
    alphas twice"""
    images, _, height, width = visual.shape
    audios, cells, dtype = audio.shape[0], height * width, accumulate_dtype(visual)
    softmaxes = images if instances == "audio" else kernels.padded_audios(audios, dtype == torch.float64)
    return (
        visual.new_empty(images, audios, dtype=dtype),
        visual.new_empty(4, images, audios, dtype=dtype),
        visual.new_empty(2, softmaxes, cells, dtype=dtype),
        visual.new_empty(images if reduce == "max" else 0, audios, dtype=torch.int32),
        visual.new_empty(images, cells, dtype=dtype),
        visual.new_empty(images, cells, dtype=dtype),
        kernels.empty_cache(visual, audios, cached, maps=2),
        kernels.empty_cache(visual, audios, cached, maps=2),
    )


def _run_cpu(features, tau, reduce, instances, saved, grad_scores=None, grads=(None,) * 4):
    """The forward pass, or with grad_scores the backward pass."""
    visual_loc, visual_avc, audio_loc, audio_avc = features
    scores, pair_norm, instance_norm, argmax, norm_loc, norm_avc, alphas_loc, alphas_avc = saved
    with kernels.launch_on(visual_loc, 2 * kernels.product_flops(visual_loc, len(audio_loc))) as launch:
        space = functools.partial(kernels.features_of, launch.kernels)
        args = {
            "shape": kernels.shape_of(launch.kernels, visual_loc, len(audio_loc)),
            "loc": space(visual_loc, audio_loc, norm_loc, alphas_loc, grads[0], grads[2]),
            "avc": space(visual_avc, audio_avc, norm_avc, alphas_avc, grads[1], grads[3]),
            "tau": tau,
            "reduce": getattr(launch.kernels.Reduce, reduce),
            "instances": getattr(launch.kernels.Instances, instances),
            "cached_images": kernels.cached_images(alphas_loc, visual_loc, len(audio_loc)),
            "scores": buffer(scores),
            "pair_norm": buffer(pair_norm),
            "instance_norm": buffer(instance_norm),
            "argmax": buffer(argmax),
            **launch.args,
        }
        if grad_scores is None:
            launch.kernels.product_forward(**args)
        else:
            launch.kernels.product_backward(**args, grad_scores=buffer(grad_scores))


class _Cuda:
    """The kernels of CUDA: chunk of images by chunk, both maps of cosines are computed, and then used by several
    stages. Those of the first images are cached."""

    def __init__(self, launch, features, tau, reduce, instances, saved):
        visual_loc, visual_avc, audio_loc, audio_avc = features
        self.launch, self.kernels = launch, launch.kernels
        self.spaces = Space(launch, visual_loc, audio_loc, saved[4]), Space(launch, visual_avc, audio_avc, saved[5])
        self.tau, self.reduce, self.instances = tau, reduce, instances
        self.scores, pair_norm, instance_norm, self.argmax = saved[:4]
        self.pair_norm, self.instance_norm = pair_norm.unbind(), instance_norm.unbind()
        self.cached, self.cached_images = saved[6:], kernels.cached_images(saved[6], visual_loc, len(audio_loc))

    def for_chunks(self, body, row_bytes=None, first_pass=False, need_rows=False):
        """body(chunks of both spaces, cosines of both). The first pass fills the cache."""

        def call(*chunks):
            first, images = chunks[0].first, chunks[0].images
            if is_cached := first < self.cached_images:
                cells = self.spaces[0].cells
                cosines = [matrix[first * cells : (first + images) * cells] for matrix in self.cached]
            else:
                cosines = [space.matrix(images) for space in self.spaces]
            if first_pass or not is_cached:
                pairs, out = [chunk.pairs for chunk in chunks], [buffer(matrix) for matrix in cosines]
                self.kernels.alphas(pairs, out=out, **self.launch.args)
            body(chunks, cosines)

        for_chunks(
            self.spaces,
            call,
            row_bytes=row_bytes or sum(space.matrix_bytes for space in self.spaces),
            first_pass=first_pass,
            cached_images=self.cached_images,
            kernel_packs=True,
            need_rows=need_rows,
        )

    def chunk(self, chunk, cosines, **gradient):
        """ProductChunk of csrc/cuda/kernels.h"""
        space, first = self.spaces[0], chunk.first
        of_instances = first if self.instances == "audio" else 0
        return self.kernels.ProductChunk(
            dtype=space.sizes["dtype"],
            reduce=getattr(self.kernels.Reduce, self.reduce),
            instances=getattr(self.kernels.Instances, self.instances),
            tau=self.tau,
            images=chunk.images,
            audios=space.audios,
            cells=space.cells,
            loc=buffer(cosines[0]),
            avc=buffer(cosines[1]),
            instance_top=buffer(self.instance_norm[0], of_instances),
            instance_log=buffer(self.instance_norm[1], of_instances),
            loc_top=buffer(self.pair_norm[0], first),
            loc_log=buffer(self.pair_norm[1], first),
            top=buffer(self.pair_norm[2], first),
            log=buffer(self.pair_norm[3], first),
            scores=buffer(self.scores, first),
            argmax=buffer(self.argmax, first) if self.reduce == "max" else None,
            **gradient,
        )

    def softmax_instances(self, chunk, args):
        """A stage: where instances are images, their softmax is over all chunks."""
        last = chunk.first + chunk.images == self.spaces[0].images
        self.kernels.product_instances(args, first=chunk.first == 0, last=last, **self.launch.args)

    def forward(self):
        def score(chunks, cosines):
            args = self.chunk(chunks[0], cosines)
            if self.instances == "audio":
                self.softmax_instances(chunks[0], args)
            self.kernels.product_scores(args, **self.launch.args)

        if self.instances == "image":
            self.for_chunks(
                lambda chunks, cosines: self.softmax_instances(chunks[0], self.chunk(chunks[0], cosines)),
                first_pass=True,
            )
        self.for_chunks(score, first_pass=self.instances == "audio")

    def backward(self, grad_scores, grads):
        gradients = [DenseGradients(space, *of) for space, of in zip(self.spaces, (grads[::2], grads[1::2]))]
        grad_sums = torch.empty_like(self.instance_norm[0]) if self.instances == "image" else None

        def chunk_of(chunk, cosines, **norms):
            return self.chunk(
                chunk, cosines, grad_scores=buffer(grad_scores, chunk.first), grad_sums=buffer(grad_sums), **norms
            )

        def sum_instances(chunks, cosines):
            args = chunk_of(chunks[0], cosines)
            self.kernels.product_grad_sums(args, first=chunks[0].first == 0, **self.launch.args)

        def add(chunks, cosines):
            norms = {}
            for name, space, chunk in zip(("loc", "avc"), self.spaces, chunks):
                norms[f"{name}_audio_norm"] = buffer(space.audio_norm)
                norms[f"{name}_cell_norm"] = buffer(space.cell_norm, chunk.first)
            is_cached = chunks[0].first < self.cached_images  # a second backward pass needs them, too
            slopes = [space.matrix(chunks[0].images) for space in self.spaces] if is_cached else cosines
            out = {"loc_slopes": buffer(slopes[0]), "avc_slopes": buffer(slopes[1])}
            self.kernels.product_slopes(chunk_of(chunks[0], cosines, **norms, **out), **self.launch.args)
            of_spaces = zip(gradients, chunks, slopes)
            products = [one for of, chunk, slope in of_spaces for one in of.unpacking(chunk, slope)]
            if chunks[0].first + chunks[0].images == self.spaces[0].images:
                products += [one for of in gradients for one in of.unpacking_of_audio()]
            unpack(self.launch, products)

        if self.instances == "image":
            self.for_chunks(sum_instances)
        self.for_chunks(add, sum(of.row_bytes for of in gradients), need_rows=True)


def _dense(visual_loc, visual_avc, audio_loc, audio_avc):
    layout = kernels.memory_format(visual_loc)
    return (
        dense(visual_loc),
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
    cached: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    features = _dense(visual_loc, visual_avc, audio_loc, audio_avc)
    outputs = _outputs(visual_loc, audio_loc, reduce, instances, cached)
    if outputs[0].numel() and kernels.runs_on_cuda(visual_loc):
        with kernels.launch_on(visual_loc) as launch:
            _Cuda(launch, features, tau, reduce, instances, outputs).forward()
    elif outputs[0].numel():
        _run_cpu(features, tau, reduce, instances, outputs)
    return outputs


@_product.register_fake
def _(visual_loc, visual_avc, audio_loc, audio_avc, tau, reduce, instances, cached):
    return _outputs(visual_loc, audio_loc, reduce, instances, cached)


def _gradients(visual_loc, audio_loc, need_visual, need_audio):
    loc, avc = (kernels.empty_gradients(visual_loc, audio_loc, need_visual, need_audio) for _ in range(2))
    return loc[0], avc[0], loc[1], avc[1]


@library.op("product_log_scores_backward", outside=5)
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
    kernels.check_cache(saved[-1], visual_loc)
    features = _dense(visual_loc, visual_avc, audio_loc, audio_avc)
    grads = _gradients(visual_loc, audio_loc, need_visual, need_audio)
    if not grad_scores.numel():
        for grad in grads:
            grad.zero_()
        return grads
    needed = [grad if need else None for grad, need in zip(grads, (need_visual, need_visual, need_audio, need_audio))]
    if kernels.runs_on_cuda(visual_loc):
        with kernels.launch_on(visual_loc) as launch:
            _Cuda(launch, features, tau, reduce, instances, saved).backward(grad_scores.contiguous(), needed)
    else:
        _run_cpu(features, tau, reduce, instances, saved, grad_scores.contiguous(), needed)
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


_product.register_autograd(_backward, setup_context=_setup_context, outputs=1)
