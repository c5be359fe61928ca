"""A tiny sample set and a localizer whose maps are known in advance, for the tests of the evaluation.

An object of category c is a block of cells whose red value is 16 (c + 1); its sound is the constant waveform
(c + 1) / 16, which the fake front end turns into a spectrogram of mean and deviation. The localizer's map is `gain`
where it sees the category it hears.
"""

from types import SimpleNamespace

import numpy as np
import torch

from ssl_fast.data.datasets import SampleSet

CELLS, SIDE = 4, 16  # 4 x 4 cells of 4 x 4 pixels


class FrontEnd(SimpleNamespace):
    shape = (2, 1)
    name, sample_rate, seconds, samples = "fake", 16000, 0.01, 160

    def spectrogram(self, waveforms):
        waveforms = torch.as_tensor(waveforms)
        return torch.stack([waveforms.mean(-1), waveforms.std(-1)], -1)[..., None].float()


class FakeSet(SampleSet):
    """objects: for each image a list of (category number, row, column, height, width) in cells; a sample per object."""

    def __init__(self, objects, *, masks=False, names="abcdefghijkl", prefix="image"):
        self.front_end, self.has_ground_truth, self.masks, self.objects = FrontEnd(), True, masks, objects
        self.samples = [(i, k) for i, shown in enumerate(objects) for k in range(len(shown))]
        self.image_ids = [f"{prefix}{i}" for i, _ in self.samples]
        self.ids = [f"{prefix}{i}_{names[objects[i][k][0]]}" for i, k in self.samples]
        self.categories = [names[objects[i][k][0]] for i, k in self.samples]
        self.visible = [frozenset(names[o[0]] for o in objects[i]) for i, _ in self.samples]

    def __len__(self):
        return len(self.samples)

    def block(self, sample, scale=SIDE // CELLS):
        image, k = self.samples[sample]
        _, row, column, height, width = self.objects[image][k]
        return slice(row * scale, (row + height) * scale), slice(column * scale, (column + width) * scale)

    def __getitem__(self, sample):
        image = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
        image[1] = 40 + self.samples[sample][0]
        image[2] = torch.arange(SIDE, dtype=torch.uint8) * 5
        for category, row, column, height, width in self.objects[self.samples[sample][0]]:
            scale = SIDE // CELLS
            image[0, row * scale : (row + height) * scale, column * scale : (column + width) * scale] = 16 * (
                category + 1
            )
        spectrogram = self.front_end.spectrogram(self.waveform(sample))[None]
        return {"image": image, "spectrogram": spectrogram, "index": sample}

    def waveform(self, sample):
        image, k = self.samples[sample]
        return np.full(self.front_end.samples, (self.objects[image][k][0] + 1) / 16, np.float32)

    def ground_truth(self, sample):
        truth = np.zeros((SIDE, SIDE), np.float32)
        truth[self.block(sample)] = 1
        return truth

    def mask(self, sample):
        if not self.masks:
            return None
        mask = self.ground_truth(sample) > 0
        mask[:, ::2] = False  # every other column only
        return mask


class FakeLocalizer(torch.nn.Module):
    """hears=False: the map shows all objects. alarm: added to the first cell under silence or noise."""

    def __init__(self, hears=True, gain=0.9, alarm=0.0):
        super().__init__()
        self.hears, self.gain, self.alarm = hears, gain, alarm
        self.dropout = torch.nn.Dropout(0.5)

    def normalize_images(self, images):
        assert images.dtype == torch.uint8
        return images.float()

    def normalize_spectrograms(self, spectrograms):
        assert spectrograms.dtype == torch.float32 and spectrograms.shape[1:] == (1, 2, 1)
        return spectrograms

    def visual_features(self, images):
        assert not torch.is_grad_enabled() and not self.training and not self.dropout.training
        return {"visual": images[:, 0, 2::4, 2::4] / 16}  # category + 1, or 0

    def audio_features(self, spectrograms):
        mean, deviation = spectrograms[:, 0, 0, 0], spectrograms[:, 0, 1, 0]
        return {"audio": torch.where((deviation > 1e-3) | (mean == 0), torch.full_like(mean, -1), (16 * mean).round())}

    def maps(self, visual, audio):
        cells, heard = visual["visual"], audio["audio"][:, None, None]
        seen = (cells == heard) if self.hears else (cells > 0)
        maps = self.gain * seen.float()
        maps[:, 0, 0] += self.alarm * (audio["audio"] < 0)
        return maps + 0.01 * cells / 16

    def retrieval(self, visual, audio, similarity="auto"):
        cells = visual["visual"].flatten(1)[:, None]
        return (cells == audio["audio"][None, :, None]).float().sum(-1) + 0 * cells.sum(-1)
