"""Extra negatives: audio that is nobody's positive, as further columns of the scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.checks import check_tensor
from ..ops.reference import accumulate_dtype


@dataclass(frozen=True)
class ExtraNegatives:
    """Audio that is nobody's positive, such as silence, noise and sounds from off screen: K more negatives of an image.

        L_n = -log( sum over positives m of e_nm / (sum over all m of e_nm + sum over k of w_k exp(s_nk / tau)) )
        e_nm = exp(s_nm / tau)

    Where negatives are images, a column that is nobody's positive has no loss: there they are left out.

    audio: (K, C), or with tokens (K, C, T), of the dtype, device, channels and number of tokens of the loss's audio; of
        losses with several features of a sound a sequence of these, see there.
    mask: (K, T), the tokens that count, as the mask of the loss's audio (None: all).
    weight: w_k > 0, finite, a number or (K,) without gradient.
    """

    audio: Tensor | Sequence[Tensor]
    mask: Tensor | None = None
    weight: Tensor | float = 1.0

    def tensors(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All of them with K rows, by name, `audio` in as many parts as `like` has features of the loss.
        ValueError and TypeError, naming the argument, for another number of parts and for what is no tensor."""
        if not isinstance(self.audio, Tensor | Sequence):
            raise TypeError(
                f"extra_negatives.audio: expected a tensor, or a sequence of them, got {type(self.audio).__name__}"
            )
        parts = (self.audio,) if isinstance(self.audio, Tensor) else tuple(self.audio)
        if len(parts) != len(like):
            raise ValueError(f"extra_negatives.audio: expected that of {', '.join(like)}, got {len(parts)} tensors")
        names = ["extra_negatives.audio"] if len(parts) == 1 else [f"extra_negatives.audio of {name}" for name in like]
        for name, part, feature in zip(names, parts, like.values()):
            check_tensor(name, part)
            if part.dim() != feature.dim():
                shape = ("K", *feature.shape[1:])
                raise ValueError(f"{name}: expected ({', '.join(map(str, shape))}), got {tuple(part.shape)}")
        found = dict(zip(names, parts))
        if self.mask is not None:
            check_tensor("extra_negatives.mask", self.mask)
            found["extra_negatives.mask"] = self.mask
        weight, dtype = self.weight, accumulate_dtype(parts[0])
        if not isinstance(weight, Tensor | int | float):
            raise TypeError(f"extra_negatives.weight: expected a number or a tensor, got {type(weight).__name__}")
        if not isinstance(weight, Tensor):
            weight = parts[0].new_full((len(parts[0]),), weight, dtype=dtype)
        return found | {"extra_negatives.weight": weight.to(parts[0].device, dtype)}


def check_extra(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """ValueError and TypeError for what `ExtraNegatives.tensors` gave of the features `like`."""
    count = len(next(iter(tensors.values())))
    for (name, part), (feature_name, feature) in zip(tensors.items(), like.items()):
        shape = (count, *feature.shape[1:])
        if tuple(part.shape) != shape:
            raise ValueError(f"{name}: expected {shape} to match {feature_name}, got {tuple(part.shape)}")
        if part.dtype != feature.dtype:
            raise TypeError(f"{name}: expected {feature.dtype} to match {feature_name}, got {part.dtype}")
        if part.device != feature.device:
            raise ValueError(f"{name}: expected device {feature.device} to match {feature_name}, got {part.device}")
    weight, mask = tensors["extra_negatives.weight"], tensors.get("extra_negatives.mask")
    feature = next(iter(like.values()))
    if tuple(weight.shape) != (count,) or weight.requires_grad:
        gradient = " with gradient" * weight.requires_grad
        raise ValueError(
            f"extra_negatives.weight: expected ({count},) without gradient, got {tuple(weight.shape)}{gradient}"
        )
    if not torch.compiler.is_compiling():
        wrong = weight[~((weight > 0) & weight.isfinite())].tolist()
        if wrong:
            raise ValueError(f"extra_negatives.weight: expected finite numbers > 0, got {wrong[0]}")
    if mask is None:
        return
    if feature.dim() != 3:
        raise ValueError(f"extra_negatives.mask: expected none with audio (K, C), got {tuple(mask.shape)}")
    if tuple(mask.shape) != (count, feature.shape[2]):
        raise ValueError(
            f"extra_negatives.mask: expected (K, T) = {(count, feature.shape[2])}, got {tuple(mask.shape)}"
        )
    if mask.device != feature.device:
        raise ValueError(f"extra_negatives.mask: expected device {feature.device}, got {mask.device}")


@dataclass(frozen=True)
class ExtraColumns:
    """The extra negatives of all processes: the last K columns of the scores; by default none."""

    parts: tuple[Tensor, ...] = ()
    mask: Tensor | None = None
    weight: Tensor | None = None

    @property
    def count(self) -> int:
        return 0 if self.weight is None else len(self.weight)

    def behind(self, audio: Tensor, part: int = 0) -> Tensor:
        """audio (M, ...) -> (M + K, ...)."""
        return torch.cat([audio, self.parts[part]]) if self.parts else audio

    def without(self, x: Tensor, dim: int = 0) -> Tensor:
        """x with M + K entries along `dim` -> the first M."""
        return x.narrow(dim, 0, x.shape[dim] - self.count) if self.count else x

    def masks(self, name: str, mask: Tensor | None, audio: Tensor) -> Tensor | None:
        """The mask (M, T) of the argument `name`, or None -> that of all audio (M + K, C, T)."""
        if self.weight is None or (mask is None and self.mask is None):
            return mask
        every = audio.new_ones(len(audio), audio.shape[2], dtype=torch.bool)
        own, extra = every.tensor_split([len(audio) - self.count])
        if mask is not None and mask.shape != own.shape:
            raise ValueError(f"{name}: expected (M, T) = {tuple(own.shape)}, got {tuple(mask.shape)}")
        return torch.cat([own if mask is None else mask, extra if self.mask is None else self.mask])

    def weigh(self, scores: Tensor, tau: float) -> Tensor:
        """scores (N, M + K), whose exp(s / tau) of the last K are multiplied by their weights."""
        if self.weight is None:
            return scores
        return scores + F.pad(tau * self.weight.log(), (scores.shape[1] - self.count, 0)).to(scores.dtype)
