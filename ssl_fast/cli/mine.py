"""`ssl-fast mine`: the nearest neighbours of all training samples, by any features or by those of a net."""

import argparse
import contextlib
import typing
from collections.abc import Callable
from pathlib import Path

from .options import (
    add_device,
    add_force,
    add_quiet,
    add_split,
    add_threads,
    add_training_set,
    add_workers,
    check_device,
    refuse,
)

if typing.TYPE_CHECKING:
    import numpy as np

HELP = "find the nearest neighbours of all training samples, for conceptual positives"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--features", type=Path, metavar="FILE", help="an .npy (samples, dimensions) of floats, from any net"
    )
    what.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a checkpoint or a run's folder; for images also torchvision's ResNet-18 of ImageNet",
    )
    add("--list", type=Path, metavar="FILE", help="ids of the rows of --features, one a line (default: row numbers)")
    add("--data", type=Path, metavar="DIR", help="of --weights: samples (frames/, audio/)")
    add_split(parser)
    add_training_set(parser)
    add("--modality", choices=("visual", "audio"), help="of --weights: which of the two nets")
    add("--k", type=int, default=1000, metavar="N", help="neighbours of each sample (default: 1000)")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="an .npy; after an interruption the same command goes on",
    )
    add_force(parser, "--out and --features-out")
    add("--features-out", type=Path, metavar="FILE", help="keep the features of --weights (.npy)")
    add_workers(parser)
    add_threads(parser)
    add_device(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    from ..data.neighbors import check_name
    from ..files import claimed

    check_device(args.device)
    if args.weights is None:
        options = "data split modality features_out set_name layout exclude on_missing cache"
        refuse(args, options + " workers" * (args.workers > 0), "expected with --weights")
    if args.weights is not None and (args.list or not args.data or not args.modality):
        raise ValueError("--weights: expected with --data and --modality, and without --list")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    check_name(args.out)
    inputs = args.features, args.list, args.weights
    with contextlib.ExitStack() as stack:
        stack.enter_context(claimed("--out", [args.out], inputs=inputs, force=True))  # mine() looks what is there
        about, own = args.out.with_suffix(".json"), (args.out, args.out.with_name(f"{args.out.name}.partial"))
        if args.force:
            for file in own:
                file.unlink(missing_ok=True)
        elif about.exists() and not any(file.exists() for file in own):
            raise ValueError(f"--out {args.out}: its {about.name} exists already; choose another name, or use --force")
        if args.features_out is not None:
            stack.enter_context(claimed("--features-out", [args.features_out], inputs=inputs, force=args.force))
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from ..data.neighbors import mine, open_array
    from ..data.sample_lists import read_ids

    if args.features is not None:
        features, ids = open_array(args.features), None if args.list is None else read_ids(args.list)
    else:
        features, ids = _features(args)
    mine(features, ids, args.k, args.out, modality=args.modality, device=args.device, progress=not args.quiet)
    print(f"{args.out}: the {args.k} nearest neighbours of {len(features)} samples")
    return 0


def _features(args: argparse.Namespace) -> "tuple[np.ndarray, list[str]]":
    """Features of all samples from one net, float32 (N, C), and their ids; written to --features-out too."""
    import torch

    from ..data.neighbors import check_k
    from ..files import save_array
    from ..progress import progress_bar
    from .samples import training_set

    net, reading = _net(args.weights, args.modality, args.device)
    samples = training_set(args, **reading)
    check_k(args.k, len(samples))
    read = samples.image if args.modality == "visual" else samples.spectrogram
    inputs = typing.cast(torch.utils.data.Dataset, _Inputs(read, len(samples)))
    loader = torch.utils.data.DataLoader(inputs, batch_size=64, num_workers=args.workers)
    with torch.inference_mode():
        bar = progress_bar(loader, unit="batch", desc=f"{args.modality} features", disable=args.quiet)
        features = torch.cat([net(batch.to(args.device)).cpu() for batch in bar]).numpy()
    if args.features_out is not None:
        save_array(args.features_out, features)
    return features, samples.ids


class _Inputs:
    """Map-style data set of `read(0)` to `read(length - 1)`."""

    def __init__(self, read: Callable, length: int):
        self.read, self.length = read, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        return self.read(index)


def _net(weights: Path, modality: str, device: str) -> tuple[Callable, dict]:
    """A function from images uint8 (B, 3, H, W), or from spectrograms (B, 1, F, T), to features (B, C); how sample sets
    read what it was trained on.

    Visual features are averaged over the cells, as for SSL-Align's s_A; of slavc's two spaces it is the one that tells
    samples apart (avc), of audio tokens their average.
    """
    from ..models import checkpoints
    from ..models.object_prior import ObjectPrior
    from ..models.storage import plain_name, read_file, weights_of

    bare = None if weights.is_dir() or weights.suffix == checkpoints.SAFE else weights_of(read_file(weights))
    if bare is not None and "conv1.weight" in map(plain_name, bare[1]):
        if modality == "audio":
            raise ValueError(f"--modality audio: expected a checkpoint with an audio net, {weights} is torchvision's")
        prior = ObjectPrior(weights, device)
        return lambda images: prior.features(images).mean((2, 3)), {"front_end": "ssl_align", "size": 224}
    found = checkpoints.load(weights)
    localizer = found.localizer.to(device)
    name = modality + localizer.spaces[-1]

    def visual(images):
        return localizer.visual_features(localizer.normalize_images(images))[name].mean((2, 3))

    def audio(spectrograms):
        features = localizer.audio_features(localizer.normalize_spectrograms(spectrograms))[name]
        return features.mean(2) if localizer.has_tokens else features

    return visual if modality == "visual" else audio, found.reading
