"""For tests of training: a sample set without files, one of files, neighbours."""

import numpy as np
import soundfile
import torch
from PIL import Image

from ssl_fast.data.datasets import FolderSet, SampleSet
from ssl_fast.data.io.front_ends import FrontEnd
from ssl_fast.models import checkpoints
from ssl_fast.training import Callback


def loaded(path):
    """The localizer in a checkpoint, and the state beside it."""
    found = checkpoints.load(path)
    return found.localizer, found.state


def after_step(call):
    """A callback of training that calls (learner, record) after every step."""
    callback = Callback()
    callback.on_step = call
    return callback


# floor and scale of the scenes' front end, so that digital silence is the same; the toys' 32 x 12 cells
TOY = FrontEnd(name="toy", seconds=414 / 16000, window=62, hop=32)


class ToySet(SampleSet):
    """`samples` pairs of `size` pixels; the category (of 4) tints the image and raises a band of the spectrogram."""

    has_ground_truth = False
    front_end = TOY

    def __init__(self, samples: int = 40, size: int = 32):
        generator = torch.Generator().manual_seed(7)
        self.ids = [f"toy-{i:03d}" for i in range(samples)]
        self.image_ids = self.ids
        category = torch.arange(samples) % 4
        self.images = torch.randint(0, 60, (samples, 3, size, size), generator=generator, dtype=torch.uint8)
        self.spectrograms = torch.randn(samples, 1, 32, 12, generator=generator) * 0.1 - 0.9
        for i, k in enumerate(category.tolist()):
            self.images[i, k % 3, :, (k // 3) * 16 :] += 120
            self.spectrograms[i, 0, 8 * k : 8 * k + 8] += 0.5

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"image": self.images[index], "spectrogram": self.spectrograms[index], "index": index}

    def waveform(self, index):
        """Sounds of their own, not those of the spectrograms."""
        return np.random.default_rng(index).uniform(-0.1, 0.1, TOY.samples).astype(np.float32)


class Others(ToySet):
    """Samples that are not trained on; with `boxes` the left half of each image is its ground truth."""

    def __init__(self, samples=16, boxes=False):
        super().__init__(samples)
        self.ids = self.image_ids = [f"other-{i}" for i in range(samples)]
        self.categories, self.visible = [None] * samples, [frozenset()] * samples
        self.has_ground_truth = boxes

    def ground_truth(self, index):
        return torch.cat([torch.ones(32, 16), torch.zeros(32, 16)], 1).numpy()

    def mask(self, index):
        return None


class Nearest:
    """Neighbours of a set's samples: one of the next `reach`, counted round. Draws are kept in `drawn`."""

    def __init__(self, sample_set, reach: int = 3):
        self.sample_set, self.reach, self.drawn = sample_set, reach, []

    def check(self, sample_set):
        if sample_set.ids != self.sample_set.ids:
            raise ValueError("neighbours of another set")

    def draw(self, index, generator):
        step = 1 + int(torch.randint(self.reach, (1,), generator=generator))
        self.drawn.append((index + step) % len(self.sample_set.ids))
        return self.drawn[-1]


HEARD = FrontEnd(name="heard", seconds=0.25, hop=128)


def folder(root, samples: int = 12) -> FolderSet:
    """`samples` frames of 48 x 36 pixels, noise beside a ramp, and clips of 1.5 s, of which .25 s are heard."""
    for kind in ("frames", "audio"):
        (root / kind).mkdir(parents=True)
    rng = np.random.default_rng(1)
    for i in range(samples):
        pixels = rng.integers(0, 256, (36, 48, 3), np.uint8)
        pixels[:, :24] = np.arange(24)[:, None] * 10 + i
        Image.fromarray(pixels).save(root / "frames" / f"{i:02d}.png")
        soundfile.write(root / "audio" / f"{i:02d}.wav", rng.uniform(-0.5, 0.5, 24000), 16000)
    return FolderSet(root, front_end=HEARD, size=32)
