"""Several processes, as `torchrun --nproc-per-node K` starts them: joined batches, exact shards of a data set.

There is no launcher of our own: the process group is torch.distributed's, and nets are wrapped in its
DistributedDataParallel. Without a process group there is one process, and everything here works for it too.
"""

import contextlib
import os
import typing
import zlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous


def rank_and_world_size(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """The rank of this process in `group` (None: among all processes), and the number of processes."""
    return (dist.get_rank(group), dist.get_world_size(group)) if dist.is_initialized() else (0, 1)


def launched() -> tuple[int, int]:
    """The rank of this process among those that torchrun started, and their number; (0, 1) where it started none."""
    several = "TORCHELASTIC_RUN_ID" in os.environ
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if several else (0, 1)


@contextlib.contextmanager
def torchrun(device: str) -> Iterator[None]:
    """Inside, the processes that torchrun started are a group: gloo on the CPU, nccl on CUDA devices, one for each.

    Does nothing where torchrun started none. ValueError where there are fewer CUDA devices than processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if device == "cuda":
        if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
            raise ValueError(
                f"device cuda: expected one for each of {os.environ['LOCAL_WORLD_SIZE']} processes, "
                f"got {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, processes = next(rendezvous("env://"))
    # after a restart the store has the addresses of the processes before, which the new ones would connect to
    store = PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=processes)
    dist.barrier()
    try:
        yield
    except Exception:
        if device != "cuda":  # nccl would wait for processes that may wait for this one
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextlib.contextmanager
def together(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """What fails inside on some processes of `group` (None: all there are) fails on all of them, at the end: there a
    ValueError says what and where."""
    error = None
    try:
        yield
    except Exception as found:
        error = found
    failed = [(rank, text) for rank, text in enumerate(_gathered(error and str(error), group)) if text is not None]
    if error is not None:
        raise error
    if failed:
        raise ValueError("; ".join(f"process {rank}: {text}" for rank, text in failed))


def check_same(values: dict[str, typing.Any]) -> None:
    """ValueError on every process where one of the values (of JSON) is not the same on all; it says which, and where.
    Lasts as long as the slowest process takes to come here."""
    every = _gathered(values)
    differ = [name for name in values if any(one[name] != every[0][name] for one in every)]
    if differ:
        got = "; ".join(
            f"process {rank} has {', '.join(f'{name}={one[name]!r}' for name in differ)}"
            for rank, one in enumerate(every)
        )
        raise ValueError(f"expected the same run on all processes: {got}")


def _gathered(value: typing.Any, group: dist.ProcessGroup | None = None) -> list[typing.Any]:
    """The values of all processes of `group` (None: all there are), anything that can be pickled."""
    every = [value] * rank_and_world_size(group)[1]
    if dist.is_initialized():
        dist.all_gather_object(every, value, group=group)
    return every


def total(value: float, device: torch.device) -> float:
    """The sum of a number over all processes; `device` is where these compute."""
    if not dist.is_initialized():
        return value
    number = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(number)
    return number.item()


class _Sum(torch.autograd.Function):
    """The sum over processes. Its output is used by all of them, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor, group) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Sum.apply(grad, ctx.group), None


class JoinedBatch:
    """The rows of all processes of `group` as one batch, seen from one of them; None: this process alone.

    Rows of the batch are in the order of the processes. Every method is called by all processes alike, and so is its
    backward pass, which gives the gradient of the sum over processes of what they compute. Only sums and maxima cross
    between processes: same inputs, same bits. Where `group` is None, nothing does, and methods are what they say of
    the rows alone.

    images: (N, C, h, w), N >= 1 may differ from process to process; audios: (N, ...) each, by argument name.
    extra: (K, ...) each, by name: further rows, which are none of the batch; K >= 0 may differ from process to process.
    Raises ValueError, on every process and naming what each of them has, where a process has no image, another number
    of audios, or extra rows of several numbers, or where channels, tokens, dtypes or the need of gradients differ
    between processes.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        images: Tensor,
        extra: dict[str, Tensor] | None = None,
        /,
        **audios: Tensor,
    ):
        self.group, self.rows = group, images.shape[:1].numel()
        if group is None:
            return
        self.rank = dist.get_rank(group)
        if self.rank < 0:
            raise ValueError("group: expected one that this process belongs to, got one of others")
        extra = extra or {}
        features = {"images": images} | audios | extra
        rows = self.rows if all(len(x) == self.rows for x in audios.values()) else 0
        further = {len(x) for x in extra.values()} or {0}
        alike = repr(
            [
                # of images, whose maps stay where they are, only channels
                (name, x.dtype, x.dim(), x.shape[1:2] if x is images else x.shape[1:], x.requires_grad)
                for name, x in features.items()
            ]
        )
        numbers = [rows, further.pop() if len(further) == 1 else -1, zlib.crc32(alike.encode())]
        header = torch.tensor(numbers, device=images.device)
        headers = [torch.empty_like(header) for _ in range(dist.get_world_size(group))]
        dist.all_gather(headers, header, group=group)
        self.counts, self.extra_counts, kinds = zip(*(each.tolist() for each in headers))
        if 0 in self.counts or -1 in self.extra_counts or len(set(kinds)) > 1:
            own = ", ".join(
                f"{name} {tuple(x.shape)} {x.dtype}{' with gradient' * x.requires_grad}" for name, x in features.items()
            )
            every: list[typing.Any] = [None] * len(headers)
            dist.all_gather_object(every, own, group=group)
            got = "; ".join(f"on process {rank} {one}" for rank, one in enumerate(every))
            raise ValueError(
                "group: expected at least one image on every process, as many audios, of as many tokens, and the same "
                f"channels and dtypes everywhere, got {got}"
            )

    @property
    def first(self) -> int:
        """Index of the first own row in the batch."""
        return sum(self.counts[: self.rank])

    @property
    def size(self) -> int:
        """Number of rows of all processes."""
        return self.rows if self.group is None else sum(self.counts)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over processes of x, of one shape everywhere."""
        return x if self.group is None else _Sum.apply(x, self.group)

    def gather(self, x: Tensor, *, extra: bool = False) -> Tensor:
        """Own rows (N, ...) -> the rows of all processes (size, ...); small tensors only, never maps. With `extra`, of
        the extra rows."""
        if self.group is None:
            return x
        counts = self.extra_counts if extra else self.counts
        around = (0, 0) * (x.dim() - 1) + (sum(counts[: self.rank]), sum(counts[self.rank + 1 :]))
        # as a sum with zeros: sizes may differ without a thought, and the gradient comes back in full precision
        return self.sum(F.pad(x.to(torch.promote_types(x.dtype, torch.float32)), around)).to(x.dtype)

    def mean(self, x: Tensor) -> Tensor:
        """The mean over rows (N,) of all processes, a scalar."""
        return x.mean() if self.group is None else self.sum(x.sum()) / self.size

    def amax(self, x: Tensor) -> Tensor:
        """The maximum over the rows of all processes, without gradient: (N, M) -> (M,)."""
        highest = x.detach().amax(0)
        if self.group is not None:
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        return highest

    def logsumexp(self, x: Tensor) -> Tensor:
        """log of the sum of exp over the rows of all processes: (N, M) -> (M,). Each column has an entry above -inf."""
        if self.group is None:
            return x.logsumexp(0)
        highest = self.amax(x)
        return highest + self.sum((x - highest).exp().sum(0)).log()


def shard(samples: int, group: dist.ProcessGroup | None = None) -> range:
    """The indices of a data set of `samples` that this process works on: a sampler for a DataLoader.

    Shards are contiguous, in the order of the processes of `group` (None: all there are), and their sizes differ by one
    at most: put together they are range(samples), each sample once. (DistributedSampler repeats samples to fill the
    last round up, which changes the result of an evaluation.)
    """
    rank, processes = rank_and_world_size(group)
    return range(samples * rank // processes, samples * (rank + 1) // processes)


share = shard  # deprecated: its former name


def collect(results: Sequence, samples: int, group: dist.ProcessGroup | None = None) -> list:
    """One result for each index of `shard(samples)` -> one for each of range(samples), in order, on every process.

    Results are anything that can be pickled. Raises ValueError on every process where one has too few or too many.
    """
    own = len(shard(samples, group)), list(results)
    every = [own] * rank_and_world_size(group)[1]
    if dist.is_initialized():
        dist.all_gather_object(every, own, group=group)
    for rank, (expected, part) in enumerate(every):
        if len(part) != expected:
            raise ValueError(
                f"results: expected {expected} on process {rank}, one for each of its share of {samples} "
                f"samples, got {len(part)}"
            )
    return [result for _, part in every for result in part]
