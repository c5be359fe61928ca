"""Residual nets that end in a map of features: ResNet-18 in torchvision's layout, and a narrow net for small images."""

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn


def initialize(module: nn.Module) -> None:
    """The field's initialisation: convolutions kaiming-normal over fan-out, batch norm weight ~ N(1, 0.02), bias 0.
    None on the meta device, for weights that are to be loaded."""
    if next(module.parameters()).is_meta:
        return
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
            nn.init.zeros_(layer.bias)


def _check_input(x: Tensor, channels: int) -> None:
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"expected input (B, {channels}, height, width), got {tuple(x.shape)}")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the first convolution strides."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)).add_(shortcut), inplace=True)


class ResNet18(nn.Module):
    """ResNet-18 without pooling and classifier.

    (B, in_channels, H, W) -> (B, 512, H/stride, W/stride), sizes rounded up. ReLU output, so no feature is negative.
    Names of parameters and buffers are torchvision's (without `fc`). Stride 16 is the LVS family's variant, whose
    layer4 does not stride.
    """

    channels = 512
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, in_channels: int = 3, stride: int = 32):
        super().__init__()
        if stride not in (16, 32):
            raise ValueError(f"stride: expected 16 or 32, got {stride}")
        self.in_channels, self.stride = in_channels, stride
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths, strides = (64, 64, 128, 256, 512), (1, 2, 2, 2 if stride == 32 else 1)
        for k, step in enumerate(strides):
            blocks = BasicBlock(widths[k], widths[k + 1], step), BasicBlock(widths[k + 1], widths[k + 1], 1)
            self.add_module(f"layer{k + 1}", nn.Sequential(*blocks))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        _check_input(x, self.in_channels)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def columns(self, width: int) -> tuple[int, float, int]:
        """Number of output columns of an input so many columns wide, the input column (0, 1 ...) that the receptive
        field of the first is centred on, and how far apart these centres are."""
        return -(-width // self.stride), 0.0, self.stride

    def load_torchvision(self, state: Mapping[str, Tensor]) -> list[str]:
        """Load a torchvision ResNet-18 state dict; returns the keys that were left out, of which only the classifier's
        (fc.weight, fc.bias) are allowed. Any other extra or missing key, or wrong shape, raises RuntimeError."""
        ignored = [key for key in state if key in ("fc.weight", "fc.bias")]
        blank = self.conv1.weight.is_meta
        self.load_state_dict({key: value for key, value in state.items() if key not in ignored}, assign=blank)
        return ignored


class CentredBlock(nn.Module):
    """A residual block that strides by average pooling, so that cell k of the output is centred on its own pixels.
    stride: of rows and of columns. width: of its kernels, whose height is 3."""

    def __init__(self, channels_in: int, channels: int, stride: tuple[int, int], width: int):
        super().__init__()
        self.stride, kernel, padding = stride, (3, width), (1, width // 2)
        self.conv1 = nn.Conv2d(channels_in, channels, kernel, 1, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel, 1, padding, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if channels_in != channels:
            self.downsample = nn.Sequential(nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride != (1, 1):
            # nothing is padded; but otherwise torch.compile divides gradients of the last, incomplete windows wrongly
            x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)).add_(shortcut), inplace=True)


class SmallResNet(nn.Module):
    """A narrow residual net for small images and spectrograms: widths 16-32-64-128, one block a stage.

    (B, in_channels, H, W), H and W even -> (B, 8*width, H/s, W/s) with s = 4 * product(strides), sizes rounded up.
    over_time: columns are frames of a spectrogram, and only the first two layers stride along them; the kernels of the
    last two stages are one column wide. So output columns are 4 frames apart, and each sees the 40 around it.
    112 x 112 pixels and strides 1-2-2-1 give 7 x 7 cells. Kernels that stride have even sizes (6x6 stem, 2x2 pools), so
    every feature is centred on the pixels of its cell; an odd kernel on an even grid would shift all maps by half a
    pixel at each stage, up to half a cell in the end.
    """

    layer1: CentredBlock
    layer2: CentredBlock
    layer3: CentredBlock
    layer4: CentredBlock

    def __init__(
        self,
        in_channels: int = 3,
        strides: tuple[int, int, int, int] = (1, 2, 2, 1),
        width: int = 16,
        over_time: bool = False,
    ):
        super().__init__()
        if len(strides) != 4 or any(step not in (1, 2) for step in strides):
            raise ValueError(f"strides: expected four of 1 or 2, got {strides}")
        self.in_channels = in_channels
        self.column_stride = 4 if over_time else 4 * math.prod(strides)
        self.conv1 = nn.Conv2d(in_channels, width, 6, 2, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = (width, width, 2 * width, 4 * width, 8 * width)
        self.channels = widths[-1]
        for k, step in enumerate(strides):
            stride = (step, 1 if over_time else step)
            kernel = 1 if over_time and k >= 2 else 3
            self.add_module(f"layer{k + 1}", CentredBlock(widths[k], widths[k + 1], stride, kernel))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        _check_input(x, self.in_channels)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 2, 2, ceil_mode=True)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def columns(self, width: int) -> tuple[int, float, int]:
        """As `ResNet18.columns`."""
        return -(-(width // 2 * 2) // self.column_stride), (self.column_stride - 1) / 2, self.column_stride
