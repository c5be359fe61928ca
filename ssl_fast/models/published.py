"""Checkpoints as the released programs wrote them: recognised by their keys, loaded strictly (see checkpoints.load).

EZ-VSL, FNAC and the model called "margin" share one layout, as do LVS and SSL-Align but for their prefix. Bare weights
of LVS, SSL-Align and SSL-TIE cannot be told apart: they need `layout`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .localizers import Localizer, LocalizerConfig, blank, fill
from .storage import CheckpointError, plain_name

_TRUNK = {"imgnet": "visual_net", "audnet": "audio_net"}
_HEAD = {"img_proj": "visual_heads.visual", "aud_proj": "audio_heads.audio"}
# SLAVC's first space is that of correspondence, its second that of localization.
_HEADS = {f"{name}{k}": f"{ours}_{space}" for name, ours in _HEAD.items() for k, space in ((1, "avc"), (2, "loc"))}
# The nets of LVS have first layers for sound, pictures and optical flow, of which each uses one, and a classifier.
_FIRST = {"imgnet.conv1": "visual_net.conv1", "audnet.conv1_a": "audio_net.conv1"}
_LVS_UNUSED = r"imgnet\.(conv1_a|conv1_flow|fc)\..*|audnet\.(conv1|conv1_flow|fc)\..*"


@dataclass(frozen=True)
class CheckpointLayout:
    """Names of weights in a published file, and what its nets were trained on.

    container: the key that the weights lie under. modules: published module -> ours. unused: pattern of the known keys
    that a map does not depend on. front_end, image_size, fit, resampler: those of the method's published recipe.
    """

    method: str
    front_end: str
    container: str
    modules: dict[str, str]
    unused: str = r"(?!)"
    image_size: int = 224
    fit: str = "squash"
    resampler: str = "pillow"


MOMENTUM = "slavc_momentum"  # the slow nets in a file of SLAVC's, or in a run of ours
LAYOUTS: dict[str, CheckpointLayout] = {
    "ezvsl": CheckpointLayout("ez_vsl", "ez_vsl", "model", _TRUNK | _HEAD),
    "fnac": CheckpointLayout("fnac", "fnac", "model", _TRUNK | _HEAD),
    "margin": CheckpointLayout("margin_nce", "ez_vsl", "model", _TRUNK | _HEAD),
    "slavc": CheckpointLayout("slavc", "slavc", "model", _TRUNK | _HEADS, r"momentum_.*"),
    MOMENTUM: CheckpointLayout(
        "slavc", "slavc", "model", {f"momentum_{k}": v for k, v in (_TRUNK | _HEADS).items()}, r"(?!momentum_).*"
    ),
    "lvs": CheckpointLayout("lvs", "lvs", "model_state_dict", _TRUNK | _FIRST, _LVS_UNUSED, fit="crop"),
    # heads, of which nothing is published but that the released evaluator leaves them out
    "sslalign": CheckpointLayout(
        "ssl_align",
        "ssl_align",
        "model_state_dict",
        _TRUNK | _FIRST,
        rf"{_LVS_UNUSED}|(?!imgnet\.|audnet\.).*",
        resampler="torch_aliased",
    ),
    "ssltie": CheckpointLayout(
        "ssl_tie", "ssl_tie", "state_dict", _TRUNK | _FIRST, rf"{_LVS_UNUSED}|(vision_fc1|conv3|norm3)\..*", fit="crop"
    ),
}


def _recognise(path: Path, container: str, weights: dict[str, Tensor]) -> str:
    plain = set(map(plain_name, weights))
    named = {"slavc": "img_proj1.weight", "ezvsl": "img_proj.weight", "ssltie": "vision_fc1.weight"}
    for layout, key in named.items():
        if key in plain:
            return layout
    if "audnet.conv1_a.weight" not in plain:
        raise CheckpointError(
            f"{path}: expected a checkpoint of this project or of {', '.join(LAYOUTS)}, got keys as "
            f"{', '.join(sorted(weights)[:3])}"
        )
    if container == "state_dict":
        return "ssltie"
    if not container:
        raise CheckpointError(f"{path}: weights of lvs, sslalign or ssltie, whose keys are the same: say which layout")
    return "lvs" if any(key.startswith("module.") for key in weights) else "sslalign"


def localizer_of(
    path: Path, container: str, weights: dict[str, Tensor], layout: str | None = None
) -> tuple[Localizer, dict, str, list[str]]:
    """Published weights as a localizer in evaluation mode, its recipe (method, front_end, image_size, fit, resampler
    and model), its layout, and the known keys that a map does not depend on.

    path: names the file in errors. container, weights: see `storage.weights_of`. layout: a key of LAYOUTS; None: by the
    keys of the file, where "ezvsl" stands for "fnac" and "margin" too, whose keys and maps are the same, and "slavc"
    for the online nets ("slavc_momentum": the momentum nets of that file). CheckpointError, which names the file, and
    all keys that are missing, unexpected or wrongly shaped.
    """
    name = layout or _recognise(path, container, weights)
    kind = LAYOUTS[name]
    config = LocalizerConfig.published(kind.method, **({"projection": None} if kind.method == "ssl_align" else {}))
    localizer = blank(config)
    expected = localizer.state_dict()
    constants = {key for key in expected if key.startswith(("image_", "spectrogram_"))}
    ours, unused, wrong = {}, [], []
    for key, value in weights.items():
        plain = plain_name(key)
        if re.fullmatch(kind.unused, plain):
            unused.append(key)
            continue
        module = max((one for one in kind.modules if plain.startswith(f"{one}.")), key=len, default=None)
        target = None if module is None else kind.modules[module] + plain.removeprefix(module)
        if target not in expected or target in constants:
            wrong.append(f"unexpected {key}")
        elif target in ours:
            wrong.append(f"{key} twice")
        elif expected[target].shape != value.shape:
            wrong.append(f"{key}: expected {tuple(expected[target].shape)}, got {tuple(value.shape)}")
        ours[target] = value
    missing = {key for key in expected if not key.endswith("num_batches_tracked")} - constants - ours.keys()
    wrong += [f"missing {key} (as {_published_name(kind, key)})" for key in missing]
    if wrong:
        shown = "; ".join(sorted(wrong)[:20]) + (f"; and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise CheckpointError(f"{path}: {len(wrong)} keys do not fit the layout {name!r}: {shown}")
    try:
        fill(localizer, {**{key: expected[key] for key in constants}, **ours})
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    recipe = {
        "method": kind.method,
        "front_end": kind.front_end,
        "image_size": kind.image_size,
        "fit": kind.fit,
        "resampler": kind.resampler,
        "model": vars(config).copy(),
    }
    return localizer, recipe, name, unused


def _published_name(layout: CheckpointLayout, key: str) -> str:
    """Name of one of our keys in the released programs."""
    theirs = {ours: name for name, ours in layout.modules.items()}
    module = max((ours for ours in theirs if key.startswith(f"{ours}.")), key=len)
    return theirs[module] + key.removeprefix(module)
