"""Training steps: of two equal nets one learns by a loss of this package, the other by the terms of a released program.

These are written here with the maps of all pairs, as those programs have them. After steps of Adam weights are equal.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast import losses

BATCH, CHANNELS, STEPS = 5, 8, 3
Y = torch.arange(BATCH)


class Net(nn.Module):
    """Features of non-negative cosines (LVS and its relatives end in a ReLU), or of any sign; two spaces for SLAVC."""

    def __init__(self, nonnegative: bool, spaces: int):
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.ModuleList(nn.Conv2d(3, CHANNELS, 1, dtype=torch.float64) for _ in range(spaces))
        self.audio = nn.ModuleList(nn.Linear(6, CHANNELS, dtype=torch.float64) for _ in range(spaces))
        self.project = nn.ModuleList(nn.Linear(CHANNELS, 4, dtype=torch.float64) for _ in range(2))
        self.end = F.relu if nonnegative else nn.Identity()

    def forward(self, images: Tensor, sounds: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [self.end(net(images)) for net in self.visual], [self.end(net(sounds)) for net in self.audio]


def maps(visual: Tensor, audio: Tensor) -> Tensor:
    """(N, M, cells)"""
    return torch.einsum("ncp,mc->nmp", F.normalize(visual.flatten(2), dim=1), F.normalize(audio, dim=1))


def lvs_logits(visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    c = maps(visual, audio)
    weight = torch.sigmoid((c - 0.65) / 0.03)
    scores = (weight * c).sum(-1) / weight.sum(-1)
    own = c[Y, Y]
    background = 1 - torch.sigmoid((own - 0.4) / 0.03)
    hard = (background * own).sum(-1) / background.sum(-1)
    return torch.cat([scores.diagonal()[:, None], scores * (1 - 100 * torch.eye(BATCH)), hard[:, None]], 1) / 0.07, own


def lvs(net, momentum, images, sounds):
    (visual,), (audio,) = net(images, sounds)
    return F.cross_entropy(lvs_logits(visual, audio)[0], torch.zeros_like(Y))


def turned(x: Tensor) -> Tensor:
    return x.flip(-1)


def ssl_tie(net, momentum, images, sounds):
    (visual,), (audio,) = net(images, sounds)
    (other,), _ = net(turned(images) + 0.1, sounds)
    (first, own), (second, own_other) = lvs_logits(visual, audio), lvs_logits(other, audio)
    target, size = torch.zeros_like(Y), (BATCH, 1, *visual.shape[2:])
    contrast = F.cross_entropy(first, target) + F.cross_entropy(second, target)
    return contrast / 2 + F.mse_loss(own_other.view(size), turned(own.view(size)))


def ez_vsl_logits(visual: Tensor, audio: Tensor) -> Tensor:
    return maps(visual, audio).amax(-1) / 0.03


def ez_vsl(net, momentum, images, sounds):
    (visual,), (audio,) = net(images, sounds)
    logits = ez_vsl_logits(visual, audio)
    return F.cross_entropy(logits, Y) + F.cross_entropy(logits.t(), Y)


def fnac(net, momentum, images, sounds):
    (visual,), (audio,) = net(images, sounds)
    logits, cells, sound = (
        ez_vsl_logits(visual, audio),
        F.normalize(visual.flatten(2), dim=1),
        F.normalize(audio, dim=1),
    )
    own = maps(visual, audio)[Y, Y]
    low, high = own.amin(1, keepdim=True), own.amax(1, keepdim=True)
    front = (cells * ((own - low) / (high - low + 1e-5) > 0.6)[:, None]).mean(2)
    rows = lambda x: (x @ x.t() / 0.03).softmax(1)  # noqa: E731
    every, mixed = logits.softmax(1), cells.mean(2)
    apart = [(rows(sound), every), (rows(sound), rows(front)), (rows(mixed), every)]
    nce = F.cross_entropy(logits, Y) + F.cross_entropy(logits.t(), Y)
    return nce + 100 * sum((a - b).abs().mean() for a, b in apart)


def slavc_logits(visual: list[Tensor], audio: list[Tensor]) -> Tensor:
    loc, avc = (maps(visual[k], audio[k]) / 0.03 for k in (0, 1))
    return (avc.softmax(1) * loc.softmax(2)).sum(2).log()


def slavc(net, momentum, images, sounds):
    (visual, audio), (slow_visual, slow_audio) = net(images, sounds), momentum(images, sounds)
    return F.cross_entropy(slavc_logits(visual, slow_audio), Y) + F.cross_entropy(slavc_logits(slow_visual, audio), Y)


def margin_nce(net, momentum, images, sounds):
    (visual,), (audio,) = net(images, sounds)
    c = maps(visual, audio)
    weight = torch.sigmoid((c - 0.65) / 0.03)
    return F.cross_entropy(((weight * c).sum(-1) / weight.sum(-1) + 0.2 * torch.eye(BATCH)) / 0.07, Y)


def ssl_align(net, momentum, images, sounds):
    views = [net(images, sounds), net(turned(images) + 0.1, sounds * 0.9)]
    total = torch.zeros((), dtype=torch.float64)
    for (visual,), _ in views:
        for _, (audio,) in views:
            x = F.normalize(net.project[0](visual.mean((2, 3))), dim=1)
            y = F.normalize(net.project[1](audio), dim=1)
            total = (
                total + F.cross_entropy(maps(visual, audio).mean(-1) / 0.07, Y) + F.cross_entropy(x @ y.t() / 0.07, Y)
            )
    return total


def ours_ssl_align(net, momentum, images, sounds):
    views = [net(images, sounds), net(turned(images) + 0.1, sounds * 0.9)]
    return losses.ssl_align([v for (v,), _ in views], [a for _, (a,) in views], *net.project)


def ours_slavc(net, momentum, images, sounds):
    (visual, audio), slow = net(images, sounds), momentum(images, sounds)
    return losses.slavc(*visual, *audio, momentum=[x.detach() for one in slow for x in one])


def ours_ssl_tie(net, momentum, images, sounds):
    (visual,), (audio,) = net(images, sounds)
    (other,), _ = net(turned(images) + 0.1, sounds)
    return losses.ssl_tie(visual, audio, other, turned, diagonal="released")


def pair(loss, **options):
    def call(net, momentum, images, sounds):
        (visual,), (audio,) = net(images, sounds)
        return loss(visual, audio, **options)

    return call


PROGRAMS = {
    "lvs": (lvs, pair(losses.lvs, diagonal="released"), True),
    "ez_vsl": (ez_vsl, pair(losses.ez_vsl), False),
    "slavc": (slavc, ours_slavc, False),
    "fnac": (fnac, pair(losses.fnac), False),
    "ssl_tie": (ssl_tie, ours_ssl_tie, True),
    "ssl_align": (ssl_align, ours_ssl_align, True),
    "margin_nce": (margin_nce, pair(losses.margin_nce), False),
}


def train(loss, nonnegative: bool, spaces: int) -> list[Tensor]:
    """Weights after some steps of Adam; SLAVC's momentum net follows at .9."""
    net = Net(nonnegative, spaces)
    momentum, optimizer = copy.deepcopy(net).requires_grad_(False), torch.optim.Adam(net.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.randn(BATCH, 3, 4, 5, generator=generator, dtype=torch.float64)
        sounds = torch.randn(BATCH, 6, generator=generator, dtype=torch.float64)
        for slow, fast in zip(momentum.parameters(), net.parameters(), strict=True):
            slow.lerp_(fast.detach(), 0.1)
        optimizer.zero_grad()
        loss(net, momentum, images, sounds).backward()
        optimizer.step()
    return [parameter.detach() for parameter in net.parameters()]


@pytest.mark.parametrize("name", PROGRAMS)
def test_steps_end_in_the_same_weights(name):
    program, ours, nonnegative = PROGRAMS[name]
    start = list(Net(nonnegative, 2 if name == "slavc" else 1).parameters())
    expected, found = (train(loss, nonnegative, 2 if name == "slavc" else 1) for loss in (program, ours))
    assert max((a - b).abs().max().item() for a, b in zip(expected, start)) > 1e-2  # they moved
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
