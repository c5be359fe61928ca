"""`ssl-fast mine`: features of nets against the nets themselves, called directly, and what is asked for wrongly."""

import re

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from ssl_fast import cli
from ssl_fast.data.audio import MediaError
from ssl_fast.data.datasets import FolderSet
from ssl_fast.data.neighbors import Neighbors
from ssl_fast.models import LocalizerConfig, build, checkpoints
from ssl_fast.models.resnet import ResNet18
from ssl_fast.recipes import recipe

COUNT = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven clips: frames of any size, sounds of half a second; listed.txt has six of them, backwards."""
    root, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    for kind in ("frames", "audio"):
        (root / kind).mkdir()
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (30 + i, 40, 3), np.uint8)).save(root / "frames" / f"clip {i}.png")
        soundfile.write(root / "audio" / f"clip {i}.wav", rng.uniform(-0.5, 0.5, 8000), 16000)
    (root / "listed.txt").write_text("".join(f"clip {i}\n" for i in range(5, -1, -1)))
    return root


def checkpoint(folder, method):
    """A run's folder with fresh weights; the localizer."""
    torch.manual_seed(3)
    model = LocalizerConfig.small(method, width=4, dimension=8, projection=None)
    localizer = build(model).eval()
    for layer in localizer.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # not the identity
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    folder.mkdir()
    settings = recipe(method, model=model, image_size=48).to_dict()
    checkpoints.save({"recipe": settings, "localizer": localizer.state_dict()}, folder / "checkpoint.pt")
    return localizer


def mine(*argv):
    return cli.main(["mine", "--quiet", "--threads", "1", *map(str, argv)])


def fails(capsys, argv, *words):
    capsys.readouterr()
    assert mine(*argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("ssl-fast mine: ") and err.count("\n") == 1 and all(word in err for word in words), err


def nearest(features, k):
    rows = features.astype(np.float64)
    cosines = [[-2 if i == j else a @ b / np.sqrt((a @ a) * (b @ b)) for j, b in enumerate(rows)]
               for i, a in enumerate(rows)]  # fmt: skip
    return np.argsort(-np.array(cosines), 1, kind="stable")[:, :k]
