"""The poolings of the cells of an image. Each says what the kernels are given, and its formula in plain PyTorch."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["LogMeanExp", "Max", "Mean", "Pooling", "SoftThreshold"]

# Logits of the soft threshold are cut off here, so that the sum of the weights never underflows in float32: pairs whose
# cells all lie 80 beta below epsilon are pooled by the plain mean.
LOWEST_LOGIT = -80.0


# Of what cosines are divided by: the kernels compute the quotients, and exponents of them, in float32.
SMALLEST, LARGEST = 1e-20, 1e20


def check_divisor(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: expected > 0, got {value}")
    if not SMALLEST <= value <= LARGEST:
        raise ValueError(f"{name}: expected from {SMALLEST:g} to {LARGEST:g}, got {value}")


@dataclass(frozen=True)
class Mean:
    """S = mean over cells of alpha (SSL-Align's s_L), or over the cells of `mask` (N, h, w), weights >= 0.

    It needs no map: a mean of cosines is the product with a mean unit vector (`ops.mean`).
    """

    mask: Tensor | None = None

    def reference(self, maps: Tensor) -> Tensor:
        """Maps (N, M, cells) -> S (N, M)."""
        if self.mask is None:
            return maps.mean(-1)
        weight = self.mask.flatten(1).to(maps.dtype)
        return (maps * weight[:, None]).sum(-1) / weight.sum(-1)[:, None]


@dataclass(frozen=True)
class SoftThreshold:
    """S = sum_p w alpha / sum_p w with w = sigmoid((alpha - epsilon) / beta) (LVS, MarginNCE)."""

    epsilon: float = 0.65
    beta: float = 0.03

    kind: ClassVar[str] = "soft_threshold"  # its name in csrc/pooling.h
    sparse: ClassVar[bool] = False

    def __post_init__(self):
        check_divisor("beta", self.beta)
        if not abs(self.epsilon) < math.inf:  # math.isfinite would end a graph with dynamic numbers
            raise ValueError(f"epsilon: expected a finite number, got {self.epsilon}")

    @property
    def parameters(self) -> list[float]:
        return [self.epsilon, self.beta]

    def reference(self, maps: Tensor) -> Tensor:
        """Maps (..., cells) -> S (...)."""
        weight = torch.sigmoid(((maps - self.epsilon) / self.beta).clamp_min(LOWEST_LOGIT))
        return (weight * maps).sum(-1) / weight.sum(-1)


@dataclass(frozen=True)
class Max:
    """S = max over cells of alpha (EZ-VSL). The gradient goes to the first cell that attains it."""

    kind: ClassVar[str] = "max"
    sparse: ClassVar[bool] = True  # one cell of a pair has a gradient, and its index is the residual

    @property
    def parameters(self) -> list[float]:
        return []

    def reference(self, maps: Tensor) -> Tensor:
        """Maps (..., cells) -> S (...)."""
        return maps.max(-1).values


@dataclass(frozen=True)
class LogMeanExp:
    """S = tau log mean_p exp(alpha / tau): log-sum-exp pooling, a smooth maximum between mean (tau -> inf) and max.

    In float32, rounding errors grow with tau: for tau of thousands `Mean` is closer, which lies within 1 / (2 tau).
    """

    tau: float = 0.07

    kind: ClassVar[str] = "log_mean_exp"
    sparse: ClassVar[bool] = False

    def __post_init__(self):
        check_divisor("tau", self.tau)

    @property
    def parameters(self) -> list[float]:
        return [self.tau]

    def reference(self, maps: Tensor) -> Tensor:
        """Maps (..., cells) -> S (...)."""
        return self.tau * (torch.logsumexp(maps / self.tau, -1) - math.log(maps.shape[-1]))


Pooling = Mean | SoftThreshold | Max | LogMeanExp
# Those that kernels pool, by the name that an op takes; Mean is a product.
KERNEL_POOLINGS = {pooling.kind: pooling for pooling in (SoftThreshold, Max, LogMeanExp)}
