"""An image and its panels side by side, with titles and colour bars, as one picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..evaluation import pictures

WIDTH = 260  # pixels of a column, at least
GAP, TITLE, BAR, LABEL = 16, 30, 14, 24  # pixels: between pictures, and heights
PAPER, INK = (255, 255, 255), (28, 36, 48)


@dataclass(frozen=True)
class Panel:
    """A map over the image: uint8 (H, W, 3); low, high: values of the lowest and highest colour."""

    title: str
    picture: np.ndarray
    low: float
    high: float
    threshold: float | None


def sheet(image: np.ndarray, panels: Sequence[Panel]) -> np.ndarray:
    """uint8 (H, W, 3). image: uint8 (h, w, 3), as large as the panels' pictures. Universal thresholds are marked in the
    bar, and written below it."""
    height, width = image.shape[:2]
    column = max(width, WIDTH)
    paper = Image.new("RGB", ((column + GAP) * (len(panels) + 1) + GAP, TITLE + height + GAP + BAR + LABEL), PAPER)
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(15)
    colours = (255 * pictures.colours(np.linspace(0, 1, column))[:, :3]).astype(np.uint8)
    bar = Image.fromarray(np.broadcast_to(colours, (BAR, column, 3)).copy())

    def write(x: float, y: int, text: str, anchor: str) -> None:
        draw.text((x, y), text, INK, font, anchor)

    for k, (title, picture) in enumerate([("image", image), *((panel.title, panel.picture) for panel in panels)]):
        left = GAP + k * (column + GAP)
        write(left, TITLE // 2, title, "lm")
        paper.paste(Image.fromarray(picture), (left + (column - width) // 2, TITLE))
        if not k:
            continue
        panel, top = panels[k - 1], TITLE + height + GAP // 2
        paper.paste(bar, (left, top))
        for value, x, side in ((panel.low, left, "l"), (panel.high, left + column, "r")):
            write(x, top + BAR + LABEL // 2, f"{value:.3f}", f"{side}m")
        if panel.threshold is not None:
            write(left + column / 2, top + BAR + LABEL // 2, f"threshold {panel.threshold:.3f}", "mm")
            if panel.low <= panel.threshold <= panel.high and panel.low < panel.high:
                at = left + (panel.threshold - panel.low) / (panel.high - panel.low) * column
                draw.rectangle((at - 1, top, at + 1, top + BAR - 1), PAPER)
    return np.asarray(paper)
