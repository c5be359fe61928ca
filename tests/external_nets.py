"""Backbones of another package, for test_backbones.py: MODULE:NAME is external_nets:Eyes, ..."""

import torch
from torch import nn


class Eyes(nn.Module):
    """Images (B, 3, H, W) -> (B, 6, H / 8, W / 8)."""

    channels = 6
    image_size, image_mean, image_std = 48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 8, 8), nn.BatchNorm2d(6)
        self.register_buffer("seen", torch.tensor([True] * 5 + [False]))
        self.register_buffer("scale", torch.arange(1.0, 7.0), persistent=False)  # what no file of weights has

    def forward(self, x):
        return self.norm(self.conv(x)) * (self.seen * self.scale)[:, None, None]


class Tied(Eyes):
    """With weights of two names, and one of a dtype that numpy lacks."""

    def __init__(self):
        super().__init__()
        self.again = self.conv
        self.register_buffer("gain", torch.tensor(1.5, dtype=torch.bfloat16))


class Ears(nn.Module):
    """Spectrograms (B, 1, F, T) -> (B, 5, T), with a classifier that gets no gradient."""

    channels, spectrogram_mean, spectrogram_std = 5, -0.5, 0.25

    def __init__(self, bands: int = 128):
        super().__init__()
        self.bands, self.classifier = nn.Linear(bands, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.bands(x[:, 0].transpose(1, 2)).transpose(1, 2)


def one_vector():
    """Spectrograms (B, 1, 128, T) -> (B, 7)."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d((4, 1)), nn.Flatten(), nn.Linear(4, 7))
    net.channels = 7
    return net


def of_another_shape():
    net = Eyes()
    net.channels = 9
    return net


def without_channels():
    return nn.Conv2d(3, 6, 8, 8)


def failing():
    raise KeyError("no weights here")


def infinite():
    net = Eyes()
    net.register_buffer("mask", torch.full((2,), -torch.inf))
    return net


def unequal_cells():
    net = Eyes()
    net.image_size = 50
    return net
