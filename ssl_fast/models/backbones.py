"""Backbones from outside the package: nets of timm, and modules that another package makes.

    LocalizerConfig.small("ez_vsl", backbone="timm:convnext_tiny.fb_in1k", audio_backbone="small")
    LocalizerConfig.small("ez_vsl", backbone="small", audio_backbone="my_package:net")

my_package:net is a function or class which, called without arguments, gives a torch module with the attribute
`channels` (C): images (B, 3, H, W) -> features (B, C, h, w), or spectrograms (B, 1, F, T) -> (B, C), (B, C, T) or (B,
C, h, w), of which the maximum over all dimensions but B and C is taken. It may have further attributes, OWN_SETTINGS.
The maps of dense_av have a time for each of the T features, so there it needs the method `columns`, as ResNet18.

Files of weights name their backbones, and to import a module runs its code: `check_allowed`.
"""

import contextlib
import importlib
import math
import os
import sys
import typing
from collections.abc import Collection

import torch
from torch import Tensor, nn

from ..optional import optional_module
from .storage import fitted

if typing.TYPE_CHECKING:
    from .localizers import Localizer

TIMM = "timm:"
ALLOWED = "SSL_FAST_BACKBONES"  # environment variable: module paths that files may name, with commas between
# What a backbone can want to be given, by modality: fields of LocalizerConfig, and the side of square images.
OWN_SETTINGS = {"visual": ("image_mean", "image_std", "image_size"), "audio": ("spectrogram_mean", "spectrogram_std")}


def is_external(name: str) -> bool:
    """Whether a backbone is one of timm, or of a module path."""
    return ":" in name


def is_module_path(name: str) -> bool:
    """Whether a backbone comes from a module that has to be imported, MODULE:NAME."""
    return is_external(name) and not name.startswith(TIMM)


def check_allowed(names: Collection[str], allowed: Collection[str] = ()) -> None:
    """ValueError for module paths among the names of backbones in a file that are neither in `allowed`, which the user
    has named, nor in the environment variable SSL_FAST_BACKBONES. Those of timm are: no code comes with them."""
    known = {*allowed, *os.environ.get(ALLOWED, "").split(",")}
    for name in names:
        if is_module_path(name) and name not in known:
            raise ValueError(
                f"backbone {name}: code that is only run where you allow it; if you trust it, set {ALLOWED}={name}"
            )


def imported(option: str, name: str) -> typing.Callable:
    """The function or class MODULE:NAME, also of a module in the current folder. ValueError that begins with `option`
    where there is none."""
    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")  # modules beside the user
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # of a module that cannot be run: anything
        got = f"{type(error).__name__}: {error}"
        raise ValueError(f"{option} {name}: expected MODULE:NAME of a function, got {got}") from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise ValueError(f"{option} {name}: expected a function, got {type(found).__name__}")
    return found


def build_external(name: str, in_channels: int) -> nn.Module:
    """A backbone of timm with random weights, or what a module path gives. ValueError, which names it, where there is
    none, and where it is no module with `channels`."""
    if name.startswith(TIMM):
        return TimmBackbone(name.removeprefix(TIMM), in_channels)
    make = imported("backbone", name)
    try:
        net = make()
    except Exception as error:  # of code of others: anything
        raise ValueError(f"backbone {name}: {type(error).__name__}: {error}") from error
    channels = getattr(net, "channels", None)
    if not isinstance(net, nn.Module) or type(channels) is not int or channels < 1:
        got = f"{type(net).__name__} with channels {channels!r}"
        raise ValueError(f"backbone {name}: expected a torch module with `channels`, an integer >= 1, got {got}")
    return net


def own_settings(name: str, modality: str) -> dict[str, typing.Any]:
    """What an external backbone for "visual" or "audio" wants to be given, of OWN_SETTINGS[modality]."""
    if is_module_path(name):
        with torch.random.fork_rng(devices=[]):
            net = build_external(name, 3 if modality == "visual" else 1)
        return {key: getattr(net, key) for key in OWN_SETTINGS[modality] if hasattr(net, key)}
    about = _timm_config(name.removeprefix(TIMM))
    if modality == "audio":
        return {}
    return {"image_mean": about.mean, "image_std": about.std, "image_size": about.input_size[-1]}


class TimmBackbone(nn.Module):
    """A net of timm with random weights, without its classifier.

    in_channels 3: images (B, 3, H, W) -> (B, channels, h, w), of transformers the tokens without those that are no
    patch. 1: spectrograms (B, 1, F, T) -> the same, or of transformers (B, channels, tokens).
    Transformers that can interpolate the embedding of positions take any multiple of their patches as image, and any
    spectrogram, to which rows and columns of 0 are added.
    """

    def __init__(self, name: str, in_channels: int):
        super().__init__()
        about = _timm_config(name)
        resizable, padded = {"dynamic_img_size": True}, {"dynamic_img_pad": True} if in_channels == 1 else {}
        self.net = _timm_net(name, in_channels, [resizable | padded, resizable, {}])
        self.channels: int = self.net.num_features
        self.in_channels = in_channels
        classifiers = about.classifier or ()
        classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
        self.heads = {name.partition(".")[0] for name in classifiers}
        self.first_conv = f"net.{about.first_conv}.weight"
        self.prefix = getattr(self.net, "num_prefix_tokens", 0)
        self.channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"

    def forward(self, x: Tensor) -> Tensor:
        features = self.net.forward_features(x)
        if features.dim() == 4:
            return features.permute(0, 3, 1, 2) if self.channels_last else features
        tokens = features[:, self.prefix :].transpose(1, 2)
        if self.in_channels == 1:
            return tokens
        rows = round(math.sqrt(tokens.shape[2] * x.shape[2] / x.shape[3]))
        return tokens.unflatten(2, (rows, tokens.shape[2] // rows))

    def adapted(self, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights of the whole net, as timm names them, as those of this module, and the keys of its classifier, for
        which there is no place here. For spectrograms the first convolution gets the sum over R, G and B."""
        from timm.models import adapt_input_conv  # pyright: ignore[reportMissingImports]

        own = self.state_dict()
        unused = [key for key in weights if key.partition(".")[0] in self.heads and f"net.{key}" not in own]
        weights = {f"net.{key}": value for key, value in weights.items() if key not in unused}
        first = weights.get(self.first_conv)
        if self.in_channels == 1 and first is not None and first.dim() == 4 and first.shape[1] == 3:
            weights[self.first_conv] = adapt_input_conv(1, first)
        return weights, unused


def _timm(name: str):
    timm = optional_module("timm", f"backbone {TIMM}{name}: needs timm, which", "timm")
    if not timm.is_model(name):  # nor a name of the Hub or of a folder, which timm would read
        similar = ", ".join(timm.list_models(f"*{name.partition('.')[0][:8]}*")[:5])
        more = f"; similar are {similar}" if similar else ""
        raise ValueError(f"backbone {TIMM}{name}: timm {timm.__version__} has no net of this name{more}")
    return timm


def _timm_config(name: str) -> typing.Any:
    """What timm knows of a net: its normalisation, image size, and names of its first and last layers."""
    try:
        return _timm(name).get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # no such tag, or none at all
        raise ValueError(f"backbone {TIMM}{name}: {error}") from error


def _timm_net(name: str, in_channels: int, tried: list[dict]) -> typing.Any:
    """The net by the first of several sets of options that it takes."""
    timm = _timm(name)
    for options in tried[:-1]:
        with contextlib.suppress(TypeError):  # no such option
            return timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels, **options)
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels, **tried[-1])
    except Exception as error:  # as nets of timm raise it
        raise ValueError(f"backbone {TIMM}{name}: {type(error).__name__}: {error}") from error


def check_features(name: str, features: object, channels: int, dims: tuple[int, ...]) -> Tensor:
    """The features that a backbone has given. ValueError, which names it, for another shape than (B, channels) with
    0, 1 or 2 more dimensions, as `dims` has it."""
    if not isinstance(features, Tensor) or features.dim() not in dims or features.shape[1] != channels:
        shapes = {2: f"(B, {channels})", 3: f"(B, {channels}, T)", 4: f"(B, {channels}, h, w)"}
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"backbone {name}: expected {' or '.join(shapes[n] for n in dims)}, got {got}")
    return features


@torch.no_grad()
def probe(localizer: "Localizer", image_size: int, spectrogram: tuple[int, int]) -> None:
    """ValueError, which names it, for an external backbone that does not take what it is trained on, square images of
    so many pixels a side or spectrograms (F, T), or gives anything but features, or images cells of unequal sizes, or
    whose weights could not be read again."""
    mode = localizer.training
    for name, net in zip(localizer.config.backbones, (localizer.visual_net, localizer.audio_net)):
        try:
            fitted(net.state_dict(), net.state_dict(), exact=True)
        except ValueError as error:
            raise ValueError(f"backbone {name}: expected weights that a checkpoint can hold: {error}") from error
    inputs = torch.zeros(2, 3, image_size, image_size), torch.zeros(2, 1, *spectrogram)
    nets = localizer.eval().visual_features, localizer.audio_features
    for name, features, x in zip(localizer.config.backbones, nets, inputs):
        try:
            found = features(x)
        except Exception as error:  # of code of others: anything
            named = str(error) if str(error).startswith("backbone ") else f"{type(error).__name__}: {error}"
            raise ValueError(f"{named} (backbone {name}, of inputs {tuple(x.shape)})") from error
        if features is nets[0]:
            cells = next(iter(found.values())).shape[2:]
            if any(image_size % n for n in cells):  # else what it saw of the last one is stretched over the image
                raise ValueError(
                    f"backbone {name}: expected an image size that its {cells[0]} x {cells[1]} cells divide, got "
                    f"{image_size}"
                )
    localizer.train(mode)
