"""Your own training loop: one call in place of the einsum over all pairs, its normalization and its cross-entropy.

python examples/own_training_loop.py [steps]
"""

import sys

import torch

from ssl_fast import losses, ops


def net(channels: int) -> torch.nn.Sequential:
    """(B, channels, H, W) -> features (B, 64, H / 16, W / 16); put your own nets in its place."""
    first, second = (torch.nn.Conv2d(*sizes, kernel_size=4, stride=4) for sizes in ((channels, 32), (32, 64)))
    return torch.nn.Sequential(first, torch.nn.ReLU(), second)


def main(steps: int = 100) -> None:
    torch.manual_seed(0)
    see, hear = net(3), net(1)
    optimizer = torch.optim.AdamW([*see.parameters(), *hear.parameters()], lr=1e-3)
    images, spectrograms = torch.rand(32, 3, 112, 112), torch.randn(32, 1, 128, 96)  # a batch of your loader
    for step in range(steps):
        visual, audio = see(images), hear(spectrograms).amax((2, 3))  # (B, C, h, w) and (B, C), not normalized
        loss = losses.ez_vsl(visual, audio, tau=0.07)  # or margin_nce, lvs, fnac, ...
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    maps = ops.cosine_map(visual, audio)  # (B, h, w): where each image makes its sound
    print(f"maps {tuple(maps.shape)}, last loss {loss.item():.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
