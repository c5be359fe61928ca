"""Peak memory of one call, beyond what was in use before it and the tensors that it returns (used by `ssl_fast.bench`)."""

import ctypes
import gc
import multiprocessing
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def _tensor_bytes(tensors: object) -> int:
    storages = [x.untyped_storage() for x in tensors if isinstance(x, Tensor)] if isinstance(tensors, tuple) else []
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def peak_cuda(job: Callable[[], object]) -> int:
    """Bytes of torch's CUDA allocator at the peak of job(), beyond what was there before and the tensors it returns."""
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
    """Bytes of resident memory at the peak of job(), beyond what was there before and the tensors it returns. Linux.

    Where the kernel does not let the high-water mark be reset (`reset`), resident memory is sampled every half millisecond.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc: hands free heap back, so that it cannot be used unseen
    if trim is not None:
        trim(0)
    before, peaks, done, sampler = _status_bytes("VmRSS"), [], threading.Event(), None
    try:
        Path(reset).write_text("5")
    except OSError:
        def sample():
            while not done.wait(0.0005):
                peaks.append(_status_bytes("VmRSS"))
        sampler = threading.Thread(target=sample)
        sampler.start()
    try:
        result = job()
    finally:
        done.set()
        if sampler:
            sampler.join()
    peaks.append(_status_bytes("VmRSS" if sampler else "VmHWM"))
    return max(0, max(peaks) - before - _tensor_bytes(result))


def _send(sender, function, arguments):
    sender.send(function(*arguments))


def in_fresh_process(function: Callable, *arguments):
    """function(*arguments) in a process that has run nothing yet, or None if it died (the reason is on stderr).

    A fork server that has imported torch but used none of it: cheap to fork, and no thread pool is copied.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        print(f"ssl-fast bench: peak memory unknown, its process ended with code {process.exitcode}", file=sys.stderr)
        return None
    finally:
        process.join()
