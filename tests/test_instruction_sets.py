"""What runs where: each instruction set, threads, forked processes, and memory that is not the kernels' to touch."""

import ctypes
import itertools
import mmap
import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from op_checks import DTYPES, LAYOUTS, OPS, Shape, assert_accurate, dtypes, evaluate, extra_for, needs_compiled
from ssl_fast import ops
from ssl_fast.evaluation.map_metrics import Rule, Upsampling, counts
from ssl_fast.ops import SoftThreshold, checks, kernels
from ssl_fast.ops.row_loss import pooled_row_loss, product_row_loss

pytestmark = needs_compiled

SETS = checks.extension.instruction_sets() if checks.extension else []
every_op = pytest.mark.parametrize("name", OPS)


# ---- instruction sets ----


def test_the_best_set_is_in_use_and_the_baseline_is_there():
    assert SETS[0] == "baseline" and checks.extension.instruction_set() == SETS[-1]
    if "ATEN_CPU_CAPABILITY" in os.environ:
        pytest.skip("ATEN_CPU_CAPABILITY is set: torch tells of that, not of the processor")
    capability = torch.backends.cpu.get_cpu_capability()  # under emulation /proc/cpuinfo is that of the host
    assert ("avx2" in SETS) == (capability in ("AVX2", "AVX512")) and ("avx512" in SETS) == (capability == "AVX512")


@pytest.mark.grid
@every_op
@pytest.mark.parametrize("instruction_set", SETS)
@dtypes(*DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_error_of_each_instruction_set(name, instruction_set, dtype, layout, use_set):
    use_set(instruction_set)
    assert checks.extension.instruction_set() == instruction_set
    for shape in (Shape(3, 35, 70, 5, 7), Shape(2, 9, 33, 1, 1), Shape(2, 5, 3, 2, 2)):
        op = OPS[name]
        assert_accurate(op, op.features(shape, dtype, layout), extra_for(shape))


BFLOAT16_PRODUCTS = "avx512_bf16", "amx"  # sets that have only the kernels that multiply bfloat16


@pytest.mark.parametrize("instruction_set", SETS)
def test_the_set_that_runs(instruction_set, use_set):
    """Of every op and dtype, forward and backward: the set in use, or avx512 where it has no kernel of its own."""
    use_set(instruction_set)
    took, shape = checks.extension.take_last_instruction_set, Shape(2, 3, 5, 2, 2)
    other = "avx512" if instruction_set in BFLOAT16_PRODUCTS else instruction_set
    took()
    for name, dtype in itertools.product(OPS, DTYPES):
        products = dtype == torch.bfloat16 and name not in ("mean", "masked-mean", "cosine-map")
        features = [x.requires_grad_() for x in OPS[name].features(shape, dtype)]
        outputs = OPS[name].call(*features, extra_for(shape), "compiled")
        assert took() == (instruction_set if products else other), f"{name} of {dtype}, forward"
        sum(x.sum() for x in outputs).backward()
        expected = instruction_set if products and name != "max" else other
        assert took() == expected, f"{name} of {dtype}, backward"
    maps, truth = np.zeros((1, 2, 2), np.float32), np.ones((1, 4, 4), np.float32)
    counts([maps], truth, [Rule("top50")], 0.2, upsampling=[Upsampling()], backend="compiled")
    assert took() == other, "map metrics"
    assert took() is None, "nothing has run since"


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("cells", [1, 5, 6, 7, 13, 14, 15, 17])
def test_the_first_of_equal_cells_wins_in_each_instruction_set(instruction_set, cells, use_set):
    use_set(instruction_set)
    features = OPS["max"].features(Shape(3, 37, 19, 1, 1), torch.float32)
    visual = features[0].expand(-1, -1, 1, cells)
    gradient = evaluate(OPS["max"], [visual, features[1]], None).gradients[0]
    assert gradient[..., 0].any() and not gradient[..., 1:].any()


@pytest.mark.grid
@every_op
@pytest.mark.parametrize("instruction_set", SETS)
@dtypes(torch.float32, torch.bfloat16)
def test_same_bits_at_every_repeat(name, instruction_set, dtype, use_set, set_threads):
    use_set(instruction_set)
    op, shape = OPS[name], Shape(11, 70, 64, 5, 5)
    extra, features = extra_for(shape), op.features(shape, dtype)
    by_threads = {}
    for threads in (1, 2, 3):
        set_threads(threads)
        first = by_threads[threads] = evaluate(op, features, extra)
        for _ in range(20 if threads < 3 else 3):
            again = evaluate(op, features, extra)
            assert all(torch.equal(a, b) for a, b in zip(again.tensors(), first.tensors(), strict=True))
    for threads in (2, 3):
        outputs, gradients = (
            list(zip(getattr(by_threads[threads], part), getattr(by_threads[1], part), strict=True))
            for part in ("outputs", "gradients")
        )
        assert op.library_product or all(torch.equal(got, want) for got, want in outputs)
        for got, want in outputs + gradients:
            error = (got.double() - want.double()).norm() / want.double().norm()
            assert error < 4 * torch.finfo(got.dtype).eps, f"{threads} threads: {error}"


@pytest.mark.parametrize("instruction_set", SETS)
def test_every_float16_is_read_in_each_instruction_set(instruction_set, use_set):
    """As the first of two channels, of which the cosine with (1, 0) depends on each of its bits."""
    use_set(instruction_set)
    bits = np.arange(2**16, dtype=np.uint16)
    value = bits.view(np.float16).astype(np.float64)
    value[~np.isfinite(value)] = np.nan  # as inf / inf
    size = np.abs(np.where(np.isnan(value) | (value == 0), 1, value))
    other = np.clip(2 ** np.ceil(np.log2(size)), 2.0**-13, 2.0**15)  # shorter vectors would be zero vectors
    visual = torch.from_numpy(np.stack([bits.view(np.float16), other.astype(np.float16)]).reshape(1, 2, 256, 256))
    maps = ops.cosine_map(visual, torch.tensor([[1, 0]], dtype=torch.float16), backend="compiled")
    np.testing.assert_allclose(maps.numpy().ravel(), value / np.sqrt(value**2 + other**2), rtol=1e-6)


@pytest.mark.parametrize("instruction_set", SETS)
def test_floats_are_rounded_to_float16_in_each_instruction_set(instruction_set, use_set):
    """As gradients that arrive at cosines of orthogonal unit vectors, and leave unchanged but for rounding."""
    use_set(instruction_set)
    exact = np.append(np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32), np.float32(65536))
    ties = (exact[1:] + exact[:-1]) / 2  # the last is 65520: from there on, infinity
    below, above = (np.nextafter(ties, np.float32(edge)) for edge in (0, np.inf))
    others = np.array([1e-45, 1.1754942e-38, 1e-8, 65519.996, 65536, 1e5, 3.4028235e38, np.nan], dtype=np.float32)
    values = np.concatenate([exact, ties, below, above, others])
    values = np.concatenate([values, -values])
    visual = torch.zeros(1, 2, 1, len(values), dtype=torch.float16)
    visual[:, 0] = 1
    visual.requires_grad_()
    maps = ops.cosine_map(visual, torch.tensor([[0, 1]], dtype=torch.float16), backend="compiled")
    maps.backward(torch.from_numpy(values).view_as(maps))
    got = visual.grad[0, 1, 0].numpy()
    with np.errstate(over="ignore", under="ignore"):
        want = values.astype(np.float16)
    np.testing.assert_array_equal(got, want)  # NaN where NaN is wanted
    signed = np.abs(values) > 0
    np.testing.assert_array_equal(np.signbit(got[signed]), np.signbit(want[signed]))


def test_unknown_set(use_set):
    before = checks.extension.instruction_set()
    with pytest.raises(ValueError, match="instruction set 'avx1024' is not built or not supported by this processor"):
        use_set("avx1024")
    assert checks.extension.instruction_set() == before


@pytest.mark.parametrize("name", [name for name in OPS if "mean" not in name and name != "cosine-map"])
def test_set_changed_between_forward_and_backward(name, use_set):
    if len(SETS) < 2:
        pytest.skip(f"this processor has one instruction set only: {SETS}")
    op, shape = OPS[name], Shape(3, 5, 8, 2, 2)
    features = [x.requires_grad_() for x in op.features(shape, torch.float32)]
    outputs = op.call(*features, extra_for(shape), "compiled")
    use_set(SETS[0])
    with pytest.raises(RuntimeError, match="instruction set was changed between the forward and the backward pass"):
        sum(x.sum() for x in outputs).backward()


# ---- threads ----

COUNT_THREADS = """
import os, sys, torch
from ssl_fast import ops
ops.kernels.SERIAL_FLOPS = 0  # else small calls use one thread
count = lambda: len(os.listdir("/proc/self/task"))
threads = int(sys.argv[1])
torch.set_num_threads(threads)
visual, audio = torch.ones(8, 4, 1, 3), torch.ones(5, 4)
before = count()
ops.pooled_similarity(visual, audio, ops.Max(), backend="compiled")
first = count()
ops.product_log_scores(visual, visual, audio, audio, tau=1.0, backend="compiled")
print(first - before, count() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
@pytest.mark.parametrize("threads", [1, 3])
def test_number_of_threads(threads):
    command = [sys.executable, "-c", COUNT_THREADS, str(threads)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == [str(threads - 1)] * 2, run.stdout + run.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="loaded libraries are listed in /proc")
def test_one_pool_of_threads():
    """Two OpenMP runtimes in a process would have a pool each."""
    script = """
        import torch
        from ssl_fast import ops
        ops.pooled_similarity(torch.randn(3, 5, 2, 2), torch.randn(8, 5), ops.Max(), backend="compiled")
        torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        print(open("/proc/self/maps").read())
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    runtimes = {x for x in run.stdout.split() if Path(x).name.startswith(("libgomp", "libomp", "libiomp"))}
    assert len(runtimes) == 1, runtimes


# ---- fork ----

FORKED = Shape(4, 35, 33, 3, 5)


def every_result(names=tuple(OPS), seed=0):
    return {
        name: evaluate(OPS[name], OPS[name].features(FORKED, torch.float32, seed=seed), extra_for(FORKED)).tensors()
        for name in names
    }


class Scores(torch.utils.data.Dataset):
    """Each item calls every op, forward and backward."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return every_result(seed=index)


def test_data_loader_workers_after_use_in_the_parent(set_threads):
    set_threads(2)
    want = [Scores()[i] for i in range(4)]
    options = {"num_workers": 2, "multiprocessing_context": "fork", "timeout": 60}
    loader = torch.utils.data.DataLoader(Scores(), batch_size=None, **options)
    for got, expected in zip(loader, want, strict=True):
        for name in OPS:
            for a, b in zip(got[name], expected[name], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    again = Scores()[0]  # the parent goes on
    assert all(torch.equal(a, b) for name in OPS for a, b in zip(again[name], want[0][name], strict=True))


def _in_child(connection):
    connection.send({name: [x.numpy() for x in result] for name, result in every_result().items()})


def test_forked_process(set_threads):
    """A DataLoader tells its workers to use one thread; a process forked by hand does not. Threads were not forked: the
    kernels, and torch's own products, would wait for them."""
    set_threads(2)
    torch.ones(1000, 1000) @ torch.ones(1000, 1000)  # starts the threads
    want = every_result()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(sender,))
    process.start()
    finished = receiver.poll(60)
    if not finished:
        process.kill()
    assert finished, "the forked process hangs"
    got = receiver.recv()
    process.join()
    assert torch.get_num_threads() == 2
    for name, expected in want.items():
        for a, b in zip(got[name], expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-5, atol=1e-6)


# ---- memory of others ----


class FencedPages:
    """Memory that ends, or begins, at a page that no one may touch."""

    def __init__(self):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.libc, self.kept = libc, []

    def copy(self, x, at_end):
        page, size = mmap.PAGESIZE, x.numel() * x.element_size()
        pages = -(-size // page) * page
        protection, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        start = self.libc.mmap(None, pages + 2 * page, protection, kind, -1, 0)
        for fence in (start, start + page + pages):
            assert self.libc.mprotect(fence, page, 0) == 0
        first = start + page + (pages - size if at_end else 0)
        buffer = (ctypes.c_char * size).from_address(first)
        self.kept.append(buffer)
        flat = torch.frombuffer(buffer, dtype=x.dtype)
        last = x.dim() == 4 and not x.is_contiguous()
        view = flat.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2) if last else flat.view(x.shape)
        return view.copy_(x)


def row_losses(features, extra):
    """Of two spaces of features: the loss with a background of the first, those of the product, and their gradients."""
    leaves, found = [x.detach().requires_grad_() for x in features], []
    pooled = pooled_row_loss(*leaves[::2], SoftThreshold(), extra.positives, 0.1, 0.0, (0.4, 0.03))
    found += [pooled.detach(), *torch.autograd.grad(pooled, leaves[::2])]
    for reduce in ("sum", "max"):
        product = product_row_loss(*leaves, extra.positives, tau=0.1, reduce=reduce)
        found += [product.detach(), *torch.autograd.grad(product, leaves)]
    return found


def run_fenced(instruction_set):
    """All ops on fenced memory, with workspaces that start full of huge numbers and outputs that start as NaN."""
    checks.extension.use_instruction_set(instruction_set)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)
    kernels.SERIAL_FLOPS = 0
    fences = FencedPages()
    shapes = Shape(2, 5, 3, 1, 3), Shape(3, 33, 35, 3, 5), Shape(1, 1, 1, 1, 1), Shape(2, 70, 66, 4, 5)
    types = torch.float32, torch.bfloat16, torch.float64
    for case in itertools.product(OPS, shapes, types, ("contiguous", "channels-last")):
        name, shape, dtype, layout = case
        features = OPS[name].features(shape, dtype, layout)
        want = evaluate(OPS[name], features, extra_for(shape)).tensors()
        for at_end in (True, False):
            fenced = [fences.copy(x, at_end) for x in features]
            got = evaluate(OPS[name], fenced, extra_for(shape)).tensors()
            assert all(x.isfinite().all() and torch.equal(x, y) for x, y in zip(got, want, strict=True)), case
    for case in itertools.product(shapes, types, ("contiguous", "channels-last")):
        features, extra = OPS["product-sum-audio"].features(*case), extra_for(case[0])
        want = row_losses(features, extra)
        for at_end in (True, False):
            got = row_losses([fences.copy(x, at_end) for x in features], extra)
            assert all(x.isfinite().all() and torch.equal(x, y) for x, y in zip(got, want, strict=True)), case
    print("inside the fences")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are fenced by Linux's mprotect")
@pytest.mark.parametrize("instruction_set", SETS)
def test_kernels_stay_inside_their_memory(instruction_set):
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += f"import test_instruction_sets\ntest_instruction_sets.run_fenced({instruction_set!r})"
    environment = {**os.environ, "MALLOC_PERTURB_": "1"}  # glibc: fresh memory is filled with 0xfe
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, f"exit code {run.returncode}\n{run.stdout}{run.stderr}"
    assert "inside the fences" in run.stdout


def test_layouts_cover_unaligned_memory():
    """Of the layouts in which errors are measured, one is dense and aligned to its own elements only."""
    x = LAYOUTS["offset"](torch.ones(4, 3, 2, 2))
    assert x.is_contiguous() and x.data_ptr() % 8 == 4
