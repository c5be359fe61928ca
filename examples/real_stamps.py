"""Train and evaluate on real photographs and recorded sounds, from files to a report.

    sudo apt-get install tuxpaint-stamps-default
    python examples/real_stamps.py --out stamps                    # compose, check, train, evaluate
    python examples/real_stamps.py --out stamps-short --short      # the same in about a minute, to see that it runs

Tux Paint's stamps are cut-out photographs of animals, instruments and tools; some come with a recording of what they
sound like. From the installed package (nothing of it is shipped here; the package names its licences) this composes
three folders in the layout that `ssl-fast train --data` and `ssl-fast evaluate --data` read:

    DIR/train            frames/ID.jpg|png   audio/ID.wav|ogg|flac
    DIR/val, DIR/test    the same, with masks/ID.png and annotations.json

Scenes are in the manner of IS3: one to three sounding stamps, and silent ones among them, on photographic texture. In
val and test every image shows two or three and has the sound of each, so that a localizer has to listen. Files are as
mixed as collected ones: JPEG and PNG of several sizes, WAV of 16 and 24 bits, OGG, FLAC, mono, stereo, four rates.

What this shows: that the way from media files to figures works, and that a localizer learns from scenes alone which
sound belongs to which look, and finds the right one among several. What it cannot show: that it would know a dog it has
not met. Each category has one recording and one to three photographs. Scenes of val and test are new, and their sounds
are other cuts, at another tempo, level and noise; but cut-outs and recordings are those of train. So the figures
tell nothing about the benchmarks of the field.

What to expect of the defaults (24 categories, 1,860 steps, seed 0): success rate .68 with the adaptive threshold, both
sounds of an image localized in .42 and pointed at in .84 of the images. Baselines that never hear the sound reach .18,
.00 and .01 at the most.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from PIL import Image, ImageEnhance, ImageFilter

from ssl_fast.cli import main as cli
from ssl_fast.data.io.audio import MediaError, load_audio, resample
from ssl_fast.progress import progress_bar

STAMPS = Path("/usr/share/tuxpaint/stamps")
INSTALL = "install the Debian package tuxpaint-stamps-default, or name a folder of its stamps by --stamps"
RATE = 16000
SECONDS = 2.0
SOUNDING = ("animals", "hobbies", "household", "vehicles")  # elsewhere: letters, digits, faces, signs, spoken words
SILENT = ("plants", "food", "town", "sports", "clothes")
SIZES = ((320, 240), (256, 256), (240, 320), (288, 216))  # of frames: width, height
# Suffix, rate, channels and options of every eighth sound file.
FILES = (
    ("wav", 16000, 1, {}),
    ("wav", 16000, 2, {}),
    ("wav", 44100, 2, {}),
    ("ogg", 44100, 2, {}),
    ("wav", 16000, 1, {}),
    ("flac", 22050, 1, {}),
    ("ogg", 22050, 1, {}),
    ("wav", 48000, 1, {"subtype": "PCM_24"}),
)


# Images of train and of test, minutes, epochs, categories.
FULL, SHORT = (2000, 120, 5, 30, 24), (160, 16, 1, 4, 8)


@dataclass(frozen=True)
class Category:
    name: str
    photographs: tuple[Path, ...]
    recording: np.ndarray  # (samples,) float32 at RATE, silence at both ends cut off


def is_photograph(path: Path) -> bool:
    """Whether a stamp is a cut-out photograph: of some size, with an outline, and more colours than a drawing has."""
    if "cartoon" in path.parts:
        return False
    with Image.open(path) as image:
        if image.mode != "RGBA" or max(image.size) < 90:
            return False
        pixels = np.asarray(image)
    opaque = pixels[..., 3] > 200
    colours = np.unique((pixels[opaque][:, :3] // 8).astype(int) @ (1, 32, 1024))
    return 0.1 < opaque.mean() < 0.95 and len(colours) >= 200


def spectrum(sound: np.ndarray) -> np.ndarray:
    """Of a sound's first 8 s below 2 kHz, of norm 1, long enough to be shifted against another one."""
    low = resample(sound[: 8 * RATE], RATE, 4000)
    return np.fft.rfft(low / np.linalg.norm(low), 1 << 16)


def same_recording(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether of two spectra one is the other's, or a part's of it, in spite of level and coding: they correlate."""
    return np.abs(np.fft.irfft(a * b.conj())).max() > 0.6


def find(root: Path) -> tuple[list[Category], list[Path]]:
    """(categories, silent photographs) of a folder of stamps. Stamps with the same recording are one category."""
    categories: list[Category] = []
    spectra: list[np.ndarray] = []
    for path in (path for folder in SOUNDING for path in sorted((root / folder).rglob("*.png"))):
        if not path.with_suffix(".ogg").exists() or not is_photograph(path):
            continue
        sound = load_audio(path.with_suffix(".ogg"), sample_rate=RATE)
        loud = np.flatnonzero(np.abs(sound) > 0.03 * np.abs(sound).max())
        if np.abs(sound).max() < 0.05 or loud[-1] - loud[0] < 0.1 * RATE:  # some recordings are empty
            continue
        sound = sound[loud[0] : loud[-1] + 1]
        heard = spectrum(sound)
        same = next((i for i, one in enumerate(spectra) if same_recording(one, heard)), None)
        if same is None:
            spectra.append(heard)
            categories.append(Category(path.stem, (path,), sound))
        else:
            categories[same] = replace(categories[same], photographs=(*categories[same].photographs, path))
    silent = [
        path
        for folder in SILENT
        for path in sorted((root / folder).rglob("*.png"))
        if not path.with_suffix(".ogg").exists() and is_photograph(path)
    ]
    if len(categories) < 4 or not silent:
        raise SystemExit(f"real_stamps: {root}: expected photographs with sounds, found {len(categories)}; {INSTALL}")
    return categories, silent


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@functools.lru_cache(maxsize=512)
def stamp(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image = image.convert("RGBA")
    return image.crop(image.getchannel("A").getbbox())


def texture(rng: np.random.Generator, silent: list[Path], size: tuple[int, int]) -> Image.Image:
    """A background: a piece of a photograph that is all opaque, enlarged and softened."""
    while True:
        image = stamp(silent[rng.integers(len(silent))])
        side = int(min(image.size) * rng.uniform(0.25, 0.5))
        left, top = (int(rng.integers(length - side + 1)) for length in image.size)
        piece = image.crop((left, top, left + side, top + side))
        if side >= 16 and piece.getchannel("A").getextrema()[0] > 250:
            break
    piece = piece.convert("RGB").resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))
    shade = np.linspace(rng.uniform(0.6, 1.1), rng.uniform(0.6, 1.1), size[1])[:, None, None]
    pixels = np.asarray(piece) * shade + rng.normal(0, 4, (size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def places(rng: np.random.Generator, shapes: list[tuple[int, int]], sides: list[float], frame: tuple[int, int]) -> list:
    """Boxes (left, top, width, height) for stamps of these shapes, the longer side given, that overlap little."""
    while True:
        boxes = []
        for (width, height), side in zip(shapes, sides):
            scale = side / max(width, height)
            w, h = max(8, round(width * scale)), max(8, round(height * scale))
            left, top = (int(rng.integers(max(1, free + 1))) for free in (frame[0] - w, frame[1] - h))
            boxes.append((left, top, w, h))

        def shared(a, b):
            across, down = (min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
            return max(0, across) * max(0, down) / min(a[2] * a[3], b[2] * b[3])

        if all(shared(a, b) < 0.1 for i, a in enumerate(boxes) for b in boxes[:i]):
            return boxes
        sides = [side * 0.99 for side in sides]


def compose(rng: np.random.Generator, photographs: list[Path], silent: list[Path]) -> tuple[Image.Image, np.ndarray]:
    """(frame, masks (len(photographs), H, W) bool): the stamps, and up to two silent ones, pasted on a background."""
    size = SIZES[rng.integers(len(SIZES))]
    frame = texture(rng, silent, size)
    extra = [silent[i] for i in rng.choice(len(silent), rng.integers(0, 3), replace=False)]
    stamps = [stamp(path) for path in photographs + extra]
    large = (0.5, 0.8) if len(photographs) == 1 else (0.4, 0.6)
    sides = [min(size) * rng.uniform(*(large if i < len(photographs) else (0.2, 0.3))) for i in range(len(stamps))]
    masks = np.zeros((len(stamps), size[1], size[0]), bool)
    for i, (image, box) in enumerate(zip(stamps, places(rng, [s.size for s in stamps], sides, size))):
        left, top, width, height = box
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        alpha = image.getchannel("A")
        frame.paste(ImageEnhance.Brightness(image.convert("RGB")).enhance(rng.uniform(0.75, 1.2)), (left, top), alpha)
        cover = np.zeros(masks.shape[1:], bool)
        cover[top : top + height, left : left + width] = (np.asarray(alpha) > 127)[: size[1] - top, : size[0] - left]
        masks[:i] &= ~cover  # what is pasted later hides what is below
        masks[i] = cover
    return frame, masks[: len(photographs)]


# ---------------------------------------------------------------------------------------------------------------------
# Sounds


def stretch(recording: np.ndarray, speed: float) -> np.ndarray:
    """Faster or slower at the same pitch, by a phase vocoder."""
    n_fft, hop = 1024, 256
    window = torch.hann_window(n_fft)
    padded = torch.nn.functional.pad(torch.from_numpy(recording), (0, max(0, n_fft - len(recording))))
    spectrum = torch.stft(padded, n_fft, hop, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * hop, n_fft // 2 + 1)[:, None]
    spectrum = torchaudio.functional.phase_vocoder(spectrum, speed, advance)
    return torch.istft(spectrum, n_fft, hop, window=window).numpy()


def sounding(rng: np.random.Generator, recording: np.ndarray) -> np.ndarray:
    """(SECONDS * RATE,) another take of a recording: tempo, pauses, cut, level and noise differ."""
    once = stretch(recording, rng.uniform(0.8, 1.25))
    samples = round(SECONDS * RATE)
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < 2 * samples:
        parts += [once, np.zeros(int(RATE * rng.uniform(0, 0.2)), np.float32)]
    line = np.concatenate(parts)
    middle = slice(samples // 4, 3 * samples // 4)  # where a front end of one second listens
    while True:
        start = rng.integers(len(line) - samples + 1)
        wave = line[start : start + samples]
        if np.square(wave[middle]).mean() > 0.1 * np.square(once).mean():
            break
    wave = wave / np.abs(wave).max() * 10 ** (rng.uniform(-15, -1) / 20)
    noise = rng.standard_normal(samples) * wave.std() * 10 ** (-rng.uniform(15, 40) / 20)
    return (wave + noise).clip(-1, 1).astype(np.float32)


def write_sound(rng: np.random.Generator, folder: Path, name: str, number: int, wave: np.ndarray) -> None:
    suffix, rate, channels, options = FILES[number % len(FILES)]
    wave = resample(wave, RATE, rate).clip(-1, 1)
    if channels == 2:
        balance = rng.uniform(0.6, 1)
        wave = np.stack([wave, wave * balance][:: rng.choice([-1, 1])], 1)
    soundfile.write(folder / f"{name}.{suffix}", wave, rate, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def write_split(root: Path, count: int, seed: int, categories: list[Category], silent: list[Path]) -> None:
    """One folder of `count` images; with annotations and every object's sound unless its name is train."""
    train = root.name == "train"
    for part in ("frames", "audio") if train else ("frames", "audio", "masks"):
        (root / part).mkdir(parents=True)
    annotations, sounds = [], 0
    for i in progress_bar(range(count), desc=f"composing {root.name}", unit="image"):
        rng = np.random.default_rng([seed, zlib.crc32(root.name.encode()), i])
        objects = int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2] if train else [0, 0.75, 0.25]))
        shown = [categories[k] for k in rng.choice(len(categories), objects, replace=False)]
        photographs = [category.photographs[rng.integers(len(category.photographs))] for category in shown]
        frame, masks = compose(rng, photographs, silent)
        name = f"{root.name} {i:04d}"
        if i % 4 == 3:
            frame.save(root / "frames" / f"{name}.png")
        else:
            frame.save(root / "frames" / f"{name}.jpg", quality=90)
        for category, mask in zip(shown[:1] if train else shown, masks):
            sound = name if train else f"{name} {category.name}"
            write_sound(rng, root / "audio", sound, sounds, sounding(rng, category.recording))
            sounds += 1
            if train:
                continue
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / "masks" / f"{sound}.png")
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [
                columns[0] / mask.shape[1],
                rows[0] / mask.shape[0],
                (columns[-1] + 1) / mask.shape[1],
                (rows[-1] + 1) / mask.shape[0],
            ]
            annotations.append(
                {
                    "file": sound,
                    "image": name,
                    "audio": sound,
                    "class": category.name,
                    "bbox": [[float(x) for x in box]],
                    "mask": f"masks/{sound}.png",
                    "visible": [one.name for one in shown],
                }
            )
    if annotations:
        (root / "annotations.json").write_text(json.dumps(annotations, indent=1), encoding="utf-8")


def run(*arguments: object) -> None:
    """One command of ssl-fast; ends the program where it fails."""
    words = [str(argument) for argument in arguments]
    print("\n$ ssl-fast", *words, flush=True)
    code = cli.main(words)
    if code:
        raise SystemExit(code)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="new folder for data, run and results")
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="folder of stamps (default: %(default)s)")
    parser.add_argument("--scenes", type=int, metavar="N", help=f"images of train (default: {FULL[0]})")
    parser.add_argument("--test", type=int, metavar="N", help=f"images of test, twice val's (default: {FULL[1]})")
    parser.add_argument("--minutes", type=float, metavar="M", help=f"budget of training (default: {FULL[2]})")
    parser.add_argument("--epochs", type=int, metavar="N", help=f"passes over train (default: {FULL[3]})")
    parser.add_argument("--categories", type=int, metavar="N", help=f"spread over all there are (default: {FULL[4]})")
    parser.add_argument("--method", default="ssl_align", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="defaults that take a minute in all, and learn little")
    args = parser.parse_args(argv)
    defaults = SHORT if args.short else FULL
    scenes, test, minutes, epochs, count = (
        x if x is not None else y
        for x, y in zip((args.scenes, args.test, args.minutes, args.epochs, args.categories), defaults)
    )
    if not args.stamps.is_dir():
        raise SystemExit(f"real_stamps: {args.stamps}: no such folder; {INSTALL}")
    if args.out.exists() and any(args.out.iterdir()):
        raise SystemExit(f"real_stamps: --out {args.out}: expected a new or empty folder")
    try:
        categories, silent = find(args.stamps)
    except MediaError as error:
        raise SystemExit(f"real_stamps: {error}") from error
    count = min(count, len(categories))
    categories = [categories[i * len(categories) // count] for i in range(count)]
    photographs = sum(len(category.photographs) for category in categories)
    print(
        f"{len(categories)} categories of {photographs} photographs, {len(silent)} silent photographs: "
        + ", ".join(category.name for category in categories)
    )
    for split, count in {"train": scenes, "val": max(2, test // 2), "test": test}.items():
        write_split(args.out / split, count, args.seed, categories, silent)
        run("data", "check", args.out / split)
    run(
        "train",
        "--data",
        args.out / "train",
        "--out",
        args.out / "run",
        "--method",
        args.method,
        "--seed",
        args.seed,
        "--epochs",
        epochs,
        "--minutes",
        minutes,
    )
    run(
        "evaluate",
        "--data",
        args.out / "test",
        "--val",
        args.out / "val",
        "--weights",
        args.out / "run",
        "--out",
        args.out / "results",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
