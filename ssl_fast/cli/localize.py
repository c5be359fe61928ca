"""`ssl-fast localize`: show where in an image a sound comes from, or in a video at all times."""

import argparse
import io
import typing
from pathlib import Path

from .options import WEIGHTS, add_force, add_quiet, add_weights_layout

if typing.TYPE_CHECKING:
    from ..inference.localize import Answer, LocalizationPipeline

HELP = "show where in an image a sound comes from, or in a video"
PICTURES, FILMS = (".png", ".jpg", ".jpeg", ".webp"), (".mp4", ".gif")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options of `load_pipeline`."""
    add = parser.add_argument
    add("--weights", type=Path, metavar="FILE", help=f"{WEIGHTS} (default: the embedded quickstart model)")
    add_weights_layout(parser)
    add(
        "--object-weights",
        type=Path,
        metavar="FILE",
        help="torchvision's ResNet-18 of ImageNet: the object prior (default: the local contrast of the image)",
    )
    add("--threshold", type=float, metavar="X", help="universal threshold, in cosines (default: the checkpoint's)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("image", type=Path, metavar="IMAGE", help="image of any format, or a video")
    add(
        "sound",
        type=Path,
        nargs="?",
        metavar="SOUND",
        help="sound of any format and length, of which the part "
        "counts that the model was trained to hear; without one, IMAGE is a video: a map for each second, or "
        "with audio tokens (dense_av) for the time of each token",
    )
    add_model(parser)
    add("--alpha", type=float, default=0.4, metavar="X", help="weight of the own map in the mixture (default: .4)")
    add(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help=f"picture ({', '.join(PICTURES)}), of a video "
        f"{' or '.join(FILMS)}; the raw map goes beside it as .npy (default: localized.png or .mp4)",
    )
    add_force(parser, "the picture and the map")
    add_quiet(parser)


def load_pipeline(args: argparse.Namespace) -> "LocalizationPipeline":
    """The localizer of --weights with its object prior and threshold."""
    from ..inference.localize import LocalizationPipeline
    from ..models import checkpoints
    from ..models.object_prior import ObjectPrior

    if args.weights is None:
        if args.weights_layout is not None:
            raise ValueError("--weights-layout: expected with --weights")
        print(
            "the embedded quickstart model, which knows the twelve categories of the embedded scenes and no others; "
            "for a model of yours give --weights"
        )
    found = checkpoints.load(args.weights or checkpoints.EMBEDDED, args.weights_layout)
    prior = None if args.object_weights is None else ObjectPrior(args.object_weights)
    return LocalizationPipeline(found, prior, "" if prior is None else "ImageNet features", args.threshold)


def run(args: argparse.Namespace) -> int:
    from ..data.io.video import VIDEOS
    from ..files import claimed

    is_video = args.sound is None
    if is_video and args.image.suffix.lower() not in VIDEOS:
        raise ValueError(
            f"SOUND: expected with an image; without one, IMAGE is a video ({', '.join(VIDEOS)}), got {args.image}"
        )
    allowed = FILMS if is_video else PICTURES
    out = args.out or Path("localized" + allowed[0])
    if out.suffix.lower() not in allowed:
        raise ValueError(f"--out {out}: expected {', '.join(allowed)}")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: expected an existing folder, {out.parent} is none")
    if not 0 <= args.alpha <= 1:
        raise ValueError(f"--alpha: expected within [0, 1], got {args.alpha:g}")
    inputs = args.image, args.sound, args.weights, args.object_weights
    with claimed("--out", [out, out.with_suffix(".npy")], inputs=inputs, force=args.force):
        return (_video if is_video else _image)(args, load_pipeline(args), out)


def _image(args: argparse.Namespace, pipeline: "LocalizationPipeline", out: Path) -> int:
    from PIL import Image

    from ..files import replacing, save_array

    answer = pipeline.localize(pipeline.read_image(args.image), pipeline.read_sound(args.sound))
    picture = io.BytesIO()  # Pillow hides why a file could not be written
    kind = Image.registered_extensions()[out.suffix.lower()]
    Image.fromarray(answer.sheet(args.alpha)).save(picture, kind, compress_level=1)  # of PNG: more takes 0.2 s
    with replacing(out) as file:
        file.write(picture.getbuffer())
    save_array(out.with_suffix(".npy"), answer.audio_visual)
    print(_scores(answer))
    print(f"{out}, {out.with_suffix('.npy')}")
    return 0


def _video(args: argparse.Namespace, pipeline: "LocalizationPipeline", out: Path) -> int:
    import itertools
    from fractions import Fraction
    from functools import partial

    import numpy as np

    from ..data.io.audio import to_mono
    from ..data.io.media import MediaError
    from ..files import replacing, save_array
    from ..inference import film
    from ..inference.localize import scale_of

    sound, rate = film.read_sound(args.image)
    if pipeline.found.localizer.has_tokens:
        front_end = pipeline.front_end
        mono = to_mono(args.image, sound, rate, front_end.sample_rate, front_end.channels, front_end.reader)
        try:
            tokens, times = pipeline.tokens(mono)
        except ValueError as error:
            raise MediaError(f"{args.image}: its sound of {len(mono)} samples is too short ({error})") from error
        answers = partial(film.localize_tokens, pipeline, args.image, tokens, times)
        threshold, step, titles = pipeline.token_threshold, pipeline.token_step, [f"{time:7.2f} s" for time in times]
    else:
        answers = partial(film.localize, pipeline, args.image, sound, rate)
        threshold, step, titles = pipeline.threshold, Fraction(1), (f"{second:4d} s" for second in itertools.count())
    maps, scores = [], []
    for answer in answers(progress=not args.quiet):
        maps.append(answer.audio_visual)
        scores.append(_scores(answer))
    scale = scale_of(maps, threshold)
    # anew, now that the scale of all is known: frames and priors are too large to be kept
    sheets = (answer.sheet(args.alpha, scale) for answer in answers())
    with replacing(out) as file:
        film.write(Path(file.name), sheets, sound, rate, total=len(maps), progress=not args.quiet, step=step)
    save_array(out.with_suffix(".npy"), np.stack(maps))
    for title, text in zip(titles, scores):
        print(f"{title}: {text}")
    print(f"{out}, {out.with_suffix('.npy')}")
    return 0


def _scores(answer: "Answer") -> str:
    """The scores of an answer in one line."""
    scores = answer.scores()
    text = (
        f"maximum {scores['maximum']:.3f} at ({scores['x']:.2f}, {scores['y']:.2f}) of width and height, "
        f"confidence {scores['confidence']:.3f}"
    )
    if answer.threshold is None:
        return f"{text}; universal threshold unknown (`ssl-fast evaluate` finds it; give it as --threshold)"
    seen = "image" if answer.box == (0.0, 0.0, 1.0, 1.0) else "crop"
    share = f"{scores['area']:.1%} of the {seen} is" if scores["found"] else "nothing is"
    return f"{text}; {share} above the universal threshold {answer.threshold:.3f}"
