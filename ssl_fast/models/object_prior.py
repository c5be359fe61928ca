"""Object prior, the map of an image alone that EZ-VSL, SLAVC and SSL-Align mix with their maps."""

import os

import torch
from torch import Tensor

from .localizers import IMAGENET
from .resnet import ResNet18
from .storage import load_torchvision


class ObjectPrior:
    """Images uint8 (B, 3, H, W) -> (B, H / 32, W / 32): the mean over channels of the last features of an ImageNet
    ResNet-18, which are not negative (the IPOL note on SLAVC writes their sum, 512 times as much).

    path: torchvision's file of weights. device: where the net runs. CheckpointError names what is missing, damaged, or
    no such file.
    """

    def __init__(self, path: str | os.PathLike, device: str = "cpu"):
        with torch.device("meta"):  # to draw weights takes longer than to load them
            self.net = ResNet18().eval()
        load_torchvision(self.net, path)
        self.net.to(device)
        keys = ("image_mean", "image_std")
        self.mean, self.std = (torch.tensor(IMAGENET[key], device=device)[:, None, None] for key in keys)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, H, W) -> the last features (B, 512, H / 32, W / 32)."""
        return self.net((images.to(self.mean.device) / 255 - self.mean) / self.std)

    def __call__(self, images: Tensor) -> Tensor:
        return self.features(images).mean(1)
