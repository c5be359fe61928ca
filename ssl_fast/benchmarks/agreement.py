"""Whether a candidate computes what the reference computes."""

import typing
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .cases import PASSES, Case, Inputs

# What a few near-ties, decided one way in the dtype and the other way in float64, do to the gradient of a maximum.
TIE = 1e-2


class Disagreement(Exception):
    """A candidate and the reference do not compute the same thing."""


class Expected(typing.NamedTuple):
    """A result of the reference, output or gradient, and the same of the reference in float64."""

    name: str
    own: Tensor
    truth: Tensor

    def error(self, result: Tensor) -> float:
        """Relative, against float64."""
        return float((result - self.truth).norm() / self.truth.norm().clamp_min(torch.finfo(torch.float64).tiny))


def expected_results(case: Case, inputs: Inputs) -> list[Expected]:
    """Of output and gradients, in the order of `Inputs.job`."""
    reference = partial(case.call, backend="reference")
    names = ["output", *(f"gradient of {kind} {k}" for kind in ("visual", "audio") for k in range(inputs.online))]
    jobs = inputs.job(reference, PASSES[1]), inputs.double().job(reference, PASSES[1])
    return [Expected(name, *(x.detach() for x in pair)) for name, *pair in zip(names, *(job() for job in jobs))]


def compare(case: Case, results: Sequence[Tensor], expected: Sequence[Expected], dtype: torch.dtype) -> None:
    """Disagreement where a result errs more than twice what the reference errs in `dtype`, that of the features,
    both against float64."""
    epsilon = torch.finfo(dtype).eps
    for result, one in zip(results, expected, strict=True):
        if result.shape != one.own.shape or result.dtype != one.own.dtype:
            raise Disagreement(
                f"{one.name}: expected {tuple(one.own.shape)} {one.own.dtype} as the reference returns, "
                f"got {tuple(result.shape)} {result.dtype}"
            )
        least = 1e-5 if one.name == "output" else TIE if case.picks else 1e-4
        allowed = 2 * one.error(one.own) + max(epsilon, least)
        error = one.error(result.detach())
        if not error <= allowed:  # NaN disagrees too
            raise Disagreement(
                f"{one.name}: expected an error of at most {allowed:.1e} against float64, got {error:.1e}"
            )


def verify(case: Case, fast: Callable, inputs: Inputs) -> None:
    """`compare` output and gradients of `fast`."""
    compare(case, inputs.job(fast, PASSES[1])(), expected_results(case, inputs), inputs.visuals[0].dtype)
