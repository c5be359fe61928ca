"""Pictures and sounds as data URIs: heat maps over images, charts in a light and a dark version, audio."""

import base64
import contextlib
import io
import os
import sys
import wave
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from . import metrics
from .overlays import Tile

SIDE = 256  # pixels of the longer side of an overlay
COLOURS = "plasma"  # of heat maps
FIRST = "#0072b2"  # of the colour-blind safe palette of Okabe and Ito
SECOND = "#d55e00"
SOUNDS = {"positive": "own sound", "silence": "silence", "noise": "noise", "offscreen": "off-screen sound"}


def _matplotlib():
    """matplotlib, also where MPLBACKEND names a backend that is not installed, as a notebook leaves it to its programs:
    what is drawn here goes to files, and matplotlib cannot be imported a second time."""
    named = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    if named:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = named
    return matplotlib


def colours(level: np.ndarray) -> np.ndarray:
    """Levels (...) in [0, 1] -> the colours of heat maps (..., 4), RGBA in [0, 1]."""
    return _matplotlib().colormaps[COLOURS](level)


def data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def jpeg(pixels: np.ndarray) -> str:
    """uint8 (H, W, 3) -> data URI."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=88, subsampling=0)
    return data_uri("image/jpeg", out.getvalue())


def wav(waveform: np.ndarray, sample_rate: int) -> str:
    """float (samples,) in [-1, 1] -> data URI of a 16-bit mono WAV."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((np.clip(np.asarray(waveform, np.float64), -1, 1) * 32767).round().astype("<i2").tobytes())
    return data_uri("audio/wav", out.getvalue())


def enlarged(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """uint8 (H, W, 3) resized so that the longer side has `side` pixels."""
    from PIL import Image

    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BICUBIC))


def _edge(region: np.ndarray, thickness: int) -> np.ndarray:
    """Pixels of a bool (H, W) region within `thickness` of what is not region; beyond the frame is not region."""
    inner = np.pad(region, thickness)
    height, width = region.shape
    shifts = [
        inner[thickness + y : thickness + y + height, thickness + x : thickness + x + width]
        for y, x in ((-thickness, 0), (thickness, 0), (0, -thickness), (0, thickness))
    ]
    return region & ~np.logical_and.reduce(shifts)


def heat(image: np.ndarray, values: np.ndarray, low: float, high: float, side: int = SIDE) -> np.ndarray:
    """A map (h, w) over the greyed image, colours from `low` to `high`: float32 (H, W, 3) within [0, 255]."""
    enlarged_image = enlarged(image, side).astype(np.float32)
    level = metrics.upsample(values[None], enlarged_image.shape[:2])[0]
    level = np.clip((level - low) / (high - low), 0, 1) if high > low else np.zeros_like(level)
    base = 0.35 * enlarged_image + 0.45 * enlarged_image.mean(2, keepdims=True)
    weight = (0.85 * level**1.5)[..., None]
    return (1 - weight) * base + weight * 255 * colours(level)[..., :3]


def outline(picture: np.ndarray, region: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Draw the inner edge of a bool (H, W) region."""
    picture[_edge(region, 4)] = 0
    picture[_edge(region, 3)] = colour


def ring(picture: np.ndarray, values: np.ndarray) -> None:
    """Draw a ring round the maximum of a map (h, w), unless it is constant."""
    if values.min() < values.max():
        height, width = picture.shape[:2]
        y, x = np.unravel_index(values.argmax(), values.shape)
        y, x = (y + 0.5) * height / values.shape[0], (x + 0.5) * width / values.shape[1]
        distance = np.hypot(np.arange(height)[:, None] + 0.5 - y, np.arange(width) + 0.5 - x)
        picture[(distance > 3.5) & (distance < 8.5)] = 0
        picture[(distance > 4.5) & (distance < 7.5)] = 255


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """float (H, W, 3) within [0, 255] -> uint8."""
    return picture.clip(0, 255).round().astype(np.uint8)


def overlay(tile: Tile, low: float, high: float) -> np.ndarray:
    """The heat map over the greyed image, colours from `low` to `high`; ground truth outlined, the maximum ringed."""
    picture, truth = heat(tile.image, tile.map, low, high), tile.ground_truth
    height, width = picture.shape[:2]
    rows, columns = np.arange(height) * truth.shape[0] // height, np.arange(width) * truth.shape[1] // width
    outline(picture, truth[rows][:, columns] > 0, (120, 255, 170))
    ring(picture, tile.map)
    return to_bytes(picture)


# ------------------------------------------------------------------------------------------------ charts


def chart(draw: Callable, size: tuple[float, float]) -> tuple[str, str]:
    """draw(figure, ink) -> data URIs of the chart for light and for dark pages; `size` in inches."""
    matplotlib = _matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    out = []
    for paper, ink, faint in (("#ffffff", "#1c2430", "#d5dae2"), ("#1b212b", "#e8ecf2", "#3b4454")):
        style: dict = dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), paper)
        style |= dict.fromkeys(("axes.edgecolor", "grid.color", "legend.edgecolor"), faint)
        style |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), ink)
        style |= {
            "axes.grid": True,
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 9,
            "axes.titlesize": 10,
        }
        with matplotlib.rc_context(style):
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, ink)
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=160)
        out.append(data_uri("image/png", content.getvalue()))
    return out[0], out[1]


CURVES = (("loss", "loss"), ("learning_rate", "learning rate"), ("mean_weight", "pooling blend (1 = plain mean)"))


def history_columns(history) -> dict[str, np.ndarray]:
    """A list of records or a mapping of lists -> columns of numbers; "step" is the position where it is missing."""
    if not isinstance(history, Mapping):
        keys = dict.fromkeys(key for record in history for key in record)
        history = {key: [record.get(key, np.nan) for record in history] for key in keys}
    columns = {
        key: np.array([np.nan if v is None else v for v in values], np.float64)
        for key, values in history.items()
        if not any(isinstance(v, str) for v in values)
    }
    length = max((len(values) for values in columns.values()), default=0)
    return {"step": np.arange(length, dtype=np.float64)} | columns


def training_curves(history, chance: float | None = None) -> tuple[str, str]:
    """Loss (each step and a running mean; the loss of a collapsed net where given), learning rate, pooling blend."""
    columns = history_columns(history)
    curves = [(key, title) for key, title in CURVES if key in columns and np.isfinite(columns[key]).any()]

    def draw(figure, ink):
        widths = [2 if key == "loss" else 1 for key, _ in curves]
        grid = figure.subplots(1, len(curves), squeeze=False, width_ratios=widths)
        for axes, (key, title) in zip(grid[0], curves):
            x, y = columns["step"], columns[key]
            have = np.isfinite(y)
            x, y = x[have], y[have]
            if key == "loss":
                axes.plot(x, y, color=FIRST, alpha=0.3, linewidth=0.7, label="each step")
                width = max(1, len(y) // 40)
                total = np.cumsum(np.concatenate([np.zeros(1), y]))
                mean = (total[width:] - total[:-width]) / width
                axes.plot(x[width - 1 :], mean, color=FIRST, linewidth=1.8, label=f"mean of {width}")
                if chance is not None:
                    axes.axhline(chance, color=SECOND, linestyle="--", linewidth=1, label="a collapsed net")
                axes.legend(loc="upper right")
                axes.set_ylim(0, max(1e-9, 1.05 * max(np.percentile(y, 99.5), chance or 0)) if (y >= 0).all() else None)
            else:
                axes.plot(x, y, color=FIRST, linewidth=1.8)
            axes.set(title=title, xlabel="step")

    return chart(draw, (10, 2.9))


def maxima_boxes(map_maxima: Mapping[str, Sequence[float]], threshold: float | None) -> tuple[str, str]:
    """Box plots of the maximum of the map under each kind of sound, each from minimum, quartiles and maximum."""

    def draw(figure, ink):
        axes = figure.subplots()
        line = {"color": ink, "linewidth": 1}
        stats = [
            {"whislo": low, "q1": q1, "med": median, "q3": q3, "whishi": high, "label": SOUNDS.get(kind, kind)}
            for kind, (low, q1, median, q3, high) in map_maxima.items()
        ]
        boxes = axes.bxp(
            stats,
            orientation="horizontal",
            showfliers=False,
            patch_artist=True,
            widths=0.55,
            boxprops={"edgecolor": ink, "linewidth": 1},
            whiskerprops=line,
            capprops=line,
            medianprops=line | {"linewidth": 2},
        )
        for patch, kind in zip(boxes["boxes"], map_maxima):
            patch.set_facecolor(FIRST if kind == "positive" else SECOND)
            patch.set_alpha(0.75)
        if threshold is not None:
            axes.axvline(threshold, color=ink, linestyle="--", linewidth=1.2)
            axes.set_title(f"threshold {threshold:.3f} (dashed)", loc="right", fontsize=8)
        axes.set_xlabel("maximum of the map (cosine)")
        axes.set_ylim(len(stats) + 0.6, 0.4)

    return chart(draw, (7, 0.9 + 0.5 * len(map_maxima)))


def overlap_bars(overlaps: Mapping[str, float]) -> tuple[str, str]:
    """{pair of sounds: mean IoU of what is predicted under both} as bars."""

    def draw(figure, ink):
        axes = figure.subplots()
        bars = axes.barh(list(overlaps), list(overlaps.values()), height=0.55, color=SECOND, alpha=0.75, edgecolor=ink)
        axes.bar_label(bars, fmt="%.3f", color=ink, fontsize=8, padding=3)
        axes.set_xlabel("mean IoU of the two predictions (1: they are the same, or both empty)")
        axes.set_xlim(0, 1)
        axes.invert_yaxis()

    return chart(draw, (7, 0.9 + 0.4 * len(overlaps)))
