"""The losses as modules."""

import math
import typing
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.reference import accumulate_dtype, unit
from .cross_entropy import check_tau
from .functional import LVS_PER_CALL, ez_vsl, fnac, lvs, margin_nce, slavc, ssl_tie
from .neighbors import hard_positives
from .options import option_types, options_of
from .predictive import sspl
from .tokens import (
    check_silent,
    dense_av,
    head_specialization,
    late_interaction,
    negative_pressure,
    silence,
    total_variation,
)
from .views import ssl_align


class Loss(nn.Module):
    """Options are fixed at construction; features, and what changes from call to call, are given to forward.

    forward(*features, **changes): arguments of the function; `changes` override options (positives=, mean_weight= ...).
    """

    function: Callable
    per_call = (
        "positives",
        "extra_negatives",
        "momentum",
        "group",
        "tokens",
    )  # a group cannot be copied or pickled with a module

    def __init_subclass__(cls, function: Callable, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.function = staticmethod(function)
        cls.__doc__ = f"`{function.__name__}` as a module. {cls.__doc__ or ''}\n\n{function.__doc__}"

    def __init__(self, **options):
        super().__init__()
        self.options = options_of(self.function, options, exclude=self.per_call)
        if "tau" in self.options:
            check_tau(self.options["tau"])

    @classmethod
    def option_types(cls) -> dict[str, typing.Any]:
        """The annotation of each option that construction takes, by name."""
        return option_types(cls.function, cls.per_call)

    def forward(self, *features, **changes):
        return self.function(*features, **{**self.options, **changes})

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class SSLAlign(Loss, function=ssl_align):
    """project_visual, project_audio: projection layers (modules become children), or None."""

    per_call = ("positives", "extra_negatives", "group", "tokens", "projected_visuals", "projected_audios")

    def __init__(self, project_visual: Callable | None = None, project_audio: Callable | None = None, **options):
        super().__init__(**options)
        self.project_visual, self.project_audio = project_visual, project_audio

    def forward(self, visuals, audios, **changes):
        return super().forward(visuals, audios, self.project_visual, self.project_audio, **changes)


class MarginNCE(Loss, function=margin_nce):
    pass


class LVS(Loss, function=lvs):
    pass


class EZVSL(Loss, function=ez_vsl):
    pass


class SLAVC(Loss, function=slavc):
    """forward(visual_loc, visual_avc, audio_loc, audio_avc, momentum=...)."""


class FNAC(Loss, function=fnac):
    pass


class HardPositives(Loss, function=hard_positives):
    """forward(visual, audio, similar_visual, similar_audio)."""


class SSPL(Loss, function=sspl):
    """forward(visuals, audio, head)."""


class DenseAV(Loss, function=dense_av):
    """scale: start of a learned parameter in place of the function's argument, exp(log_scale) kept within [.01, 100].

    negative_pressure, silence, total_variation, head_specialization: weights of these regularisers, which are added;
        with `normalize` they are of cosines, and in a group each process's are of its own samples.
    forward(visual, audio, silent=..., generator=...): silent (N, T) bool, tokens that the scores leave out (those of a
        clip without another are 0) and the silence regulariser is of; generator: of `negative_pressure`.
    """

    per_call = ("positives", "extra_negatives", "group", "tokens", "bias", "scale")
    regularisers = ("negative_pressure", "silence", "total_variation", "head_specialization")

    def __init__(self, scale: float = 1.0, **options):
        own = {name: options.pop(name, 0.0) for name in self.regularisers}
        super().__init__(**options)
        if not 0.01 <= scale <= 100:
            raise ValueError(f"scale: expected within [0.01, 100], got {scale}")
        self.options = {"scale": scale, **own} | self.options
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    @classmethod
    def option_types(cls) -> dict[str, typing.Any]:
        return {"scale": float, **dict.fromkeys(cls.regularisers, float)} | super().option_types()

    def forward(
        self,
        visual: Tensor,
        audio: Tensor,
        *,
        silent: Tensor | None = None,
        generator: torch.Generator | None = None,
        **changes,
    ) -> Tensor:
        log_scale = self.log_scale
        # with the gradient of exp at bounds and beyond, too: by that of clamp, 0, a scale would stay there for ever
        scale = log_scale.detach().exp().clamp(0.01, 100) * (1 + log_scale - log_scale.detach())
        options = self.options | {"scale": scale} | changes
        if silent is not None:
            check_silent(silent, audio)
            options.setdefault("tokens", ops.TokenMean(~silent, empty=0.0))
        weights = {name: options.pop(name) for name in self.regularisers}
        if weights["silence"] and silent is None:
            raise ValueError(
                f"silent: expected the (N, T) silent tokens for the weight {weights['silence']} of silence, got None"
            )
        loss = self.function(visual, audio, **options)
        if options["normalize"]:
            visual, audio = (unit(x, accumulate_dtype(x)) for x in (visual, audio))
        terms = {
            "negative_pressure": partial(negative_pressure, generator=generator),
            "silence": partial(silence, silent=typing.cast(Tensor, silent)),
            "total_variation": total_variation,
            "head_specialization": head_specialization,
        }
        for name, term in terms.items():
            if weights[name]:
                loss = loss + weights[name] * term(visual, audio, heads=options["heads"])
        return loss


class LateInteraction(Loss, function=late_interaction):
    per_call = ("positives", "extra_negatives", "group", "visual_mask", "audio_mask")


class SSLTIE(Loss, function=ssl_tie):
    def __init__(self, **options):
        own = {name: options.pop(name) for name in options_of(ssl_tie, {}, self.per_call) if name in options}
        super().__init__(**own)
        self.options |= options_of(lvs, options, LVS_PER_CALL)
        check_tau(self.options["tau"])

    @classmethod
    def option_types(cls) -> dict[str, typing.Any]:
        return super().option_types() | option_types(lvs, LVS_PER_CALL)


LOSSES: dict[str, type[Loss]] = {
    "ssl_align": SSLAlign,
    "margin_nce": MarginNCE,
    "lvs": LVS,
    "ez_vsl": EZVSL,
    "slavc": SLAVC,
    "fnac": FNAC,
    "ssl_tie": SSLTIE,
    "hard_positives": HardPositives,
    "sspl": SSPL,
    "dense_av": DenseAV,
}
