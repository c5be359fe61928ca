"""Checkpoints of any origin, each as a localizer with all that it needs to see and hear.

    from ssl_fast.models import checkpoints
    found = checkpoints.load("runs/mine")                   # a run's folder, a file of ours or of a published program
    found.localizer, found.front_end, found.image_size, found.layout
    checkpoints.write(found, "mine.safetensors")            # without optimizer and history; also .pt
    found.save_pretrained("mine")                           # a folder of it, as repositories of the Hub are

Files are read without running code, and strictly: keys that are missing, unexpected or of another shape are an error.
"""

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.io.front_ends import FrontEnd, front_end_named
from ..data.io.images import FITS, RESAMPLERS, SQUARE
from ..files import replace_file, replacing
from . import hub, published, storage
from .backbones import TimmBackbone, check_allowed
from .localizers import Localizer, LocalizerConfig, blank, fill
from .resnet import ResNet18, SmallResNet
from .storage import CheckpointError

SAFE = ".safetensors"
WEIGHTS, CONFIG = f"model{SAFE}", "config.json"  # of a folder that save_pretrained writes
OURS = "ssl_fast"  # layout of the project's own files, and where they keep what is no weight in .safetensors
EMBEDDED = Path(__file__).with_name("quickstart.pt")  # `ssl-fast quickstart --seed 0`, converted with --half
_FIT = {"fit": "squash", "resampler": "pillow"}  # of the checkpoints before these fields
_STORED = ("method", "front_end", "image_size", *_FIT, "model")  # of a recipe: what a localizer needs to be used


@dataclass(frozen=True)
class Checkpoint:
    """localizer: in evaluation mode, on the CPU. recipe: what it was trained with, at least its method, front_end,
    image_size and model. layout: "ssl_fast" or a key of `published.LAYOUTS`. unused: known keys of the file that a map
    does not depend on. threshold: the universal one, in units of the map, None where it is not known; token_threshold:
    that of the maps of single audio tokens. state: seed, step, seconds and history of a run of ours."""

    path: Path
    localizer: Localizer
    recipe: dict
    layout: str
    unused: list[str] = field(default_factory=list)
    threshold: float | None = None
    token_threshold: float | None = None
    state: dict = field(default_factory=dict)

    @property
    def front_end(self) -> FrontEnd:
        return front_end_named(self.recipe["front_end"])

    @property
    def image_size(self) -> int:
        return self.recipe["image_size"]

    @property
    def reading(self) -> dict:
        """Keyword arguments of the sample sets that the localizer is used with, as `training.Recipe.reading`."""
        recipe = _FIT | self.recipe
        return {"size": self.image_size, **{key: recipe[key] for key in ("front_end", *_FIT)}}

    def maps(self, images: Tensor, waveforms: Tensor) -> Tensor:
        """Images (B, 3, S, S) uint8 and waveforms (B, samples) float32 in [-1, 1] -> maps (B, h, w) float32, cosines.

        By plain torch operators, which torch.export follows; to call the compiled one for a few maps would also load
        half of torch first.
        """
        net, spectrograms = self.localizer, self.front_end.spectrogram(waveforms)[:, None]
        visual = net.visual_features(net.normalize_images(images))
        audio = net.audio_features(net.normalize_spectrograms(spectrograms))
        return net.maps(visual, audio, backend="reference")

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, *, revision: str | None = None, allowed: Collection[str] = ()
    ) -> "Checkpoint":
        """The localizer in a folder that `save_pretrained` has written, or in a repository OWNER/NAME of the Hub.

        A folder that is there is never looked for elsewhere; for repositories there is the extra `hub`. revision: of a
        repository, a branch, tag or commit. allowed: see `load`. CheckpointError as of `load`, also where config.json
        does not tell what the weights do; ValueError where there is neither.
        """
        folder = Path(name)
        if folder.is_dir():
            if revision is not None:
                raise ValueError(f"revision: expected with a repository of the Hub, got {revision} with {folder}")
        elif folder.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)):
            raise ValueError(f"{name}: expected a folder, or OWNER/NAME of a repository of the Hub")
        else:
            folder = hub.download(str(name), revision, (CONFIG, WEIGHTS))
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(
                f"{folder / WEIGHTS}: no such file; save_pretrained writes it, of runs there is `load`"
            )
        return _load(folder / WEIGHTS, None, allowed, in_folder=True)  # also where checkpoints of a run lie beside it

    def save_pretrained(self, folder: str | os.PathLike, overwrite: bool = False) -> None:
        """Write model.safetensors by `write`, config.json, a copy of what it has beside weights for those who read no
        such files, and README.md, its card. ValueError for a folder that holds a run, and without `overwrite` for one
        that holds such files. A README.md that is there is kept."""
        folder = Path(folder)
        runs, own = (storage.BEST, storage.LAST), (WEIGHTS, CONFIG, hub.CARD)
        if there := [one for one in (runs if overwrite else runs + own) if (folder / one).exists()]:
            raise ValueError(f"{folder}: holds {', '.join(there)} already; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        write(self, folder / WEIGHTS, overwrite=overwrite)
        replace_file(folder / CONFIG, json.dumps(_about(self), indent=2) + "\n")
        if not (folder / hub.CARD).exists():
            replace_file(folder / hub.CARD, hub.card(self.recipe["method"], folder.resolve().name))

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, message: str = "Upload a localizer of ssl_fast"
    ) -> str:
        """Commit what `save_pretrained` writes to a repository OWNER/NAME of the Hub, which is made where there is none
        -> address of the commit. A README.md that it has is kept.

        The token is that of `hf auth login` or HF_TOKEN. ValueError, which names the repository, where it fails.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder)
            replace_file(folder / hub.CARD, hub.card(self.recipe["method"], repo_id))
            return hub.upload(repo_id, folder, private, message)


def file_of(path: str | os.PathLike) -> Path:
    """The checkpoint that a path means: itself, or of the folder of a run the best, else the last, or that of a folder
    of `Checkpoint.save_pretrained`."""
    path = Path(path)
    if not path.is_dir():
        return path
    there = [name for name in (storage.BEST, storage.LAST, WEIGHTS) if (path / name).exists()]
    return path / (there or [storage.LAST])[0]


def load(path: str | os.PathLike, layout: str | None = None, allowed: Collection[str] = ()) -> Checkpoint:
    """The localizer in a file, in the folder of a run, or of `Checkpoint.save_pretrained`.

    layout: a key of `published.LAYOUTS`, for files whose keys do not tell; "slavc_momentum": the momentum nets, also of
    a run of ours, whose threshold is then not known. allowed: module paths of backbones that may be imported, beside
    those of SSL_FAST_BACKBONES, see `backbones.check_allowed`. ValueError for an unknown layout, CheckpointError, which
    names the file, for one that is missing, damaged, holds code or something else, and for keys that do not fit: it
    lists them.
    """
    file = file_of(path)
    return _load(file, layout, allowed, in_folder=file.name == WEIGHTS and Path(path).is_dir())


def _load(file: Path, layout: str | None, allowed: Collection[str], in_folder: bool) -> Checkpoint:
    """See `load`. in_folder: whether it is that of a folder of `Checkpoint.save_pretrained`."""
    if layout is not None and layout not in published.LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(published.LAYOUTS)}, got {layout!r}")
    state = _read(file)
    if in_folder:
        _check_config(file, state)
    found = storage.weights_of(state)
    if found is not None:
        return Checkpoint(file, *published.localizer_of(file, *found, layout))
    if layout not in (None, published.MOMENTUM):
        raise ValueError(f"layout: {file} is no published checkpoint, which alone has one, got {layout!r}")
    state = storage.checked(file, state)
    momentum = layout is not None and layout != state.get("layout")  # else they are all that the file has
    if momentum and not state.get("momentum"):
        raise ValueError(f"layout: {file} has no momentum nets, which {layout!r} asks for")
    try:
        weights = state["momentum"] if momentum else state["localizer"]
        weights = {key.removeprefix("localizer."): value for key, value in weights.items()} if momentum else weights
        recipe = _checked_recipe(state["recipe"])
        config = LocalizerConfig(**recipe["model"])
        check_allowed(config.backbones, allowed)
        localizer = fill(blank(config), weights)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{file}: does not give the localizer it describes ({error})") from error
    # of the online nets: in files of `write`; of a run
    stored = {name: state.get(name) for name in ("threshold", "token_threshold")}
    thresholds = {} if momentum else stored if "threshold" in state else _thresholds(file)
    layout = layout or state.get("layout", OURS)
    return Checkpoint(file, localizer, recipe, layout, [], **thresholds, state=state)


def load_backbone(net: nn.Module, path: str | os.PathLike) -> list[str]:
    """Load a file of weights into the image net or audio net of a localizer; the keys of the file that have no place
    there, those of its classifier.

    Strictly: of a ResNet-18 torchvision's file (see `storage.load_torchvision`), of nets of timm the files of timm, of
    other modules their state dict; .safetensors or torch's format. CheckpointError, which names the file.
    """
    if isinstance(net, (ResNet18, SmallResNet)):
        return storage.load_torchvision(net, path)
    found = storage.weights_of(_read(Path(path)))
    if found is None:
        raise CheckpointError(f"{path}: expected weights alone or under {', '.join(storage.CONTAINERS)}")
    weights, unused, expected = found[1], [], net.state_dict()
    if isinstance(net, TimmBackbone):
        weights, unused = net.adapted({storage.plain_name(key): value for key, value in weights.items()})
    try:
        net.load_state_dict(storage.fitted(weights, expected))
    except ValueError as error:
        raise CheckpointError(f"{path}: expected the weights of the backbone: {error}") from error
    return unused


def _read(file: Path):
    return _read_safetensors(file) if file.suffix == SAFE else storage.read_file(file)


def _checked_recipe(recipe: dict) -> dict:
    """A recipe that was read, with all of _STORED. ValueError for values that no localizer has."""
    front_end_named(recipe["front_end"])
    size = recipe["image_size"]
    if recipe["method"] != recipe["model"]["method"] or not (type(size) is int and 2 <= size <= SQUARE):
        raise ValueError(f"expected one method and an image size, got {recipe['method']!r} and {size!r}")
    fit, resampler = (_FIT | recipe)["fit"], (_FIT | recipe)["resampler"]
    if fit not in FITS or resampler not in (RESAMPLERS if fit == "squash" else ("pillow",)):
        raise ValueError(f"expected a way in which frames become squares, got {fit!r} by {resampler!r}")
    return recipe


def write(found: Checkpoint, path: str | os.PathLike, half: bool = False, overwrite: bool = False) -> None:
    """Write a localizer, with what it needs to be used and nothing that trains it: .safetensors, else torch's format.

    half: weights as float16. They are read as float32 again. ValueError where there is a file already, without
    `overwrite`, and for weights that float16 cannot hold.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: exists already; choose another name")
    about = _about(found)
    weights = {  # copies, for .safetensors takes none that share memory, as tied ones do
        key: (value.half() if half and value.is_floating_point() else value).clone(
            memory_format=torch.contiguous_format
        )
        for key, value in found.localizer.state_dict().items()
    }
    if half and (large := [key for key, value in weights.items() if not value.isfinite().all()]):
        raise ValueError(f"{path}: weights that float16 cannot hold: {', '.join(large[:3])}; write it without --half")
    if path.suffix != SAFE:
        storage.save(about | {"localizer": weights}, path, keep=False)
        return
    import safetensors.torch

    text = json.dumps(about)
    content = safetensors.torch.save(weights, {OURS: text, "sha256": _digest(text, weights)})
    with replacing(path) as file:
        file.write(content)


def _about(found: Checkpoint) -> dict:
    """What a file has beside weights, of plain values."""
    return {
        "format": storage.FORMAT,
        "recipe": {key: (_FIT | found.recipe)[key] for key in _STORED},
        "layout": found.layout,
        "threshold": found.threshold,
        "token_threshold": found.token_threshold,
    }


def _check_config(file: Path, state: dict) -> None:
    """CheckpointError where config.json is no copy of what the file beside it has with its weights."""
    config = file.with_name(CONFIG)
    if "format" not in state:
        raise CheckpointError(f"{file}: expected a file that save_pretrained has written, got weights alone")
    try:
        found = json.loads(config.read_text())
        about = {key: value for key, value in state.items() if key != "localizer"}
        keys = {**about, **found}
        wrong = [key for key in keys if key not in about or key not in found or found[key] != about[key]]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{config}: expected a copy of what {file.name} holds, got {error}") from error
    if wrong:
        raise CheckpointError(f"{config}: expected a copy of what {file.name} holds, they differ in {', '.join(wrong)}")


def _digest(text: str, weights: dict[str, Tensor]) -> str:
    """SHA-256 of what a file of .safetensors holds, which has no checksums of its own."""
    digest = hashlib.sha256(text.encode())
    for key in sorted(weights):
        digest.update(f"{key} {weights[key].dtype} {tuple(weights[key].shape)}".encode())
        digest.update(weights[key].reshape(-1).view(torch.uint8).numpy().data)  # numpy has no bfloat16
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict:
    """Bare weights, or the state of a file of ours, as storage.read_file gives them."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no dict
            metadata = file.metadata() or {}
        if OURS not in metadata:
            return weights
        about = json.loads(metadata[OURS])
        if "sha256" in metadata and metadata["sha256"] != _digest(metadata[OURS], weights):
            raise ValueError("its checksum is wrong")
        return dict(about, localizer=weights)
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: truncated, damaged or not of safetensors ({error})") from error


def _thresholds(file: Path) -> dict[str, float | None]:
    """The universal thresholds that the evaluation at the end of a run chose on validation samples, for these weights,
    as fields of Checkpoint."""
    try:
        results = json.loads((file.parent / "metrics.json").read_text())
        threshold = results["universal_threshold"]
        if results["weights_sha256"] != storage.digest(file) or threshold["chosen_on"] != "validation":
            return {}
        of_clips = threshold["by_set"]["validation"]["model"]["value"]
        found = {"threshold": of_clips, "token_threshold": results.get("over_time", {}).get("threshold")}
        for value in found.values():
            if not (value is None or (type(value) in (int, float) and math.isfinite(value))):
                raise ValueError(f"a threshold of {value!r}")
        return found
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{file.parent / 'metrics.json'}: expected the results of the run, got {error!r}"
        ) from error
