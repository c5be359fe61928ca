"""Time and peak memory of calls, for benchmarks."""

import contextlib
import ctypes
import gc
import multiprocessing
import resource
import signal
import statistics
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..ops import kernels

LATE_IMPORTS = ["torch._dynamo"]  # by the first backward pass through a custom op


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """Inside, memory that a CPU does not have is a torch.OutOfMemoryError too: torch and the kernels raise others."""
    try:
        yield
    except MemoryError as error:
        raise torch.OutOfMemoryError("no memory for the workspace of a kernel") from error
    except RuntimeError as error:
        if "DefaultCPUAllocator: can't allocate memory" not in str(error):
            raise
        raise torch.OutOfMemoryError(str(error).splitlines()[0]) from error


class Stopwatch:
    """Seconds of wall time and of CPU time (None on CUDA) that one call of `job` takes."""

    def __init__(self, device: str, flush_l2: bool = False):
        self.cuda = device == "cuda"
        size = 2 * torch.cuda.get_device_properties(device).L2_cache_size if self.cuda and flush_l2 else 0
        self.flush = torch.empty(size, dtype=torch.uint8, device=device) if size else None

    def __call__(self, job: Callable[[], object]) -> tuple[float, float | None]:
        if not self.cuda:
            wall, cpu = time.perf_counter(), time.process_time()
            result = job()  # noqa: F841  named, so that freeing it is not timed
            return time.perf_counter() - wall, time.process_time() - cpu
        if self.flush is not None:
            self.flush.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        job()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1000, None


def time_rounds(jobs: dict[str, Callable], stopwatch: Stopwatch, rounds: int, least_seconds: float) -> dict[str, tuple]:
    """name -> (wall seconds, CPU seconds) by round; jobs take turns. Short jobs get up to ten times `rounds` rounds.

    Each timed call follows one that is not, of the same job, as in a loop that repeats it. Otherwise memory that the
    kernel had back from the job before is a part of its time: where a hypervisor reclaims the free memory of a virtual
    machine, a huge page that was free for seconds takes milliseconds to come back.
    """
    names, samples = list(jobs), {name: [] for name in jobs}
    for name in names * 2:
        stopwatch(jobs[name])
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + least_seconds
        for k in range(10 * rounds):
            if k >= rounds and time.perf_counter() > end:
                break
            turn = k % len(names)
            for name in names[turn:] + names[:turn]:
                stopwatch(jobs[name])
                samples[name].append(stopwatch(jobs[name]))
    finally:
        gc.enable()
    return {name: tuple(zip(*sample)) for name, sample in samples.items()}


def is_kernel(name: str) -> bool:
    """Whether a function of the compiled module is a kernel that ops call."""
    return name.endswith(("_forward", "_backward", "_row_loss", "cross_entropy"))


def _once(job: Callable[[], object], inside: list[float]) -> float:
    inside[0], start = 0.0, time.perf_counter()
    result = job()  # noqa: F841  named, so that freeing it is not timed
    return time.perf_counter() - start - inside[0]


def seconds_outside(job: Callable[[], object], calls: int) -> list[float]:
    """Wall seconds of each call of job() that are not spent in the CPU kernels."""
    module, inside = kernels.extension, [0.0]

    def timed(kernel):
        def call(*arguments, **more):
            start = time.perf_counter()
            kernel(*arguments, **more)
            inside[0] += time.perf_counter() - start

        return call

    copy = types.ModuleType("timed")  # whose attributes are found as fast as those of the module
    for name, found in vars(module).items():
        setattr(copy, name, timed(found) if is_kernel(name) else found)
    kernels.extension = copy
    try:
        job()  # the copy is new to what the package remembers of a module
        return [_once(job, inside) for _ in range(calls)]
    finally:
        kernels.extension = module


def page_faults(job: Callable[[], object], calls: int) -> list[tuple[int, float]]:
    """Of each call of job(), after one that does not count: first touches of fresh pages by all threads, and seconds of
    their CPU time in the operating system, which fills pages with zeros."""
    found = []
    job()
    for _ in range(calls):
        before = resource.getrusage(resource.RUSAGE_SELF)
        result = job()
        after = resource.getrusage(resource.RUSAGE_SELF)
        found.append((after.ru_minflt - before.ru_minflt, after.ru_stime - before.ru_stime))
        del result  # not before: freeing it does not count
    return found


def ratio(numerator: tuple, denominator: tuple) -> float | None:
    """Median of the ratios within rounds; None of what has no such time."""
    if numerator[0] is None:
        return None
    return statistics.median(n / d for n, d in zip(numerator, denominator, strict=True))


def milliseconds(seconds: tuple) -> float | None:
    return None if seconds[0] is None else 1000 * statistics.median(seconds)


def quartiles(seconds: tuple) -> list[float] | None:
    """The first and the third, in milliseconds."""
    if seconds[0] is None:
        return None
    first, third = seconds * 2 if len(seconds) == 1 else statistics.quantiles(seconds, n=4, method="inclusive")[::2]
    return [1000 * first, 1000 * third]


def try_compiled(call: Callable, mode: str, job: Callable[[Callable], object]) -> Callable | str:
    """`call` through torch.compile, which job(the result) has compiled; or why it could not be."""
    compiled = torch.compile(call, fullgraph=True, dynamic=False, mode=mode)
    try:
        job(compiled)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # dynamo's and inductor's errors, a missing C++ compiler among them
        return f"failed: {error}".splitlines()[0][:200]
    return compiled


def _tensor_bytes(result: object) -> int:
    """Bytes of the tensors in a tuple, shared storage counted once; 0 for anything else."""
    storages = [x.untyped_storage() for x in result if isinstance(x, Tensor)] if isinstance(result, tuple) else []
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def peak_cuda(job: Callable[[], object]) -> int:
    """Bytes of torch's CUDA allocator at the peak of job(), minus those before it and of the tensors it returns."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = job()
    torch.cuda.synchronize()
    return max(0, torch.cuda.max_memory_allocated() - before - _tensor_bytes(result))


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status: expected a line {field}, got none")


def peak_resident(job: Callable[[], object], reset: str = "/proc/self/clear_refs") -> int:
    """Bytes of resident memory at the peak of job(), minus those before it and those of the tensors it returns. Linux.

    Where the high-water mark cannot be reset (by writing to `reset`), memory is sampled every half millisecond.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc: give free heap back, else the job would use it unseen
        trim(0)
    before, samples, done = _status_bytes("VmRSS"), [], threading.Event()

    def sample():
        while not done.wait(0.0005):
            samples.append(_status_bytes("VmRSS"))

    sampler = None
    try:
        Path(reset).write_text("5")
    except OSError:
        sampler = threading.Thread(target=sample)
        sampler.start()
    try:
        result = job()
    finally:
        done.set()
        if sampler:
            sampler.join()
    samples.append(_status_bytes("VmRSS" if sampler else "VmHWM"))
    return max(0, max(samples) - before - _tensor_bytes(result))


def _send(sender, function, arguments):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first ends this one
    sender.send(function(*arguments))


def in_fresh_process(function: Callable, *arguments):
    """function(*arguments) in a process that has run nothing yet, or None if that died (its last words are on stderr).

    Forked from a server that has imported what torch imports late but used none of it: quick, and without any threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LATE_IMPORTS, function.__module__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        print(f"peak memory unknown: its process ended with exit code {process.exitcode}", file=sys.stderr)
        return None
    except BaseException:  # as by Ctrl-C
        process.terminate()
        raise
    finally:
        process.join()
