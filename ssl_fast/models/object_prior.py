"""Where there are objects at all: the prior that EZ-VSL, SLAVC and SSL-Align mix with their maps."""

import os

import torch
from torch import Tensor

from .checkpoints import load_torchvision
from .localizers import IMAGENET
from .resnet import ResNet18


class ObjectPrior:
    """Images uint8 (B, 3, H, W) -> (B, H / 32, W / 32): the mean over channels of the last features of an ImageNet
    ResNet-18, which are not negative (paper 002 writes their sum, 512 times as much).

    path: torchvision's file of weights. CheckpointError names what is missing, damaged, or no such file.
    """

    def __init__(self, path: str | os.PathLike):
        self.net = ResNet18().eval()
        load_torchvision(self.net, path)
        self.mean, self.std = (torch.tensor(IMAGENET[key])[:, None, None] for key in ("image_mean", "image_std"))

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.net((images.cpu() / 255 - self.mean) / self.std).mean(1)
