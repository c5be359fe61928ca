"""Recipes: everything that decides how a method is trained, as data. `recipe(method)` is what quickstart uses."""

import dataclasses
import math
import typing
from dataclasses import dataclass, field

from ..data.io.images import FITS, RESAMPLERS, SQUARE
from ..data.negatives import KINDS
from ..data.transforms import MASKS, POLICIES, TRANSFORMS, Policy
from ..losses import LOSSES
from ..models import LocalizerConfig
from ..models.backbones import is_external, own_settings
from . import loss_options, negatives

METHODS = tuple(LOSSES)
_NO_POOLING = ("slavc", "sspl")
VIEWS = ("original", "augmented", "conceptual")
_CHOICES = {
    "optimizer": ("adamw", "adam"),
    "decay": ("cosine", "constant"),
    "precision": ("auto", "float32", "bfloat16", "float16"),
    "augmentation": ("none", "shift", "crop", *POLICIES),
    "masks": ("none", *MASKS),
    "fit": FITS,
    "resampler": RESAMPLERS,
    "transform": tuple(TRANSFORMS),
    "audio_mix": ("none", "ssl_tie"),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how one method is trained.

    method: name of the loss. name: name of the recipe. model: the localizer. loss: keyword options of the loss,
        numbers and strings, as `loss_options` has them; `pooling` is a dict of its `name` and its options. Without s_A
        (`alignment` of ssl_align) the model has no projections.
    front_end, image_size: name of the audio front end and side of the square images, for folders of media. fit,
        resampler: how frames that are not augmented become squares, see images.fit_frame, in training and wherever the
        localizer is used.
    warm_up_steps: the learning rate rises linearly from 0 over as many steps, then follows `decay` over the whole run.
    pooling_warm_up: (start, end) as fractions of the run: until `start` scores are pooled by the plain mean, between
        both they are blended linearly into the method's own pooling (to `mean_weight`, if the loss has one). Selective
        poolings (soft threshold, maximum) can collapse without it when nets start from scratch: they select before
        there is anything to select. None: no warm-up. slavc and sspl, which pool in other ways, have none.
    precision: of the nets' convolutions; "auto" is bfloat16 where the processor computes with it, else float32. The
        features that they give have its dtype, scores and losses are float32 always. "float16", for GPUs without
        bfloat16, scales the loss (torch.amp.GradScaler): a step whose gradient overflows is left out.
    augmentation: of squares, "shift" (flip, shift by up to a twelfth) or "crop" (flip, random resized crop with an area
        of `crop_area` or more), with sounds shifted circularly in time by either; or of whole frames, one of
        transforms.POLICIES. vertical_flip: with "shift", images are turned upside down too, for sets without up and
        down such as the scenes. Without it a net may come to answer half a cell too high or too low everywhere, which
        costs it nothing in training; photographs are the harder for it.
    time_shift: with a policy for frames, what is heard is taken so many seconds earlier or later in the clip, from
        U(low, high) with a random sign; None: as the front end cuts it. masks: of spectrograms, of transforms.MASKS.
    transform: ssl_tie's, a name in transforms.TRANSFORMS. audio_mix: with a policy for frames, "ssl_tie" mixes sounds
        as its audmix variant does: from the second epoch on, in epoch e = 1, 2 ... with probability .1 + .01 e, clips
        become (1 - .01 e) of themselves and .01 e of their nearest in a random queue of 4,000. Here neighbours are
        found once, by `ssl-fast mine`, there anew after each epoch by the net itself.
    views: of each sample in a step, all views of the image paired with all of the sound: "original", "augmented"
        (as above, drawn anew each time) or "conceptual" (the image, and the sound, of a nearest neighbour, not
        augmented). ssl_align takes any number; hard_positives two, the sample's and the similar one's; sspl two images
        of one sound, the first view's; all other methods one.
    negatives: {kind: number} of sounds that are nobody's positive, beside each batch that the loss sees: "silence",
        "noise", "offscreen", see training.negatives; of all methods but sspl. negatives_weight: how often each counts.
    nce_epochs: epochs at the start of the run in which fnac's L1 terms are left out; fewer than `epochs`.
    momentum_decay: slavc's slow copy of the nets; None: both sides of the loss are the nets themselves.
    accumulation: the batch goes through the nets in so many equal parts, one after the other; each has its own
        negatives and batch statistics, and the gradient is their mean.
    """

    method: str
    name: str
    model: LocalizerConfig
    loss: dict = field(default_factory=dict)
    front_end: str = "scenes"
    image_size: int = 112
    fit: str = "squash"
    resampler: str = "pillow"
    epochs: int = 18
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warm_up_steps: int = 50
    decay: str = "cosine"
    pooling_warm_up: tuple[float, float] | None = (0.1, 0.3)
    precision: str = "auto"
    augmentation: str = "shift"
    vertical_flip: bool = False
    crop_area: float = 0.5
    time_shift: tuple[float, float] | None = None
    masks: str = "none"
    transform: str = "single_shrink"
    audio_mix: str = "none"
    views: tuple[str, ...] = ("augmented",)
    negatives: dict = field(default_factory=dict)
    negatives_weight: float = 1.0
    nce_epochs: float = 0.0
    momentum_decay: float | None = None
    accumulation: int = 1

    def __post_init__(self):
        check_method(self.method)
        if self.model.method != self.method:
            raise ValueError(f"model: expected a localizer for {self.method}, got one for {self.model.method}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        # of one pixel the first convolution of the narrow nets has no output
        for name, least, most in (("epochs", 1, 10**6), ("image_size", 2, SQUARE), ("accumulation", 1, 10**6)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name}: expected {least} to {most}, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size: expected >= 2, a positive and a negative, got {self.batch_size}")
        if self.batch_size % self.accumulation or self.batch_size < 2 * self.accumulation:
            raise ValueError(
                f"accumulation: expected to cut the batch of {self.batch_size} into equal parts of 2 or "
                f"more, got {self.accumulation}"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected > 0, got {self.learning_rate}")
        if not isinstance(self.views, (tuple, list)) or not self.views or not set(self.views) <= set(VIEWS):
            raise ValueError(f"views: expected some of {', '.join(VIEWS)}, got {self.views!r}")
        object.__setattr__(self, "views", tuple(self.views))  # lists after a round trip through JSON, here and below
        compared = {"ssl_align": len(self.views), "hard_positives": 2, "sspl": 2}.get(self.method, 1)
        if len(self.views) != compared:
            raise ValueError(f"views: {self.method} compares {compared}, got {', '.join(self.views)}")
        negatives.check(self.negatives, self.negatives_weight)
        if self.negatives and self.method == "sspl":
            raise ValueError(f"negatives: sspl has no negatives, got {', '.join(self.negatives)}")
        if self.negatives_weight != 1 and not self.negatives:
            raise ValueError(f"negatives_weight: expected with negatives, got {self.negatives_weight}")
        ordered = {kind: self.negatives[kind] for kind in KINDS if kind in self.negatives}
        object.__setattr__(self, "negatives", ordered)
        if self.pooling_warm_up is not None and self.method in _NO_POOLING:
            raise ValueError(f"pooling_warm_up: {self.method} has none, got {self.pooling_warm_up}")
        if self.momentum_decay is not None and self.method != "slavc":
            got = f"{self.momentum_decay} for {self.method}"
            raise ValueError(f"momentum_decay: only slavc has momentum nets, got {got}")
        if self.nce_epochs and self.method != "fnac":
            raise ValueError(
                f"nce_epochs: only fnac has L1 terms to wait with, got {self.nce_epochs} for {self.method}"
            )
        if not 0 <= self.nce_epochs < self.epochs:
            raise ValueError(
                f"nce_epochs: expected >= 0 and fewer than the {self.epochs} epochs of the run, or fnac's L1 terms "
                f"never come, got {self.nce_epochs}"
            )
        if self.transform != "single_shrink" and self.method != "ssl_tie":
            raise ValueError(f"transform: only ssl_tie has one, got {self.transform} for {self.method}")
        if self.audio_mix != "none" and self.policy is None:
            expected = f"an augmentation among {', '.join(POLICIES)}"
            raise ValueError(f"audio_mix: expected with {expected}, got {self.augmentation!r}")
        if not 0 < self.crop_area <= 1:
            raise ValueError(f"crop_area: expected in (0, 1], got {self.crop_area}")
        if self.time_shift is not None:
            low, high = (float(x) for x in self.time_shift)
            if not 0 <= low <= high < math.inf:
                raise ValueError(f"time_shift: expected 0 <= low <= high in seconds, got {(low, high)}")
            if self.policy is None:
                expected = f"an augmentation among {', '.join(POLICIES)}"
                raise ValueError(f"time_shift: expected with {expected}, got {self.augmentation!r}")
            object.__setattr__(self, "time_shift", (low, high))
        if self.pooling_warm_up is not None:
            start, end = (float(x) for x in self.pooling_warm_up)
            if not 0 <= start <= end <= 1:
                raise ValueError(f"pooling_warm_up: expected 0 <= start <= end <= 1, got {(start, end)}")
            object.__setattr__(self, "pooling_warm_up", (start, end))
        loss = {name: tuple(value) if isinstance(value, list) else value for name, value in self.loss.items()}
        object.__setattr__(self, "loss", loss)
        loss_options.check(self.method, loss)
        self.build_loss()  # which checks what depends on values
        if not loss.get("alignment", True):  # parameters without gradient would stop DistributedDataParallel
            object.__setattr__(self, "model", dataclasses.replace(self.model, projection=None))

    @property
    def neighbors(self) -> tuple[str, ...]:
        """The modalities, "visual" and "audio", whose nearest neighbours the views of samples need."""
        if "conceptual" in self.views:
            return ("visual", "audio")
        return ("audio",) if self.audio_mix != "none" else ()

    @property
    def reading(self) -> dict:
        """Keyword arguments of the sample sets that this recipe trains on and its localizer is used with."""
        return {"front_end": self.front_end, "size": self.image_size, "fit": self.fit, "resampler": self.resampler}

    @property
    def policy(self) -> Policy | None:
        """The policy for whole frames; None where squares are augmented, or nothing is."""
        return POLICIES.get(self.augmentation)

    def build_loss(self):
        """The loss module with this recipe's options."""
        options = dict(self.loss)
        if "pooling" in options:
            options["pooling"] = loss_options.pooling(options["pooling"])
        if self.method == "dense_av":  # what the maps of the localizer are
            options |= {"heads": self.model.heads, "normalize": True}
        return LOSSES[self.method](**options)

    def to_dict(self) -> dict:
        """Plain dicts, lists and numbers, for JSON and checkpoints."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Recipe":
        values = dict(values)
        unknown = sorted(values.keys() - {f.name for f in dataclasses.fields(cls)})
        if unknown or not isinstance(values.get("model"), dict):
            raise ValueError(f"recipe: expected the fields of Recipe, got {', '.join(unknown) or 'no model'}")
        values["model"] = LocalizerConfig(**values["model"])
        return cls(**values)

    def steps(self, samples: int) -> int:
        """Planned steps on a set of `samples`; a last incomplete batch of each epoch is left out."""
        if samples < self.batch_size:
            raise ValueError(f"batch_size: expected at most the {samples} samples of the set, got {self.batch_size}")
        return self.epochs * (samples // self.batch_size)

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Learning rate of step 0, 1, ... at `progress` in [0, 1] of the run."""
        rise = min(1.0, (step + 1) / max(1, self.warm_up_steps))
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) if self.decay == "cosine" else 1.0
        return self.learning_rate * rise * fall

    def leaves_out_l1_at(self, progress: float) -> bool:
        """True while fnac trains without its L1 terms, at `progress` in [0, 1] of the run."""
        return progress < self.nce_epochs / self.epochs

    def mean_weight_at(self, progress: float) -> float:
        """Weight of the plain mean in the blend of poolings: 1 until `start`, the loss's own from `end`."""
        own = self.loss.get("mean_weight", 0.0)
        if self.pooling_warm_up is None:
            return own
        start, end = self.pooling_warm_up
        ramp = float(progress < end) if start == end else min(1.0, max(0.0, (end - progress) / (end - start)))
        return own + (1 - own) * ramp


def check_method(method: str) -> None:
    """ValueError that lists the methods, for a name that is none of them."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")


# Weights of DenseAV's regularisers.
_DENSE_AV = {"negative_pressure": 0.01, "silence": 0.01, "total_variation": 0.01, "head_specialization": 0.05}

# Losses of the small nets. Where a published temperature of .03 does not start from scratch within minutes, it is .07.
# FNAC's L1 terms are means over the entries of matrices whose rows sum to 1, so their weights go with the batch: 100
# for 128 as published are 25 for 32.
_QUICKSTART: dict[str, dict] = {
    "ssl_align": {"loss": {"pooling": {"name": "soft_threshold"}, "symmetric": True}},
    "margin_nce": {"loss": {"symmetric": True}},
    "ez_vsl": {"loss": {"tau": 0.07}},
    "lvs": {},
    "slavc": {"model": {"visual_dropout": 0.5}, "loss": {"tau": 0.07, "negatives": "both"}, "pooling_warm_up": None},
    "fnac": {"loss": {"tau": 0.07, "weights": (25.0, 25.0, 25.0)}, "nce_epochs": 5.4},
    "ssl_tie": {"epochs": 10},  # every image twice in a step
    # without neighbours, another draw of the sample itself
    "hard_positives": {"views": ("augmented", "augmented"), "loss": {"symmetric": True}},
    "sspl": {"views": ("augmented", "augmented"), "pooling_warm_up": None},
    "dense_av": {"loss": {"scale": 14.0, **_DENSE_AV, "silence": 1.0}, "masks": "silence"},
}

# As published. What a paper leaves open is filled in from its nearest relative: EZ-VSL for SSL-Align's and MarginNCE's
# batch, SSL-Align's weight decay, MarginNCE's learning rate and image augmentation; FNAC for MarginNCE's weight decay
# (there is some, of unknown size); SSL-TIE, whose loss is LVS's, for LVS's batch, epochs and weight decay; vssl_eval's
# data set for SSL-Align's time shift; what their evaluators do to frames for LVS's fit and SSL-Align's resampler.
# SLAVC's paper has a weight decay of 1e-4, its program none. FNAC waits 5 epochs for its L1 terms, as its scripts do (3
# where its program is not told), and its masks lie where they were meant to. HardPos has LVS's net and loss, and so its
# recipe. SSPL's program trains heads on frozen VGG-16 and VGGish nets, with the predictive coding module at 2e-5 to
# 5e-5; the nets here are ResNet-18s that learn, at the others' rate. DenseAV's program trains DINO and HuBERT nets by
# low-rank updates; here too they are ResNet-18s, with 14 x 14 cells and a token for every 16 frames (.24 s) of LVS's
# 10 s, trained as EZ-VSL's. Products are those of unit vectors, so that maps have the units of all others, and the
# learned scale starts near 1 / .07. Heads, batch and weights of the regularisers are the program's.
_PUBLISHED: dict[str, dict] = {
    "ssl_align": {
        "epochs": 50,
        "front_end": "ssl_align",
        "resampler": "torch_aliased",
        "augmentation": "simclr",
        "time_shift": (0.1, 0.5),
        "views": VIEWS,
    },
    "margin_nce": {"weight_decay": 1e-4},
    "ez_vsl": {},
    "lvs": {"epochs": 100, "batch_size": 32, "weight_decay": 1e-4, "front_end": "lvs", "fit": "crop"},
    "slavc": {"front_end": "slavc", "momentum_decay": 0.999},
    "fnac": {
        "epochs": 30,
        "batch_size": 256,
        "weight_decay": 1e-4,
        "front_end": "fnac",
        "masks": "fnac",
        "nce_epochs": 5,
    },
    "ssl_tie": {
        "epochs": 100,
        "batch_size": 32,
        "weight_decay": 1e-4,
        "front_end": "ssl_tie",
        "fit": "crop",
        "augmentation": "moco_v2",
        "masks": "ssl_tie",
    },
    "hard_positives": {
        "epochs": 100,
        "batch_size": 32,
        "weight_decay": 1e-4,
        "front_end": "lvs",
        "fit": "crop",
        "views": ("augmented", "conceptual"),
    },
    "sspl": {"batch_size": 256, "weight_decay": 1e-4, "optimizer": "adamw", "views": ("augmented", "augmented")},
    "dense_av": {"batch_size": 40, "front_end": "lvs", "loss": {"scale": 14.0, **_DENSE_AV}},
}


def quickstart(method: str) -> dict:
    """Fields of a recipe for the narrow nets, which train from scratch in minutes."""
    fields = dict(_QUICKSTART[method])
    return fields | {"model": LocalizerConfig.small(method, **fields.get("model", {}))}


def published(method: str) -> dict:
    """Fields of a published recipe: EZ-VSL's (Adam at a constant rate, no warm-up of any kind), and what differs."""
    ez_vsl = {
        "model": LocalizerConfig.published(method),
        "front_end": "ez_vsl",
        "image_size": 224,
        "epochs": 20,
        "batch_size": 128,
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "warm_up_steps": 0,
        "decay": "constant",
        "pooling_warm_up": None,
        "precision": "float32",
        "augmentation": "ez_vsl",
    }
    return ez_vsl | _PUBLISHED[method]


RECIPES = {"quickstart": quickstart, "published": published}
# What the image nets of the published runs started from; of SSL-Align's those of its paper.
PUBLISHED_START = {
    **dict.fromkeys(("ez_vsl", "slavc", "fnac", "sspl"), "ImageNet weights"),
    **dict.fromkeys(("lvs", "ssl_tie", "ssl_align", "hard_positives"), "scratch"),
    "dense_av": "DINO weights of another net",
    "margin_nce": "weights that its paper does not name",
}


def _with_backbones(
    model: LocalizerConfig, visual: str | None, audio: str | None, frozen: tuple[str, ...]
) -> tuple[LocalizerConfig, dict]:
    """A localizer with other nets, None: its own, given what they want; fields of the recipe that they want. Without
    heads of its own it gets those of the other methods, for nets need not have the same channels."""
    names = {"visual": visual or model.backbones[0], "audio": audio or model.backbones[1]}
    own = [own_settings(name, modality) for modality, name in names.items() if is_external(name)]
    wanted = {key: value for settings in own for key, value in settings.items()}
    size = {"image_size": wanted.pop("image_size")} if "image_size" in wanted else {}
    if own and model.dimension is None:
        wanted["dimension"] = 512
    changed = dataclasses.replace(
        model, backbone=names["visual"], audio_backbone=names["audio"], frozen=frozen, **wanted
    )
    return changed, size


def recipe(
    method: str,
    name: str = "quickstart",
    *,
    backbone: str | None = None,
    audio_backbone: str | None = None,
    frozen: tuple[str, ...] = (),
    **changes,
) -> Recipe:
    """The recipe `name` ("quickstart" | "published") of a method. `changes` that are not None replace its fields; of
    `loss`, a dict, those options that it has.

    backbone, audio_backbone: of images and of sounds, see `models.backbones`, with its own normalisation and, if no
    other is given, image size; None: the recipe's. frozen: "visual", "audio": nets that are not trained.
    """
    check_method(method)
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    own: dict[str, typing.Any] = RECIPES[name](method)
    if backbone or audio_backbone or frozen:
        model, size = _with_backbones(own["model"], backbone, audio_backbone, frozen)
        own = own | size | {"model": model}
    fields = own | {key: value for key, value in changes.items() if value is not None}
    fields["loss"] = own.get("loss", {}) | (changes.get("loss") or {})
    return Recipe(method=method, name=name, **fields)
