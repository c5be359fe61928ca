"""State behind the page of `ssl-fast demo`: scenes, uploaded files, answers. Without HTTP, see server.py.

    session = DemoSession(pipeline)                                 # a localize.LocalizationPipeline
    upload = session.upload("sound", Path("clip.wav"), "clip.wav")  # {"id", "name", "preview"}
    session.answer({"image": "scene-0", "sound": upload["id"], "alpha": .4, "threshold": None})

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
from ..data.io.lengths import mp3_stream
from ..data.io.media import MediaError
from ..data.scenes import dataset as scenes
from ..evaluation import pictures
from ..inference.localize import ALPHA, SIDE, Answer, LocalizationPipeline, scale_of
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
UPLOADS, UPLOAD_SIDE = 16, 640  # kept, the last ones; pixels of their longer side
ANSWERS = 32  # kept, those asked for last
SCENES = 8  # the first ones of the test set of two objects


class RequestError(Exception):
    """A request that is refused: HTTP status, and a message for the page."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Media:
    """An image or a sound with its data URI for the page.

    kind "image": content uint8 (H, W, 3), uri of a picture. kind "sound": content float32 (samples,), the part that
    fits the front end, uri of a WAV.
    """

    kind: str
    content: np.ndarray
    uri: str


class DemoSession:
    """Scenes, uploads and answers of one server. Not to be used by several threads at once."""

    def __init__(self, pipeline: LocalizationPipeline):
        self.pipeline, self.front_end = pipeline, pipeline.front_end
        self.fixed: dict[str, Media] = {}
        self.uploads: dict[str, Media] = {}
        self.answers: dict[tuple[str, str], Answer] = {}
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
            self.fixed[sounds[-1]["id"]] = self._sound(self.pipeline.heard(mono))
        return {"id": name, "picture": self.fixed[name].uri, "categories": drawn.categories, "sounds": sounds}

    def _sound(self, heard: np.ndarray) -> Media:
        return Media("sound", heard, pictures.wav(heard, self.front_end.sample_rate))

    def about(self) -> dict:
        """Contents of the page, as JSON: the scenes, their sounds and others, start of the sliders, file names that may
        be uploaded, the model; of the embedded one also the categories that it knows."""
        palette = (255 * pictures.colours(np.linspace(0, 1, 17))[:, :3]).round().astype(int)
        colours = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette]
        found, (method, prior) = self.pipeline.found, self.pipeline.names
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
            "threshold": self.pipeline.threshold,
            "seconds": self.front_end.seconds,
            "suffixes": SUFFIXES,
            "colours": colours,
        }

    def upload(self, kind: str, path: Path, name: str) -> dict:
        """Read and keep a file of kind "image" or "sound". RequestError, which calls it `name`, where it cannot be
        read."""
        try:
            if kind == "image":
                check_image(path)
                media = _image(self.pipeline.read_image(path))
            else:
                check_sound(path)
                media = self._sound(self.pipeline.read_sound(path))
        except MediaError as error:
            raise RequestError(400, " ".join(str(error).replace(str(path), name).split())) from error
        key = secrets.token_hex(16)
        self.uploads[key] = media
        if len(self.uploads) > UPLOADS:
            oldest = next(iter(self.uploads))
            del self.uploads[oldest]
            self.answers = {ids: answer for ids, answer in self.answers.items() if oldest not in ids}
        return {"id": key, "name": name, "preview": media.uri}

    def answer(self, request: object) -> dict:
        """Panels and scores of the image under the sound, and the sound; of a model with audio tokens also `moving`,
        pictures of the first panel at the times of all tokens. RequestError for what cannot be answered."""
        if not isinstance(request, dict):
            raise RequestError(400, f"expected a JSON object, got {_short(request)}")
        for key in ("image", "sound", "alpha", "threshold"):
            if key not in request:
                raise RequestError(400, f"{key}: missing")
        alpha, threshold = _number(request, "alpha", 0, 1), request["threshold"]
        if threshold is not None:
            threshold = _number(request, "threshold", -1, 1)
        image, sound = self._media("image", request["image"]), self._media("sound", request["sound"])
        ids = request["image"], request["sound"]
        answer = self.answers.pop(ids, None) or self.pipeline.localize(image.content, sound.content)
        self.answers[ids] = answer  # the one that was asked for last is dropped last
        if len(self.answers) > ANSWERS:
            del self.answers[next(iter(self.answers))]
        if threshold is not None:
            answer = replace(answer, threshold=threshold)
        panels = [vars(panel) | {"picture": pictures.jpeg(panel.picture)} for panel in answer.panels(alpha)]
        moving = self._moving(image, sound, threshold) if self.pipeline.found.localizer.has_tokens else None
        return {"panels": panels, "scores": answer.scores(), "heard": sound.uri, "moving": moving}

    def _moving(self, image: Media, sound: Media, threshold: float | None) -> dict:
        """Seconds on which the tokens of the sound are centred, the picture of each on a scale of all, and whether
        anything is above the threshold."""
        tokens, times = self.pipeline.tokens(sound.content)
        answers = self.pipeline.localize_tokens(image.content, tokens)
        if threshold is not None:
            answers = [replace(answer, threshold=threshold) for answer in answers]
        scale = scale_of([answer.audio_visual for answer in answers], answers[0].threshold)
        return {
            "times": times.tolist(),
            "pictures": [pictures.jpeg(answer.first_panel(scale).picture) for answer in answers],
            "found": [answer.scores()["found"] for answer in answers],
        }

    def _media(self, kind: str, key: object) -> Media:
        media = (self.fixed.get(key) or self.uploads.get(key)) if isinstance(key, str) else None
        if media is None:
            if isinstance(key, str) and re.fullmatch("[0-9a-f]{32}", key):
                raise RequestError(
                    410, f"this {kind} is no longer kept, the last {UPLOADS} uploads are: choose its file again"
                )
            raise RequestError(400, f"{kind}: unknown id {_short(key)}")
        if media.kind != kind:
            raise RequestError(400, f"{kind}: this is the id of {'an image' if media.kind == 'image' else 'a sound'}")
        return media


def _image(image: np.ndarray) -> Media:
    if max(image.shape[:2]) > UPLOAD_SIDE:
        image = pictures.enlarged(image, UPLOAD_SIDE)
    return Media("image", image, pictures.jpeg(pictures.enlarged(image, SIDE)))


def _number(request: dict, key: str, low: float, high: float) -> float:
    value = request[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise RequestError(400, f"{key}: expected a number from {low} to {high}, got {_short(value)}")
    return float(value)


def _short(value: object) -> str:
    text = "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else json.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"


def check_image(path: Path) -> None:
    """MediaError, which names the file, for an image that should not be decoded: of a format that is rare or takes more
    time or memory than the size of the file lets expect, or of too many pixels."""
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
    """MediaError, which names the file, for a sound of another format, that is too long, or has too many samples."""
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
    if kind == "MP3" and (counted := mp3_stream(path)) is not None:
        frames = counted[1]  # where libsndfile guesses
    if frames > SECONDS * rate:
        raise MediaError(f"{path}: expected at most {SECONDS // 60} minutes, got {frames / rate:.0f} s")
    if frames * channels > SAMPLES:
        raise MediaError(f"{path}: expected at most {SAMPLES // 10**6} million samples, got {frames} x {channels}")
