"""`ssl-fast localize | demo | convert | export`: use a localizer."""

import argparse
from pathlib import Path

from .evaluate import WEIGHTS, WEIGHTS_LAYOUT

# torch, numpy and what needs them are imported inside the functions: `ssl-fast --help` does without.

STILLS, FILMS = (".png", ".jpg", ".jpeg", ".webp"), (".mp4", ".gif")


def add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--weights", **{**WEIGHTS, "help": f"{WEIGHTS['help']} (default: the embedded quickstart model)"})
    add("--weights-layout", **WEIGHTS_LAYOUT)
    add(
        "--object-weights",
        type=Path,
        metavar="FILE",
        help="torchvision's ResNet-18 of ImageNet: the object prior (default: the local contrast of the image)",
    )
    add("--threshold", type=float, metavar="X", help="universal threshold, in cosines (default: the checkpoint's)")


def add_localize(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("image", type=Path, metavar="IMAGE", help="image of any format, or a video")
    add(
        "sound",
        type=Path,
        nargs="?",
        metavar="SOUND",
        help="sound of any format and length, of which the part "
        "counts that the model was trained to hear; without one, IMAGE is a video: a map for each second",
    )
    add_model(parser)
    add("--alpha", type=float, default=0.4, metavar="X", help="weight of the own map in the mixture (default: .4)")
    add(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help=f"picture ({', '.join(STILLS)}), of a video "
        f"{' or '.join(FILMS)}; the raw map goes beside it as .npy (default: localized.png or .mp4)",
    )
    add("--quiet", action="store_true", help="no progress bars")


def viewer(args: argparse.Namespace):
    from ..inference.localize import Viewer
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
    return Viewer(found, prior, "" if prior is None else "ImageNet features", args.threshold)


def localize(args: argparse.Namespace) -> int:
    from ..data.io.video import VIDEOS

    film = args.sound is None
    if film and args.image.suffix.lower() not in VIDEOS:
        raise ValueError(
            f"SOUND: expected with an image; without one, IMAGE is a video ({', '.join(VIDEOS)}), got {args.image}"
        )
    allowed = FILMS if film else STILLS
    out = args.out or Path("localized" + allowed[0])
    if out.suffix.lower() not in allowed:
        raise ValueError(f"--out {out}: expected {', '.join(allowed)}")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: expected an existing folder, {out.parent} is none")
    if not 0 <= args.alpha <= 1:
        raise ValueError(f"--alpha: expected within [0, 1], got {args.alpha:g}")
    return (_film if film else _still)(args, viewer(args), out)


def _still(args: argparse.Namespace, viewer, out: Path) -> int:
    import numpy as np
    from PIL import Image

    answer = viewer.localize(viewer.read_image(args.image), viewer.read_sound(args.sound))
    Image.fromarray(answer.sheet(args.alpha)).save(out, compress_level=1)  # of PNG; more takes a fifth of a second
    np.save(out.with_suffix(".npy"), answer.audio_visual)
    print(_told(answer))
    print(f"{out}, {out.with_suffix('.npy')}")
    return 0


def _film(args: argparse.Namespace, viewer, out: Path) -> int:
    import numpy as np

    from ..data.io.audio import decode_audio
    from ..inference import film

    sound = decode_audio(args.image)
    answers = film.localize(viewer, args.image, *sound, progress=not args.quiet)
    film.write(out, answers, *sound, args.alpha, progress=not args.quiet)
    np.save(out.with_suffix(".npy"), np.stack([answer.audio_visual for answer in answers]))
    for second, answer in enumerate(answers):
        print(f"{second:4d} s: {_told(answer)}")
    print(f"{out}, {out.with_suffix('.npy')}")
    return 0


def _told(answer) -> str:
    scores = answer.scores()
    text = (
        f"maximum {scores['maximum']:.3f} at ({scores['x']:.2f}, {scores['y']:.2f}) of width and height, "
        f"confidence {scores['confidence']:.3f}"
    )
    if answer.threshold is None:
        return f"{text}; universal threshold unknown (`ssl-fast evaluate` finds it; give it as --threshold)"
    share = f"{scores['area']:.1%} of the image is" if scores["found"] else "nothing is"
    return f"{text}; {share} above the universal threshold {answer.threshold:.3f}"


def add_demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model(parser)
    add(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="name or address to listen at (default: 127.0.0.1, for "
        "browsers on this machine only; 0.0.0.0 lets in everyone who reaches it, without a password)",
    )
    add("--port", type=int, default=7860, metavar="N", help="default: 7860; 0: any free one")


def demo(args: argparse.Namespace) -> int:
    from ..demo.server import Server

    with Server(viewer(args), args.host, args.port) as server:
        print(f"{server.url}  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def _add_writing(parser: argparse.ArgumentParser, formats: str) -> None:
    add = parser.add_argument
    add("weights", **{**WEIGHTS, "metavar": "FROM"})
    add("out", type=Path, metavar="TO", help=f"new file: {formats}")
    add("--weights-layout", **WEIGHTS_LAYOUT)


def add_convert(parser: argparse.ArgumentParser) -> None:
    _add_writing(parser, ".pt, or .safetensors where that is installed")
    parser.add_argument("--half", action="store_true", help="weights as float16, half the size")


def convert(args: argparse.Namespace) -> int:
    from ..models import checkpoints

    found = checkpoints.load(args.weights, args.weights_layout)
    checkpoints.write(found, args.out, args.half)
    left_out = f"; without keys that no map depends on: {', '.join(found.unused)}" if found.unused else ""
    print(f"{found.path}: {found.recipe['method']}, layout {found.layout}{left_out}")
    return 0


def add_export(parser: argparse.ArgumentParser) -> None:
    _add_writing(parser, ".pt2")


def export(args: argparse.Namespace) -> int:
    from ..inference.export import export
    from ..models import checkpoints

    export(checkpoints.load(args.weights, args.weights_layout), args.out)
    print(args.out)
    return 0
