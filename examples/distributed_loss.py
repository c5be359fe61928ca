"""A loss over several processes: value and gradients are those of one process on the joined batch.

torchrun --nproc-per-node 2 examples/distributed_loss.py
"""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ssl_fast import losses


class Nets(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.see, self.hear = torch.nn.Conv2d(3, 64, 16, 16), torch.nn.Linear(40, 64)

    def forward(self, images, sounds):
        return self.see(images), self.hear(sounds)


def main() -> None:
    dist.init_process_group("gloo")  # "nccl" on GPUs
    torch.manual_seed(0)
    nets, rows = DistributedDataParallel(Nets()), slice(dist.get_rank(), None, dist.get_world_size())
    images, sounds = torch.rand(16, 3, 112, 112), torch.randn(16, 40)  # the batch, of which each process takes its rows
    loss = losses.lvs(*nets(images[rows], sounds[rows]), group=dist.group.WORLD)  # negatives: all 16
    loss.backward()
    alone = losses.lvs(*nets.module(images, sounds))
    gradient = nets.module.see.weight.grad.norm()
    if dist.get_rank() == 0:
        print(f"loss {loss.item():.5f}, of one process {alone.item():.5f}; gradient {gradient.item():.5f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
