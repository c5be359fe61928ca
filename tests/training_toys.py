"""A sample set without files for tests of training: random images, spectrograms that go with them."""

import torch

from ssl_fast.data.audio import FRONT_ENDS


class ToySet(torch.utils.data.Dataset):
    """`samples` pairs of `size` pixels; the category (of 4) tints the image and raises a band of the spectrogram."""

    has_ground_truth = False
    front_end = FRONT_ENDS["scenes"]

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
