"""A model of another package for `ssl-fast evaluate --model`: ImageBind, whose image patches are compared with sounds.

pip install git+https://github.com/facebookresearch/ImageBind    # its weights are downloaded on first use
cd examples && ssl-fast evaluate --data DIR --model imagebind_maps:maps --out results

It was trained with one vector of an image, its class token. Here its head takes the tokens of the 16 x 16 patches.
"""

import math
from functools import lru_cache

import torch
from torchaudio.functional import melscale_fbanks

MEAN, STD = torch.tensor([[0.4815, 0.4578, 0.4082], [0.2686, 0.2613, 0.2758]])[..., None, None]


@lru_cache
def model():
    from imagebind.models.imagebind_model import imagebind_huge

    return imagebind_huge(pretrained=True).eval()


def log_mel(spectrograms: torch.Tensor) -> torch.Tensor:
    """Spectrograms of the front end ssl_align, log(density + 1e-7) / 12, (B, 1, 257, T) -> Kaldi's log mel bank, which
    has a frame every 10 ms too, and Hann windows of 25 ms (sum of squares 150) and pre-emphasis: (B, 1, 128, T)."""
    emphasis = (1 - 0.97 * torch.exp(-1j * torch.linspace(0, math.pi, 257))).abs().square()
    power = ((12 * spectrograms).exp() - 1e-7).clamp_min(0) * 16000 / 2 * 150 * emphasis[:, None]
    return (melscale_fbanks(257, 20.0, 8000.0, 128, 16000).T @ power).clamp_min(1.2e-7).log()


def maps(images: torch.Tensor, spectrograms: torch.Tensor) -> torch.Tensor:
    """Images uint8 (B, 3, 224, 224) and spectrograms (B, 1, 257, T >= 204) -> maps (B, 16, 16), cosines."""
    net, mel = model(), (log_mel(spectrograms) + 4.268) / 9.138
    tokens = net.modality_preprocessors["vision"](vision=(images / 255 - MEAN) / STD)["trunk"]
    norm, _, project = net.modality_heads["vision"]  # _ selects the class token, the first
    patches = project(norm(net.modality_trunks["vision"](**tokens)[:, 1:]))
    parts = [net({"audio": part})["audio"] for part in (mel[..., :204], mel[..., -204:])]  # 2 s each, as in training
    return torch.cosine_similarity(patches, sum(parts)[:, None], dim=2).unflatten(1, (16, 16))
