"""A localizer as a program of torch.export, which runs wherever torch does, without this package.

    import torch
    about = {"about.json": ""}
    program = torch.export.load("mine.pt2", extra_files=about)      # about: image_size, sample_rate, samples, ...
    maps = program.module()(images, waveforms)

Inputs: images (B, 3, S, S) uint8 RGB, frames made square by `fit` and `resampler` (see data.io.images); waveforms
(B, samples) float32 in [-1, 1], mono. Output: maps (B, h, w) float32, cosines. The whole front end is inside.
"""

import io
import json
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import replacing
from ..models.checkpoints import Checkpoint

SUFFIX = ".pt2"


class _Program(nn.Module):
    """Checkpoint.maps as a module, which holds the nets."""

    def __init__(self, found: Checkpoint):
        super().__init__()
        self.found, self.localizer = found, found.localizer

    def forward(self, images: Tensor, waveforms: Tensor) -> Tensor:
        return self.found.maps(images, waveforms)


def export(found: Checkpoint, path: str | os.PathLike, overwrite: bool = False) -> None:
    """Write the program, for any number of pairs at a time. ValueError for another suffix than .pt2, and where there is
    a file already, without `overwrite`."""
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: expected the suffix {SUFFIX}")
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: exists already; choose another name")
    front_end, size = found.front_end, found.image_size
    about = {
        "method": found.recipe["method"],
        "image_size": size,
        "fit": found.reading["fit"],
        "resampler": found.reading["resampler"],
        "sample_rate": front_end.sample_rate,
        "samples": front_end.samples,
        "channels": front_end.channels,
        "threshold": found.threshold,
    }
    pairs = torch.zeros(2, 3, size, size, dtype=torch.uint8), torch.zeros(2, front_end.samples)
    batch = {0: torch.export.Dim("batch")}
    program = _Program(found).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of weights that are channels last
        program(*pairs)  # fills the caches of windows and filters, which must not hold what tracing makes
        traced = torch.export.export(program, pairs, dynamic_shapes=(batch, batch))
        content = io.BytesIO()  # where the disk is full, torch ends the process
        torch.export.save(traced, content, extra_files={"about.json": json.dumps(about)})
    with replacing(path) as file:
        file.write(content.getbuffer())
