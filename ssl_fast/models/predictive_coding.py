"""SSPL's predictive coding module, which aligns a map of visual features with one vector of sound."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 3  # of representations: a quarter of the map's size, half of it, the map's own


class PredictiveCoding(nn.Module):
    """PCM of SSPL (Song et al., CVPR 2022): visual (B, C, h, w), h and w >= 4, audio (B, D) -> visual (B, C, h, w).

    Levels l = 1 .. 3, r_3 of the map's size. A pass down predicts each level from the one above, and the sound from
    r_1; a pass up corrects each level by the error of the prediction of the one below. The first pass down starts from
    the map, r_l = p_l; then both are repeated `cycles` times:

        down   r_3 <- g((1 - b_3) r_3 + b_3 visual);      p_l = P_l(r_l+1),   r_l <- g(N((1 - b_l) r_l + b_l p_l))
        up     e_0 = audio - mean over cells of g(P_0(r_1));    r_l <- g(N(r_l + a_l E_l(e_l-1))),   e_l = r_l - p_l

    g: GELU. N: batch norm, another one in each cycle. P_l: 3x3 convolution, halved by maxima; P_0: 1x1 convolution.
    E_l: error resized to level l, then a convolution. a_l (at first 1), b_l (.5): rates of each channel, learned, cut
    off at 0. Result: a 1x1 convolution of r_3.
    The released program has maps of 14 x 14 cells only, and a transposed convolution from level 1 to 2.
    """

    def __init__(self, channels: int, audio_channels: int, cycles: int = 4):
        super().__init__()
        if cycles < 0:
            raise ValueError(f"cycles: expected >= 0, got {cycles}")

        def norms(levels: int) -> nn.ModuleList:
            return nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels))

        self.predict_audio = nn.Conv2d(channels, audio_channels, 1)
        self.predict = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(LEVELS - 1))
        self.correct = nn.ModuleList(
            [nn.Conv2d(audio_channels, channels, 1, bias=False)]
            + [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(LEVELS - 1)]
        )
        self.down_norms = nn.ModuleList(norms(LEVELS - 1) for _ in range(cycles + 1))
        self.up_norms = nn.ModuleList(norms(LEVELS) for _ in range(cycles + 1))
        self.down_rates = nn.Parameter(torch.full((LEVELS, channels, 1, 1), 0.5))
        self.up_rates = nn.Parameter(torch.ones(LEVELS, channels, 1, 1))
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        if min(visual.shape[2:]) < 4:
            raise ValueError(f"visual: expected maps of 4 x 4 cells or more, got {tuple(visual.shape)}")
        levels: list[Tensor] = [visual] * LEVELS
        for cycle, (down, up) in enumerate(zip(self.down_norms, self.up_norms)):
            predictions = self._down(levels, visual, down, first=cycle == 0)
            self._up(levels, predictions, audio, up)
        return self.out(levels[-1])

    def _down(self, levels: list[Tensor], visual: Tensor, norms, first: bool) -> list[Tensor]:
        """Update `levels` from the highest to the lowest; the predictions of all but the highest."""
        rates, predictions = self.down_rates.relu(), [visual] * (LEVELS - 1)
        if not first:
            levels[-1] = F.gelu(torch.lerp(levels[-1], visual, rates[-1]))
        for k in reversed(range(LEVELS - 1)):
            predictions[k] = F.max_pool2d(self.predict[k](levels[k + 1]), 2)
            mixed = predictions[k] if first else torch.lerp(levels[k], predictions[k], rates[k])
            levels[k] = F.gelu(norms[k](mixed))
            if first:
                predictions[k] = levels[k]
        return predictions

    def _up(self, levels: list[Tensor], predictions: list[Tensor], audio: Tensor, norms) -> None:
        """Update `levels` from the lowest to the highest."""
        rates = self.up_rates.relu()
        error = (audio - F.gelu(self.predict_audio(levels[0])).mean((2, 3)))[:, :, None, None]
        for k, level in enumerate(levels):
            resized = F.interpolate(error, level.shape[2:], mode="bilinear", align_corners=True)
            levels[k] = F.gelu(norms[k](level + rates[k] * self.correct[k](resized)))
            if k < LEVELS - 1:
                error = levels[k] - predictions[k]
