"""Other packages that compute what a case of `ops.CASES` computes, for `ssl-fast bench`. All call it MaxSim: images are
documents, clips are queries.

    rival(images (N, P, C), clips (M, T, C), kept (M, T) bool, normalize) -> a function without arguments, or why not

images, clips: rows of cells and of tokens, as the packages want them in memory. The function computes (N, M) float32
scores: the mean over the tokens that `kept` keeps of the maximum over cells of their products, or with `normalize`
cosines. Where the package has a backward pass, scores have a gradient. Why not: not installed, or not for such
features. Whether scores and gradients are right is for the caller to see.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Rival = Callable[[Tensor, Tensor, Tensor, bool], Callable[[], Tensor] | str]
ABSENT = "not installed"
MATCHED = "16-bit features on CUDA only"  # those of float32 are multiplied as float16, or TF32


def errors() -> tuple[type[Exception], ...]:
    """What the packages raise for sizes that they, or Triton on this GPU, cannot do."""
    found = (RuntimeError, ValueError, AssertionError)
    try:
        from triton.errors import TritonError
    except ImportError:
        return found
    return (*found, TritonError)


def _matched(x: Tensor) -> bool:
    """True where the packages in Triton multiply and add in the dtypes of the kernels here."""
    return x.is_cuda and x.dtype.itemsize == 2


def token_mask(audio: Tensor) -> Tensor:
    """(N, T) bool: clips have from T tokens down to half of them."""
    clips, _, tokens = audio.shape
    lengths = tokens - torch.arange(clips, device=audio.device) % (tokens // 2 + 1)
    return torch.arange(tokens, device=audio.device) < lengths[:, None]


def late_interaction_kernels(images: Tensor, clips: Tensor, kept: Tensor, normalize: bool) -> Callable | str:
    """late-interaction-kernels, in Triton: products of 16 bits, sums in float32, as of the kernels here."""
    if not _matched(images):
        return MATCHED
    try:
        from late_interaction_kernels import maxsim  # pyright: ignore[reportMissingImports]
    except ImportError:
        return ABSENT
    lengths = kept.sum(1)
    return lambda: maxsim(clips, images, q_mask=kept, normalize=normalize).t() / lengths


def flash_maxsim(images: Tensor, clips: Tensor, kept: Tensor, normalize: bool) -> Callable | str:
    """flash-maxsim, in Triton, with sums in float32 too; it has no normalization of its own. kept: leading tokens."""
    if not _matched(images):
        return MATCHED
    try:
        from flash_maxsim import flash_maxsim_batched, flash_maxsim_batched_train  # pyright: ignore[reportMissingImports]
    except ImportError:
        return ABSENT
    lengths = kept.sum(1)

    def scores() -> Tensor:
        documents, queries = ((F.normalize(x, dim=2) if normalize else x) for x in (images, clips))
        if torch.is_grad_enabled():
            found = flash_maxsim_batched_train(queries, documents, query_lengths=lengths)
        else:  # not padded to 128 tokens, of which `max` has one
            found = flash_maxsim_batched(queries, documents, query_lengths=lengths, pad_lq=False)
        return found.t() / lengths

    return scores


def maxsim_cpu(images: Tensor, clips: Tensor, kept: Tensor, normalize: bool) -> Callable | str:
    """maxsim-cpu: one query at a time, dot products in float32, no backward pass."""
    if images.is_cuda or images.dtype != torch.float32 or normalize:
        return "float32 dot products on a CPU only"
    try:
        import maxsim_cpu as package  # pyright: ignore[reportMissingImports]
    except ImportError:
        return ABSENT
    documents = images.detach().numpy()
    queries = [clip[keep].numpy() for clip, keep in zip(clips.detach(), kept)]

    def scores() -> Tensor:
        columns = [torch.from_numpy(package.maxsim_scores(query, documents)) / len(query) for query in queries]
        return torch.stack(columns, 1)

    return scores
