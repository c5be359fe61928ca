"""What the page of `ssl-fast demo` offers and asks for: scenes, uploaded files, answers. Without HTTP, see demo.py.

    desk = Desk(viewer)                                             # a localize.Viewer
    upload = desk.upload("sound", Path("clip.wav"), "clip.wav")     # {"id", "name", "preview"}
    desk.answer({"image": "scene-0", "sound": upload["id"], "alpha": .4, "threshold": None})

Uploaded files are not trusted: format and size are checked by their header before they are decoded. Of them the last
few are kept, scaled down, so that memory is bounded.
"""

import json
import re
import secrets
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..data.io.audio import resample
from ..data.io.media import MediaError
from ..data.scenes import dataset as scenes
from ..evaluation import pictures
from ..inference.localize import ALPHA, SIDE, Viewer
from ..models import checkpoints

SUFFIXES = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "sound": (".wav", ".flac", ".ogg", ".mp3", ".opus"),
}
IMAGE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow's names; MPO: JPEG of some cameras
SOUND_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")  # libsndfile's names
PIXELS, SCANS = 40_000_000, 64  # of an image; of a JPEG: progressive ones have about ten
TILES = (322, 323, 324, 325)  # tags of a TIFF that consists of tiles
SECONDS, SAMPLES = 600, 60_000_000  # of a sound: its length, the samples of all its channels
KEPT, KEPT_SIDE, ANSWERS = 16, 640, 32  # uploads, pixels of their longer side, answers
SCENES = 8  # the first ones of the test set of two objects


class Refusal(Exception):
    """A request that is not granted: HTTP status, and a message for the page."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Held:
    """kind "image": uint8 (H, W, 3); kind "sound": float32 (samples,), what the front end hears of it. uri: of the
    picture, of the WAV."""

    kind: str
    content: np.ndarray
    uri: str


class Desk:
    """What the page offers and asks for. Not to be used by several threads at once."""

    def __init__(self, viewer: Viewer):
        self.viewer, self.front_end = viewer, viewer.front_end
        self.fixed, self.uploads, self.answers = {}, {}, {}
        samples = self.front_end.samples
        self.fixed["silence"] = self._sound(np.zeros(samples, np.float32))
        self.fixed["noise"] = self._sound(np.random.default_rng(0).standard_normal(samples, np.float32).clip(-1, 1))
        self.scenes = [self._scene(index) for index in range(SCENES)]
        for index, one in enumerate(self.scenes):
            others = (sound for k in range(1, SCENES) for sound in self.scenes[(index + k) % SCENES]["sounds"])
            one["offscreen"] = next(sound for sound in others if sound["category"] not in one["categories"])

    def _scene(self, index: int) -> dict:
        drawn, name = scenes.scene(scenes.Settings(), "duo", index), f"scene-{index}"
        self.fixed[name] = _image(drawn.image)
        sounds = []
        for position, waveform in zip(drawn.sounding, drawn.waveforms):
            mono = resample(waveform.astype(np.float32) / 32768, scenes.SAMPLE_RATE, self.front_end.sample_rate)
            sounds.append({"id": f"{name}-{position}", "category": drawn.categories[position]})
            self.fixed[sounds[-1]["id"]] = self._sound(self.viewer.heard(mono))
        return {"id": name, "picture": self.fixed[name].uri, "categories": drawn.categories, "sounds": sounds}

    def _sound(self, heard: np.ndarray) -> Held:
        return Held("sound", heard, pictures.wav(heard, self.front_end.sample_rate))

    def about(self) -> dict:
        """What the page offers: the scenes, their sounds and others, how sliders begin, what may be uploaded; of the
        model also the categories that it knows, if it is the embedded one."""
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        colours = [to_hex(colour) for colour in colormaps[pictures.COLOURS](np.linspace(0, 1, 17))]
        found, (method, prior) = self.viewer.found, self.viewer.names
        known = scenes.Settings().names if found.path == checkpoints.EMBEDDED else None
        return {
            "model": {
                "method": method,
                "prior": prior,
                "file": "/".join(found.path.resolve().parts[-2:]),
                "categories": known,
            },
            "scenes": self.scenes,
            "alpha": ALPHA,
            "threshold": self.viewer.threshold,
            "seconds": self.front_end.seconds,
            "suffixes": SUFFIXES,
            "colours": colours,
        }

    def upload(self, kind: str, path: Path, name: str) -> dict:
        """Keep what is in a file; where it cannot be read: Refusal, which names it as `name`."""
        try:
            if kind == "image":
                check_image(path)
                held = _image(self.viewer.read_image(path))
            else:
                check_sound(path)
                held = self._sound(self.viewer.read_sound(path))
        except MediaError as error:
            raise Refusal(400, " ".join(str(error).replace(str(path), name).split())) from error
        key = secrets.token_hex(16)
        self.uploads[key] = held
        if len(self.uploads) > KEPT:
            oldest = next(iter(self.uploads))
            del self.uploads[oldest]
            self.answers = {ids: answer for ids, answer in self.answers.items() if oldest not in ids}
        return {"id": key, "name": name, "preview": held.uri}

    def answer(self, asked: object) -> dict:
        """Panels and scores of the image under the sound, and what is heard. Refusal for what cannot be answered."""
        if not isinstance(asked, dict):
            raise Refusal(400, f"expected a JSON object, got {_short(asked)}")
        for key in ("image", "sound", "alpha", "threshold"):
            if key not in asked:
                raise Refusal(400, f"{key}: missing")
        alpha, threshold = _number(asked, "alpha", 0, 1), asked["threshold"]
        if threshold is not None:
            threshold = _number(asked, "threshold", -1, 1)
        image, sound = self._held("image", asked["image"]), self._held("sound", asked["sound"])
        ids = asked["image"], asked["sound"]
        answer = self.answers.pop(ids, None) or self.viewer.localize(image.content, sound.content)
        self.answers[ids] = answer  # the one that was asked for last is the last to go
        if len(self.answers) > ANSWERS:
            del self.answers[next(iter(self.answers))]
        if threshold is not None:
            answer = replace(answer, threshold=threshold)
        panels = [vars(panel) | {"picture": pictures.jpeg(panel.picture)} for panel in answer.panels(alpha)]
        return {"panels": panels, "scores": answer.scores(), "heard": sound.uri}

    def _held(self, kind: str, key: object) -> Held:
        held = (self.fixed.get(key) or self.uploads.get(key)) if isinstance(key, str) else None
        if held is None:
            if isinstance(key, str) and re.fullmatch("[0-9a-f]{32}", key):
                raise Refusal(410, f"this {kind} is no longer kept, the last {KEPT} uploads are: choose its file again")
            raise Refusal(400, f"{kind}: unknown id {_short(key)}")
        if held.kind != kind:
            raise Refusal(400, f"{kind}: this is the id of {'an image' if held.kind == 'image' else 'a sound'}")
        return held


def _image(image: np.ndarray) -> Held:
    if max(image.shape[:2]) > KEPT_SIDE:
        image = pictures.enlarged(image, KEPT_SIDE)
    return Held("image", image, pictures.jpeg(pictures.enlarged(image, SIDE)))


def _number(asked: dict, key: str, low: float, high: float) -> float:
    value = asked[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise Refusal(400, f"{key}: expected a number from {low} to {high}, got {_short(value)}")
    return float(value)


def _short(value: object) -> str:
    text = "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else json.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"


def check_image(path: Path) -> None:
    """MediaError, which names the file, for one that should not be decoded: of a format that is rare or takes more time
    or memory than its size tells, or of too many pixels."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                kind, (width, height) = image.format, image.size
                tiled = kind == "TIFF" and any(tag in image.tag_v2 for tag in TILES)
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path}: expected at most {PIXELS // 10**6} million pixels, got more than that") from error
    except Exception as error:  # Pillow's plug-ins raise errors of many types over a damaged header
        raise MediaError(f"{path}: cannot be read as an image") from error
    if kind not in IMAGE_FORMATS:
        raise MediaError(f"{path}: expected an image of {', '.join(IMAGE_FORMATS)}, got {kind}")
    if width * height > PIXELS:
        raise MediaError(f"{path}: expected at most {PIXELS // 10**6} million pixels, got {width} x {height}")
    if tiled:  # of any size, whatever the image's: decoding takes memory for a whole one
        raise MediaError(f"{path}: expected a TIFF of strips, got one of tiles")
    scans = path.read_bytes().count(b"\xff\xda") if kind in ("JPEG", "MPO") else 0
    if scans > SCANS:  # some bytes each, which go through the whole image again
        raise MediaError(f"{path}: expected a JPEG of at most {SCANS} scans, got {scans}")


def check_sound(path: Path) -> None:
    """As check_image: for a sound of another format, that is too long, or has too many samples."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            kind, frames, channels, rate = file.format, file.frames, file.channels, file.samplerate
            seekable = file.seekable()  # else soundfile does not know how much to read
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise MediaError(f"{path}: cannot be read as a sound") from error
    if kind not in SOUND_FORMATS:
        raise MediaError(f"{path}: expected a sound of {', '.join(SOUND_FORMATS)}, got {kind}")
    if not seekable:
        raise MediaError(f"{path}: cannot be read as a sound (such samples are only read in a stream)")
    if frames > SECONDS * rate:
        raise MediaError(f"{path}: expected at most {SECONDS // 60} minutes, got {frames / rate:.0f} s")
    if frames * channels > SAMPLES:
        raise MediaError(f"{path}: expected at most {SAMPLES // 10**6} million samples, got {frames} x {channels}")
