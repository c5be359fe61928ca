"""Localizers of all methods: an image net and an audio net, their heads, maps and retrieval scores, momentum copies."""

import copy
import math
import os
import re
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from .backbones import build_external, check_features, is_external
from .predictive_coding import PredictiveCoding
from .resnet import ResNet18, SmallResNet
from .storage import fitted

METHODS = ("ssl_align", "margin_nce", "lvs", "ez_vsl", "slavc", "fnac", "ssl_tie", "hard_positives", "sspl", "dense_av")
BACKBONES = ("resnet18", "resnet18_stride16", "small")
SIMILARITIES = ("auto", "projected", "mean", "max", "pooled")  # of images and sounds, for retrieval
IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_HEADLESS = (
    "lvs",
    "ssl_tie",
    "ssl_align",
    "hard_positives",
    "sspl",
)  # as published, these compare the ReLU features themselves


@dataclass(frozen=True)
class LocalizerConfig:
    """Everything that builds a localizer, and nothing that trains it. `published` and `small` fill it in for a method.

    method: one of METHODS.
    backbone: "resnet18" (224 px: 7x7 cells), "resnet18_stride16" (224 px: 14x14), "small" (112 px: 7x7), "timm:NAME"
        or "MODULE:NAME", see `models.backbones`. audio_backbone: of sounds, where it is another one.
    frozen: "visual", "audio": nets that are not trained. They stay in evaluation mode, with their batch statistics.
    width: first width of the small nets.
    dimension: output of the heads (1x1 convolution for images, linear for audio; two of each for slavc); None: none.
    head_bias: whether heads and projections have a bias. Without a good start a bias lets all features drift to one
        direction, where the contrast stays at chance.
    projection: of ssl_align, output D of the projections that s_A compares, None: no s_A; of sspl, which needs one,
        output D of the head whose projections and predictions its loss compares. No other method has projections.
    heads: of dense_av alone, groups that the channels are cut into; a map is the element-wise maximum of theirs.
    cycles: of sspl, cycles of its predictive coding module (`predictive_coding`); None: without the module.
    visual_dropout, audio_dropout: element-wise, on the features before the heads (one mask for both heads of slavc).
    image_mean, image_std: of RGB in [0, 1]. spectrogram_mean, spectrogram_std: of the front end's output.
    """

    method: str = "ssl_align"
    backbone: str = "small"
    audio_backbone: str | None = None
    frozen: tuple[str, ...] = ()
    width: int = 16
    dimension: int | None = 128
    head_bias: bool = False
    projection: int | None = None
    heads: int = 1
    cycles: int | None = None
    visual_dropout: float = 0.0
    audio_dropout: float = 0.0
    image_mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    image_std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    spectrogram_mean: float = -0.9
    spectrogram_std: float = 0.35

    @property
    def has_tokens(self) -> bool:
        """Whether sounds are sequences of audio tokens."""
        return self.method == "dense_av"

    @property
    def backbones(self) -> tuple[str, str]:
        """Names of the image net and of the audio net."""
        return self.backbone, self.audio_backbone or self.backbone

    @property
    def is_external(self) -> bool:
        """Whether one of the nets comes from outside the package."""
        return any(map(is_external, self.backbones))

    def __post_init__(self):
        for name in ("image_mean", "image_std"):  # lists after a round trip through JSON
            value = tuple(float(x) for x in getattr(self, name))
            if len(value) != 3:
                raise ValueError(f"{name}: expected three values, got {value}")
            object.__setattr__(self, name, value)
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        for name in self.backbones:
            if not isinstance(name, str) or not (name in BACKBONES or re.fullmatch(r"[\w.]+:[\w.]+", name)):
                expected = f"{', '.join(BACKBONES)}, timm:NAME or MODULE:NAME"
                raise ValueError(f"backbone: expected one of {expected}, got {name!r}")
        object.__setattr__(self, "frozen", tuple(self.frozen))
        if not set(self.frozen) <= {"visual", "audio"} or (len(self.frozen) == 2 and self.dimension is None):
            expected = "visual or audio, and with a dimension both"
            raise ValueError(f"frozen: expected some of {expected}, got {', '.join(map(str, self.frozen))}")
        for name in ("width", "heads", "dimension", "projection", "cycles"):  # the last three may be None
            value = getattr(self, name)
            if type(value) is not int and (value is not None or name in ("width", "heads")):
                raise ValueError(f"{name}: expected an integer, got {value!r}")
        for name in ("width", "dimension", "projection"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected >= 1, got {getattr(self, name)}")
        if self.method == "slavc" and self.dimension is None:
            raise ValueError("dimension: slavc needs heads for its two spaces, got None")
        if self.method == "sspl" and self.projection is None:
            raise ValueError("projection: sspl needs the head whose projections it compares, got None")
        if self.projection is not None and self.method not in ("ssl_align", "sspl"):
            got = f"{self.projection} for {self.method}"
            raise ValueError(f"projection: only ssl_align and sspl have projections, got {got}")
        if self.cycles is not None and (self.method != "sspl" or self.cycles < 0):
            got = f"{self.cycles} for {self.method}"
            raise ValueError(f"cycles: expected >= 0, of sspl's predictive coding module alone, got {got}")
        if self.heads < 1 or (self.heads > 1 and self.method != "dense_av"):
            got = f"{self.heads} for {self.method}"
            raise ValueError(f"heads: expected >= 1, and 1 for methods other than dense_av, got {got}")
        compared = self.dimension or (8 * self.width if self.backbone == "small" else 512)
        if compared % self.heads:
            raise ValueError(f"heads: expected a divisor of the dimension {compared}, got {self.heads}")
        for name in ("visual_dropout", "audio_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected within [0, 1), got {getattr(self, name)}")
        if min(*self.image_std, self.spectrogram_std) <= 0:
            raise ValueError(f"expected standard deviations > 0, got {self.image_std} and {self.spectrogram_std}")

    @classmethod
    def published(cls, method: str, **changes) -> "LocalizerConfig":
        """The architecture that the method was published with (ssl_align's projections are not specified there; of
        sspl the head, on ResNet-18 nets in place of its frozen VGG-16 and VGGish)."""
        config = {
            "method": method,
            "backbone": "resnet18",
            "dimension": 512,
            "head_bias": True,
            "spectrogram_mean": 0.0,
            "spectrogram_std": 1.0,
            **IMAGENET,
        }
        if method in _HEADLESS:
            config |= {"backbone": "resnet18_stride16", "dimension": None}
        config |= {
            "ssl_align": {"projection": 512},
            "sspl": {"projection": 2048, "cycles": 4},
            "dense_av": {"backbone": "resnet18_stride16", "heads": 2},
        }.get(method, {})
        if method in ("slavc", "fnac"):
            config["visual_dropout"] = 0.9
        return cls(**(config | changes))

    @classmethod
    def small(cls, method: str, **changes) -> "LocalizerConfig":
        """The narrow nets for 112-pixel scenes: heads without bias for all methods, projections for those that have
        some."""
        own = {"ssl_align": {"projection": 128}, "sspl": {"projection": 128}, "dense_av": {"heads": 2}}
        fields: dict[str, typing.Any] = {"method": method, **own.get(method, {}), **changes}
        return cls(**fields)


def build(config: LocalizerConfig) -> "Localizer":
    """A freshly initialised localizer; the draw is torch's global generator's."""
    return Localizer(config)


def blank(config: LocalizerConfig) -> "Localizer":
    """A localizer without weights (torch's meta device), for `fill`: to draw weights takes longer than to load them.
    External backbones are made as ever, for not all that they hold need be in their weights."""
    if config.is_external:
        with torch.random.fork_rng(devices=[]):
            return build(config)
    with torch.device("meta"):
        return build(config)


def fill(localizer: "Localizer", weights: Mapping[str, Tensor]) -> "Localizer":
    """A `blank` localizer with all its weights, of any floating type, as float32 and in evaluation mode. ValueError
    lists what does not fit, see `storage.fitted`."""
    localizer.load_state_dict(fitted(weights, localizer.state_dict()), assign=not localizer.config.is_external)
    return localizer.to(memory_format=torch.channels_last).eval()


def _backbone(
    name: str, width: int, in_channels: int, strides: tuple[int, int, int, int], over_time: bool = False
) -> typing.Any:
    """The net of this name, with `channels`; with `columns` where its features are over time."""
    if name == "small":
        return SmallResNet(in_channels, strides, width, over_time)
    if not is_external(name):
        return ResNet18(in_channels, 16 if name == "resnet18_stride16" else 32)
    net = build_external(name, in_channels)
    if over_time and not hasattr(net, "columns"):
        raise ValueError(f"backbone {name}: expected a module with `columns`, the times of its features, for dense_av")
    return net


class Localizer(nn.Module):
    """An image net and an audio net whose features are compared by cosine.

    has_tokens: whether sounds are sequences of audio tokens (dense_av).
    visual_features and audio_features give dicts of raw (not normalised) features that `ssl_fast.losses` take:
        "visual" (B, C, h, w) and "audio" (B, C), for slavc "visual_loc", "visual_avc", "audio_loc" and "audio_avc";
        for dense_av "audio" (B, C, T), T tokens of a spectrogram of any length, see `token_times`;
        for ssl_align with projections also "visual_projected" and "audio_projected" (B, D), whose cosine is s_A.
    predictor: the head that sspl's loss takes, None for other methods. predictive_coding: see `aligned`; or None.
    Inputs: images (B, 3, H, W) from `normalize_images`, log spectrograms (B, 1, F, T) from `normalize_spectrograms`.
    """

    image_mean: Tensor  # buffers
    image_std: Tensor
    spectrogram_mean: Tensor
    spectrogram_std: Tensor

    def __init__(self, config: LocalizerConfig):
        super().__init__()
        self.config = config
        visual_name, audio_name = config.backbones
        self.visual_net = _backbone(visual_name, config.width, 3, (1, 2, 2, 1))
        self.has_tokens = config.has_tokens
        self.audio_net = _backbone(audio_name, config.width, 1, (1, 2, 2, 2), over_time=self.has_tokens)
        for modality in config.frozen:
            self._net(modality).requires_grad_(False)
        channels, audio_channels, bias = self.visual_net.channels, self.audio_net.channels, config.head_bias
        if config.dimension is None and channels != audio_channels:
            got = f"{channels} of {visual_name} and {audio_channels} of {audio_name}"
            raise ValueError(f"dimension: expected one for nets with different channels, {got}, got None")
        self.visual_dropout, self.audio_dropout = nn.Dropout(config.visual_dropout), nn.Dropout(config.audio_dropout)
        self.spaces = ("_loc", "_avc") if config.method == "slavc" else ("",)
        self.visual_heads, self.audio_heads = nn.ModuleDict(), nn.ModuleDict()
        for space in self.spaces:
            if config.dimension is not None:
                self.visual_heads["visual" + space] = nn.Conv2d(channels, config.dimension, 1, bias=bias)
                self.audio_heads["audio" + space] = nn.Linear(audio_channels, config.dimension, bias=bias)
        self.project_visual = self.project_audio = self.predictor = None
        if config.projection is not None and config.method == "sspl":
            self.predictor = SimSiamHead(config.dimension or channels, config.projection)
        elif config.projection is not None:
            self.project_visual = nn.Linear(channels, config.projection, bias=bias)
            self.project_audio = nn.Linear(audio_channels, config.projection, bias=bias)
        self.predictive_coding = None
        if config.cycles is not None:
            compared = config.dimension or channels
            self.predictive_coding = PredictiveCoding(compared, compared, config.cycles)
        drawn = torch.get_default_device().type != "meta"
        if drawn and config.backbone != "small":  # the narrow recipe keeps torch's own start of the heads
            self._initialize_heads()
        for name in ("image_mean", "image_std"):
            self.register_buffer(name, torch.tensor(getattr(config, name), device="cpu").view(3, 1, 1))
        for name in ("spectrogram_mean", "spectrogram_std"):
            self.register_buffer(name, torch.tensor(float(getattr(config, name)), device="cpu"))
        self.to(memory_format=torch.channels_last)  # much faster on CPU, and no slower elsewhere

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, *, revision: str | None = None, allowed: Collection[str] = ()
    ) -> "Localizer":
        """The localizer alone of `checkpoints.Checkpoint.from_pretrained`, which also has its front end, image size and
        thresholds, and which writes what is read here: a localizer does not know what it is used with."""
        from .checkpoints import Checkpoint

        return Checkpoint.from_pretrained(name, revision=revision, allowed=allowed).localizer

    def _net(self, modality: str) -> nn.Module:
        return self.visual_net if modality == "visual" else self.audio_net

    def train(self, mode: bool = True) -> "Localizer":
        super().train(mode)
        for modality in self.config.frozen:
            self._net(modality).eval()
        return self

    def _initialize_heads(self) -> None:
        for head in (*self.visual_heads.values(), *self.audio_heads.values(), self.project_visual, self.project_audio):
            if isinstance(head, nn.Conv2d):
                nn.init.kaiming_normal_(head.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(head, nn.Linear):
                nn.init.trunc_normal_(head.weight, std=0.01)

    def normalize_images(self, images: Tensor) -> Tensor:
        """RGB uint8 (B, 3, H, W) -> float32, (x / 255 - image_mean) / image_std."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        planes = (images.contiguous() / 255 - self.image_mean).div_(self.image_std)  # vectorized along rows
        return planes.contiguous(memory_format=torch.channels_last)

    def normalize_spectrograms(self, spectrograms: Tensor) -> Tensor:
        """Log spectrograms float (B, 1, F, T) -> float32, (x - spectrogram_mean) / spectrogram_std."""
        if not spectrograms.is_floating_point() or spectrograms.dim() != 4 or spectrograms.shape[1] != 1:
            got = f"{spectrograms.dtype} {tuple(spectrograms.shape)}"
            raise ValueError(f"spectrograms: expected float (B, 1, F, T), got {got}")
        return (spectrograms.float() - self.spectrogram_mean) / self.spectrogram_std

    def visual_features(self, images: Tensor) -> dict[str, Tensor]:
        _check_float("images", images, "normalize_images")
        x = self.visual_net(images.contiguous(memory_format=torch.channels_last))
        x = self.visual_dropout(check_features(self.config.backbones[0], x, self.visual_net.channels, (4,)))
        features = {name: head(x) for name, head in self.visual_heads.items()} or {"visual": x}
        if self.project_visual is not None:
            features["visual_projected"] = self.project_visual(x.mean((2, 3)))
        return features

    def audio_features(self, spectrograms: Tensor) -> dict[str, Tensor]:
        _check_float("spectrograms", spectrograms, "normalize_spectrograms")
        x = self.audio_net(spectrograms.contiguous(memory_format=torch.channels_last))
        dims = (3, 4) if self.has_tokens else (2, 3, 4)
        x = check_features(self.config.backbones[1], x, self.audio_net.channels, dims)
        if self.has_tokens:
            tokens = self.audio_dropout(x.amax(2) if x.dim() == 4 else x).transpose(1, 2)
            heads = {name: head(tokens) for name, head in self.audio_heads.items()} or {"audio": tokens}
            return {name: x.transpose(1, 2).contiguous() for name, x in heads.items()}
        x = self.audio_dropout(x.amax(tuple(range(2, x.dim()))) if x.dim() > 2 else x)
        features = {name: head(x) for name, head in self.audio_heads.items()} or {"audio": x}
        if self.project_audio is not None:
            features["audio_projected"] = self.project_audio(x)
        return features

    def aligned(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Visual features (B, C, h, w) as maps compare them with audio features (B, C) of the same samples: by SSPL's
        predictive coding module, if there is one, which sees unit vectors of audio. Retrieval goes without it."""
        if self.predictive_coding is None:
            return visual
        return self.predictive_coding(visual, nn.functional.normalize(audio))

    def maps(self, visual: dict[str, Tensor], audio: dict[str, Tensor], backend: str = "auto") -> Tensor:
        """Localization maps (B, h, w) of paired features, in units of the cosine; for slavc the mean of both spaces,
        for dense_av that of the maps of all tokens. backend: of `ops.cosine_map`."""
        if self.has_tokens:
            return self.token_maps(visual, audio).mean(1)
        pairs = [(visual["visual" + space], audio["audio" + space]) for space in self.spaces]
        maps = [ops.cosine_map(self.aligned(*pair), pair[1], backend=backend) for pair in pairs]
        return maps[0] if len(maps) == 1 else (maps[0] + maps[1]) / 2

    def token_maps(self, visual: dict[str, Tensor], audio: dict[str, Tensor]) -> Tensor:
        """Maps of every audio token of paired features -> (B, T, h, w) float32: of each cell the largest of the
        products of its heads, parts of a cosine. ValueError for a localizer without tokens."""
        self._check_tokens()
        pair = (nn.functional.normalize(x.float(), dim=1) for x in (visual["visual"], audio["audio"]))
        heads = zip(*(x.chunk(self.config.heads, 1) for x in pair), strict=True)
        return reduce(torch.maximum, (ops.token_maps(*head, normalize=False) for head in heads))

    def token_times(self, frames: int) -> np.ndarray:
        """Centres of the tokens of a spectrogram of so many frames, as fractions of it: (T,) float64. They are centres
        of receptive fields. ValueError for a localizer without tokens, and for a spectrogram too short for one."""
        self._check_tokens()
        count, first, step = self.audio_net.columns(frames)
        if count < 1:
            raise ValueError(f"frames: expected as many as make a token, got {frames}")
        return (first + step * np.arange(count) + 0.5) / frames

    def tokens_of_frames(self, frames: Tensor) -> Tensor:
        """Which tokens have True alone in their own frames, those that no other token's centre is nearer to: (B,
        frames) bool -> (B, T) bool. ValueError for a localizer without tokens."""
        self._check_tokens()
        count, first, step = self.audio_net.columns(frames.shape[1])
        before = math.ceil((step - 1) / 2 - first)  # frames of the first token that there are not
        others = nn.functional.pad((~frames).float(), (before, max(0, count * step - before - frames.shape[1])))
        return nn.functional.max_pool1d(others[:, : count * step], step) == 0

    def _check_tokens(self) -> None:
        if not self.has_tokens:
            raise ValueError(f"method: expected a localizer with audio tokens (dense_av), got {self.config.method}")

    @torch.no_grad()
    def retrieval(
        self, visual: dict[str, Tensor], audio: dict[str, Tensor], chunk: int = 64, similarity: str = "auto"
    ) -> Tensor:
        """Scores (N, M) of all images with all audios, `chunk` images at a time, float32.

        similarity: "projected", the cosine of the projections (ssl_align's s_A); "mean" or "max" of the map that `maps`
        would give the pair, with tokens the mean over them of that of each; "pooled", the cosine with the average of
        the features, of slavc the mean of both spaces;
        "auto": projected where there are projections, else max. The papers do not say which they took.
        ValueError for another one, for projections that there are not, and without an image.
        """
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity: expected one of {SIMILARITIES}, got {similarity!r}")
        if similarity == "projected" and "visual_projected" not in visual:
            raise ValueError(
                f"similarity: expected a localizer with projections for 'projected', {self.config.method} has none"
            )
        if similarity == "auto":
            similarity = "projected" if "visual_projected" in visual else "max"
        spaces = ("_projected",) if similarity == "projected" else self.spaces
        if not len(visual["visual" + spaces[0]]):
            raise ValueError("visual: expected at least one image, got 0")
        scores = []
        for start in range(0, len(visual["visual" + spaces[0]]), chunk):
            images = [visual["visual" + space][start : start + chunk].float() for space in spaces]
            sounds = [audio["audio" + space].float() for space in spaces]
            if similarity == "max" and len(spaces) > 1:
                scores.append(_largest_mean_cosine(images, sounds))
                continue
            if similarity in ("projected", "pooled"):  # the mean over the one cell of a map is its cosine
                images = [
                    image.flatten(2).mean(2)[:, :, None, None] if image.dim() == 4 else image[:, :, None, None]
                    for image in images
                ]
            pooling = ops.Max() if similarity == "max" else ops.Mean()
            tokens = ops.TokenMean() if self.has_tokens else None
            how = {"tokens": tokens, "heads": self.config.heads}
            pairs = zip(images, sounds)
            scores.append(sum(ops.pooled_similarity(*pair, pooling, **how) for pair in pairs) / len(spaces))
        return torch.cat(scores)

    def forward(self, images: Tensor, spectrograms: Tensor) -> Tensor:
        """(B, 3, H, W), (B, 1, F, T) -> maps (B, h, w)."""
        return self.maps(self.visual_features(images), self.audio_features(spectrograms))

    def extra_repr(self) -> str:
        return f"{self.config.method}, {', '.join(dict.fromkeys(self.config.backbones))}"


class SimSiamHead(nn.Module):
    """SimSiam's projector and predictor, as SSPL has them: (N, C) -> projection z and prediction p of it, (N, D) each.

    Projector: three linear layers of width D with batch norm, ReLU between them, the last norm without scale and shift.
    Predictor: two layers with a bottleneck of D / 4, batch norm and ReLU in it.
    """

    def __init__(self, channels: int, dimension: int):
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(channels, dimension, bias=False),
            nn.BatchNorm1d(dimension),
            nn.ReLU(inplace=True),
            nn.Linear(dimension, dimension, bias=False),
            nn.BatchNorm1d(dimension),
            nn.ReLU(inplace=True),
            nn.Linear(dimension, dimension, bias=False),
            nn.BatchNorm1d(dimension, affine=False),
        )
        bottleneck = max(1, dimension // 4)
        self.predictor = nn.Sequential(
            nn.Linear(dimension, bottleneck, bias=False),
            nn.BatchNorm1d(bottleneck),
            nn.ReLU(inplace=True),
            nn.Linear(bottleneck, dimension),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projector(x)
        return z, self.predictor(z)


def _check_float(name: str, x: Tensor, normalize: str) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected the float output of {normalize}, got {x.dtype}")


def _largest_mean_cosine(images: list[Tensor], sounds: list[Tensor]) -> Tensor:
    """max over cells of the mean of the cosines in several spaces: (N, C, h, w) and (M, C) each -> (N, M)."""
    maps = reduce(
        torch.add,
        (
            torch.einsum("nchw,mc->nmhw", nn.functional.normalize(image), nn.functional.normalize(sound))
            for image, sound in zip(images, sounds)
        ),
    )
    return maps.amax((2, 3)) / len(images)


class Momentum(nn.Module):
    """A slow copy of a localizer, theta_m <- decay * theta_m + (1 - decay) * theta, for SLAVC's second side.

    momentum(online, images, spectrograms) -> dict of features without gradient; in train mode the average is updated
    first, as released, and in eval mode it is not. Only parameters are averaged: in train mode the copy keeps running
    batch norm statistics of its own. With `ema_buffers` these are averaged too, and not collected by the copy itself.
    The online localizer is an argument and not a child, so a state dict holds each net once.
    """

    def __init__(self, online: Localizer, decay: float = 0.999, ema_buffers: bool = False):
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"decay: expected within [0, 1], got {decay}")
        self.decay, self.ema_buffers = decay, ema_buffers
        self.localizer = copy.deepcopy(online).requires_grad_(False)
        for parameter in self.localizer.parameters():
            parameter.grad = None
        if ema_buffers:
            for layer in self.localizer.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.momentum = 0.0

    @torch.no_grad()
    def update(self, online: Localizer) -> None:
        """One step of the average towards `online`."""
        for slow, fast in zip(self.localizer.parameters(), online.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.decay)
        if self.ema_buffers:
            for slow, fast in zip(self.localizer.buffers(), online.buffers(), strict=True):
                slow.lerp_(fast, 1 - self.decay) if slow.is_floating_point() else slow.copy_(fast)

    @torch.no_grad()
    def forward(self, online: Localizer, images: Tensor, spectrograms: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.update(online)
        return self.localizer.visual_features(images) | self.localizer.audio_features(spectrograms)

    def extra_repr(self) -> str:
        return f"decay={self.decay}, ema_buffers={self.ema_buffers}"
