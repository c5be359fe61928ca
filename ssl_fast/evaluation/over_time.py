"""Localization over time: which object of an image sounds now, and that nothing does in silence.

A sample set whose objects sound in parts of a clip (`scenes.load("sequence")`) has one sample for each object, with the
image and waveform of it and the seconds in which it is heard; what is heard of the image is their sum. Maps are asked
for at the same times of all models, STEP apart; times within MARGIN of a change, where either answer may be right, do
not count. By `way`:

    tokens   the map of the audio token whose centre is nearest, of a localizer with tokens, from one pass
    window   of any other localizer, the map of the part of the sound around the time, as long as the clips that it was
             trained with, silence before and after
    clip     of any other localizer, the map of all of the sound, the same at all times
"""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.io.front_ends import FrontEnd
from ..data.negatives import negatives
from ..data.scenes.dataset import Scenes
from ..files import replace_file
from ..models import Localizer
from ..progress import progress_bar
from . import false_alarms, metrics
from .predictors import audio_features, inference, visual_features
from .protocols import Protocol, score

WAYS = ("tokens", "window", "clip")
STEP, MARGIN = 0.1, 0.1  # seconds
SILENCE = ""  # category of a time at which nothing sounds
_WINDOWS = 256  # parts of sounds at a time


class Rows(NamedTuple):
    """One row for each image and time that counts, (R,) each; NaN and "" where nothing sounds."""

    image_id: np.ndarray
    seconds: np.ndarray
    category: np.ndarray  # of the object that sounds, SILENCE where none does
    iou_adaptive: np.ndarray  # as many pixels as the box of that object has
    iou_universal: np.ndarray  # of the pixels above the universal threshold
    pointing: np.ndarray  # 1 where the maximum of the map lies in the box
    to_sound: np.ndarray  # seconds to the nearest time at which something sounds, 0 where it does
    area: np.ndarray  # share of the image above the universal threshold
    map_max: np.ndarray


def ways_of(localizer: Localizer) -> tuple[str, ...]:
    """The ways that a localizer gives maps over time."""
    return ("tokens",) if localizer.has_tokens else ("window", "clip")


def maps_at(
    localizer: Localizer, images: Tensor, waveforms: Tensor, times: np.ndarray, front_end: FrontEnd, way: str
) -> np.ndarray:
    """Maps at times (T,), in seconds: images uint8 (B, 3, H, W), waveforms float32 (B, samples) -> (B, T, h, w).

    front_end: of the clips that the localizer was trained with. ValueError for a `way` that it does not have.
    """
    if way not in ways_of(localizer):
        raise ValueError(f"way: expected one of {ways_of(localizer)} of {localizer.config.method}, got {way!r}")
    visual = visual_features(localizer, images)
    if way != "window":
        spectrograms = front_end.spectrogram(waveforms)[:, None]
        audio = audio_features(localizer, spectrograms)
        if way == "clip":
            return _array(localizer.maps(visual, audio))[:, None].repeat(len(times), 1)
        frames = spectrograms.shape[3]
        centres = front_end.seconds_of_frames(localizer.token_times(frames) * frames - 0.5)
        return _array(localizer.token_maps(visual, audio))[:, np.abs(centres - times[:, None]).argmin(1)]
    half = front_end.samples // 2
    padded = torch.nn.functional.pad(waveforms, (half, front_end.samples - half))
    starts = np.rint(times * front_end.sample_rate).astype(int)  # of the part around each time, in `padded`
    parts = torch.stack([padded[:, start : start + front_end.samples] for start in starts], 1).flatten(0, 1)
    heard = [audio_features(localizer, front_end.spectrogram(part)[:, None]) for part in parts.split(_WINDOWS)]
    audio = {name: torch.cat([one[name] for one in heard]) for name in heard[0]}
    repeated = {name: value.repeat_interleave(len(times), 0) for name, value in visual.items()}
    maps = _array(localizer.maps(repeated, audio))
    return maps.reshape(len(images), len(times), *maps.shape[1:])


def _array(maps: Tensor) -> np.ndarray:
    return metrics.array(maps, "maps")


def threshold(localizer: Localizer, validation: Scenes, batch_size: int = 64) -> false_alarms.UniversalThreshold:
    """The universal threshold of maps over time, chosen on the negatives of a validation set (`universal_threshold`):
    of the maximum of each map, of which a localizer with tokens has several for a clip."""
    maxima = {}
    with inference(localizer):
        for kind in ("silence", "noise", "offscreen"):
            found = []
            for start in range(0, len(validation), batch_size):
                index = np.arange(start, min(start + batch_size, len(validation)))
                images = torch.stack([validation[int(i)]["image"] for i in index])
                audio = audio_features(localizer, negatives(validation, kind).spectrograms(index.tolist()))
                maps = localizer.token_maps if localizer.has_tokens else localizer.maps
                found.append(_array(maps(visual_features(localizer, images), audio).flatten(0, -3)).max((1, 2)))
            maxima[kind] = np.concatenate(found)
    return false_alarms.universal_threshold(maxima)


def sounding_at(times: np.ndarray, heard: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """(T,) int: which of the spans `heard` (k, 2) holds each time, -1 in silence, -2 within `margin` of a change."""
    out = np.full(len(times), -1)
    for k, (start, stop) in enumerate(heard):
        out[(times >= start) & (times < stop)] = k
    out[(np.abs(times[:, None] - heard.ravel()) < margin).any(1)] = -2
    return out


def rows(
    localizer: Localizer,
    sample_set: Scenes,
    threshold: float,
    way: str,
    front_end: FrontEnd,
    *,
    step: float = STEP,
    margin: float = MARGIN,
    batch_size: int = 16,
    progress: bool = False,
) -> Rows:
    """Localize at times `step` apart in every image of the set. front_end: of the localizer's training clips;
    threshold: the universal one, in units of the maps. Others: see `maps_at` and `sounding_at`."""
    times = np.arange(step / 2, sample_set.front_end.seconds, step)
    parts = []
    with inference(localizer):
        for group in progress_bar(
            list(_groups(sample_set, batch_size)), desc=f"over time, {way}", disable=not progress
        ):
            images = torch.stack([sample_set[samples[0]]["image"] for samples in group])
            waves = np.stack([sum(sample_set.waveform(i) for i in samples) for samples in group])
            maps = maps_at(localizer, images, torch.from_numpy(waves), times, front_end, way)
            parts += [_rows(sample_set, *one, times, threshold, margin) for one in zip(group, maps)]
    return Rows(*map(np.concatenate, zip(*parts)))


def _groups(sample_set: Scenes, size: int) -> Iterator[list[list[int]]]:
    """The samples of each image, `size` images at a time."""
    images: dict[str, list[int]] = {}
    for i, image in enumerate(sample_set.image_ids):
        images.setdefault(image, []).append(i)
    every = list(images.values())
    for start in range(0, len(every), size):
        yield every[start : start + size]


def _rows(
    sample_set: Scenes, samples: list[int], maps: np.ndarray, times: np.ndarray, threshold: float, margin: float
) -> Rows:
    """The rows of one image, of the maps (T, h, w) of all times."""
    which = sounding_at(times, sample_set.heard[samples], margin)
    times, maps, which = (x[which > -2] for x in (times, maps, which))
    boxes = np.stack([sample_set.ground_truth(i) for i in samples])
    found = score(Protocol(), maps, boxes[np.maximum(which, 0)], threshold=threshold)["audio_visual"]
    category = np.array([SILENCE if k < 0 else sample_set.categories[samples[k]] for k in which])
    names = ("iou_adaptive", "iou_universal", "pointing")
    adaptive, universal, pointing = (np.where(which < 0, np.nan, found[name]) for name in names)
    area = false_alarms.pia(metrics.upsample(maps, boxes.shape[1:]), threshold)
    image = np.full(len(times), sample_set.image_ids[samples[0]])
    spans = sample_set.heard[samples]
    to_sound = np.maximum(spans[:, 0] - times[:, None], times[:, None] - spans[:, 1]).min(1).clip(0)
    return Rows(image, times, category, adaptive, universal, pointing, to_sound, area, found["map_max"])


def figures(rows: Rows, reach: float) -> dict[str, float]:
    """Figures of all rows. reach: seconds around a time of which a model of clips hears the sound, half a clip.

    ciou, mean_iou, pointing: share of the times with sound at which the IoU is .5 or more, mean IoU, and share at which
        the maximum lies in the box of what sounds; `_universal` by the universal threshold, else by the adaptive rule.
    iiou, iauc: an object counts by its mean IoU over its times, an image by the lowest of its objects
        (`metrics.interactive`): share of the images with .5 or more, and area under that share over all thresholds.
    interactive_pointing: share of the images of each of whose objects the maximum lies in its box at most of its times.
    sound_localized, silence_localized: share of the times with sound, and with silence, at which some of the image is
        above the universal threshold; silence_area: the mean share of the image that is, in silence. far_silence_*: of
        the times of silence without a sound within `reach` alone, as far as there are any: nearer ones are silent to a
        model with short tokens, and not to one that hears a whole clip around them.
    """
    sounds = rows.category != SILENCE
    if not sounds.any() or sounds.all():
        raise ValueError("rows: expected times with sound and times with silence, got one kind alone")
    heard = Rows(*(column[sounds] for column in rows))
    objects: dict[tuple, list[int]] = {}
    for i, key in enumerate(zip(heard.image_id, heard.category)):
        objects.setdefault(key, []).append(i)
    images = [image for image, _ in objects]

    def by_object(values: np.ndarray) -> np.ndarray:
        return np.array([values[index].mean() for index in objects.values()])

    out = {"pointing": float(heard.pointing.mean())}
    pointed = metrics.group_minimum(by_object(heard.pointing), images)
    out["interactive_pointing"] = float((pointed > 0.5).mean())
    for rule, values in (("adaptive", heard.iou_adaptive), ("universal", heard.iou_universal)):
        group = metrics.interactive(by_object(values), images)
        out |= {
            f"ciou_{rule}": metrics.success_rate(values),
            f"mean_iou_{rule}": float(values.mean()),
            f"iiou_{rule}": group.iiou,
            f"iauc_{rule}": group.iauc,
        }
    out["sound_localized"] = float((heard.area > 0).mean())
    for name, chosen in (("silence", ~sounds), ("far_silence", ~sounds & (rows.to_sound >= reach))):
        if chosen.any():
            out[f"{name}_localized"] = float((rows.area[chosen] > 0).mean())
            out[f"{name}_area"] = float(rows.area[chosen].mean())
    return out


def evaluate(
    localizer: Localizer,
    sample_set: Scenes,
    validation: Scenes,
    *,
    progress: bool = False,
    threshold_value: float | None = None,
) -> tuple[dict, dict[str, Rows]]:
    """({"n": images, "threshold", "step", "margin", "figures": {way: figures}}, {way: rows}) by all ways of the
    localizer, whose training clips had the length of `validation`. The threshold is chosen there, or given."""
    value = threshold(localizer, validation).value if threshold_value is None else threshold_value
    found = {
        way: rows(localizer, sample_set, value, way, validation.front_end, progress=progress)
        for way in ways_of(localizer)
    }
    about = {"n": len(set(sample_set.image_ids)), "threshold": value, "step": STEP, "margin": MARGIN}
    return about | {
        "figures": {way: figures(one, validation.front_end.seconds / 2) for way, one in found.items()}
    }, found


def write_csv(path: Path, found: Mapping[str, Rows]) -> None:
    """per_time.csv: one row for each way, image and time that counts; cells are empty where nothing sounds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["way", *Rows._fields])
    for way, one in found.items():
        for row in zip(*one):
            writer.writerow(
                [way, *("" if x != x else f"{x:.6g}" if isinstance(x, float | np.floating) else x for x in row)]
            )
    replace_file(path, text.getvalue())
