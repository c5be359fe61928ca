"""Protocols as data: how maps become numbers. `protocols` runs them.

`default` is ours: exact pixel counts, up-sampling rounded once. The others do what the published programs do, rounding
included; all take cosines in [-1, 1] and ground truth (N, 224, 224).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from . import mixing
from .map_metrics import Rule, Upsampling

ADAPTIVE, HALF, UNIVERSAL = Rule("adaptive", "truth"), Rule("top50"), Rule("universal", "value", ">")


@dataclass(frozen=True)
class Protocol:
    """Steps from maps to numbers. The default: bilinear up-sampling to the image's size with corners not aligned,
    exact pixel counts, success at IoU >= .5, ground truth = filled boxes (exact masks, where a set has them, as further
    columns).

    squashed_truth: boxes stay at their fractions of the frame where the image is a crop of it, as LVS and SSL-TIE have
    it, which misplaces them on frames that are not square; else they are moved along. exact_masks: ground truth are the
    masks, which a set must have.

    Steps: maps / tau; up-sampling; fixed range of tau; normalisation; mixture with the object prior, where one is
    given; normalisation `after`; rules. Without `tau` its two steps are left out.
    """

    name: str = "default"
    positive: Upsampling = Upsampling()
    negative: Upsampling = Upsampling()  # of maps under negative sounds
    prior: Upsampling = Upsampling()  # of the object prior
    tau: float | None = None  # SLAVC
    normalisation: str = "none"  # of `mixing.NORMALISATIONS`
    prior_normalisation: str = "none"
    alpha: float = 0.4  # weight of the audio-visual map in the mixture
    after: str = "none"
    rules: tuple[Rule, ...] = (ADAPTIVE, HALF, UNIVERSAL)
    empty: float = 1.0  # IoU of nothing predicted where nothing is
    figures: tuple[str, ...] = ("localization",)  # of `protocols.FIGURES`
    successes: tuple[float, ...] = (0.3, 0.5, 0.75)  # lowest IoU of a hit, of "sources"
    grouped: bool = False  # whether image_ids must be given, for IIoU
    squashed_truth: bool = False
    exact_masks: bool = False
    negatives_seed: int = 0  # of the noise and of the draw of off-screen sounds

    def __post_init__(self):
        for step in ("normalisation", "prior_normalisation", "after"):
            if getattr(self, step) not in mixing.NORMALISATIONS:
                raise ValueError(
                    f"protocol {self.name!r}, {step}: expected one of {list(mixing.NORMALISATIONS)}, "
                    f"got {getattr(self, step)!r}"
                )
        if "sources" in self.figures and (self.squashed_truth or self.exact_masks):
            raise ValueError(f"protocol {self.name!r}: expected sources with neither squashed_truth nor exact_masks")

    @property
    def needs_threshold(self) -> bool:
        """Whether there are no figures without the universal threshold."""
        return not {"false_alarms", "robustness"}.isdisjoint(self.figures)

    def record(self) -> dict:
        """Record for a result file: plain lists, dicts, numbers and strings."""
        return json.loads(json.dumps(asdict(self)))

    def exact(self) -> "Protocol":
        """This protocol with up-sampling rounded once: counts may differ by the pixels that rounding puts on the other
        side of a threshold, and the compiled kernel can be used."""
        sizes = {key: replace(getattr(self, key), arithmetic="exact") for key in ("positive", "negative", "prior")}
        return replace(self, name=f"{self.name} (exact)", **sizes)


def _everywhere(upsampling: Upsampling) -> dict[str, Upsampling]:
    return {"positive": upsampling, "negative": upsampling, "prior": upsampling}


OPENCV = Upsampling(arithmetic="opencv")
CORNERS = Upsampling(align_corners=True, arithmetic="torch")
BILINEAR = Upsampling(arithmetic="torch")
BICUBIC = Upsampling("bicubic", arithmetic="torch")
BICUBIC_CORNERS = Upsampling("bicubic", True, "torch")
TOP, TOP_STRICT = (Rule("top50", comparison=comparison) for comparison in (">=", ">"))
TOP_OR_ONE = Rule("top50", comparison="> or >= 1")
ADAPTIVE_STRICT = Rule("adaptive", "truth", ">")
# Of an empty ground truth its evaluator takes half the batch of 64, for half the pixels.
ADAPTIVE_AVSBENCH = Rule("adaptive", "truth", ">", fraction=32 / 224**2)


def _published(name: str, upsampling: Upsampling, rules: Sequence[Rule], **steps) -> Protocol:
    return Protocol(name, **_everywhere(upsampling), rules=tuple(rules), empty=0.0, **steps)


_lvs = _published("lvs", OPENCV, [TOP_OR_ONE], normalisation="min_max_flipped", squashed_truth=True)
_ez_vsl = _published("ez_vsl", CORNERS, [TOP], normalisation="min_max", prior_normalisation="min_max", after="min_max")
_slavc = _published(
    "slavc_extended",
    BICUBIC_CORNERS,
    [TOP],
    tau=0.03,
    prior_normalisation="prior_range",
    after="min_max",
    figures=("detection",),
)
_slavc_absolute = replace(
    _slavc, name="slavc_extended_absolute", after="none", rules=(Rule("at_half", "value", ">=", value=0.5),)
)
_ssl_align = _published(
    "ssl_align",
    CORNERS,
    [TOP_STRICT, ADAPTIVE_STRICT],
    normalisation="min_max_flipped",
    prior_normalisation="min_max_flipped",
    after="min_max",
    grouped=True,
)
_vssl_eval = _published("vssl_eval", OPENCV, [ADAPTIVE_STRICT, UNIVERSAL], figures=("localization", "false_alarms"))
_corners = replace(_vssl_eval, name="vssl_eval_corners", positive=CORNERS, prior=CORNERS)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(),
        _lvs,
        replace(_lvs, name="ssl_tie"),
        _ez_vsl,
        replace(_ez_vsl, name="ez_vsl_validation", **_everywhere(BICUBIC)),  # during training; FNAC's too
        replace(_ez_vsl, name="fnac"),
        replace(_ez_vsl, name="fnac_second_pass", positive=BICUBIC, negative=BICUBIC),
        replace(_slavc, name="slavc_validation", **_everywhere(BICUBIC), figures=("localization",)),
        _slavc,  # with its flag --relative_prediction, and its code's alpha
        replace(_slavc, name="slavc_extended_readme", alpha=0.9),  # the command of its README
        _slavc_absolute,
        replace(_slavc_absolute, name="slavc_extended_scripts", alpha=0.9),  # its scripts, which lack the flag
        _ssl_align,  # its own model and LVS elsewhere, EZ-VSL,
        replace(_ssl_align, name="ssl_align_vggss", **_everywhere(OPENCV)),  # SLAVC, FNAC; its own and LVS on VGG-SS,
        replace(_ssl_align, name="ssl_align_ssl_tie", **_everywhere(OPENCV)),  # SSL-TIE
        _published("avsbench", CORNERS, [TOP_STRICT, ADAPTIVE_AVSBENCH], figures=("segmentation",)),
        Protocol("avsbench_robust", rules=(UNIVERSAL,), figures=("robustness",), exact_masks=True),
        _vssl_eval,  # LVS, SSL-Align on VGG-SS; SSL-TIE
        _corners,  # LVS, SSL-Align on IS3
        replace(_corners, name="vssl_eval_unit", normalisation="unit"),  # EZ-VSL, SLAVC, FNAC
        Protocol("sources", figures=("localization", "sources"), rules=(ADAPTIVE, HALF), grouped=True),
        _published("avgn", BICUBIC, [TOP], tau=0.03, after="min_max", figures=("sources",), grouped=True),
        _published("no_prior", BICUBIC, [TOP_OR_ONE], normalisation="min_max", figures=("sources",), grouped=True),
        _published("denseav", BILINEAR, [], figures=("prompted",)),
        Protocol(
            "vsl_paper",
            normalisation="two_cosines",
            prior_normalisation="channel_sum",  # IPOL note, eq. 7
            rules=(Rule("top50"),),
        ),
    )
}


def protocol_of(protocol: "str | Protocol") -> Protocol:
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {list(PROTOCOLS)}, got {protocol!r}")
    return PROTOCOLS[protocol]


def published_image_id(name: str) -> str:
    """The group of a sample in SSL-Align's IIoU: its file's name without the last `_` field. A name without one is in
    the group "" with all others of its kind."""
    return name.rpartition("/")[2].removesuffix(".jpg").rpartition("_")[0]
