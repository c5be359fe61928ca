"""The CUDA kernels on a GPU: errors against the truth in numpy, repeats, streams, graphs, large offsets, memory; the
operands of PTX instructions."""

import ctypes
import shutil
import subprocess

import pytest
import torch

from op_checks import (
    DTYPES,
    LAYOUTS,
    OPS,
    SHAPES,
    Extra,
    Shape,
    assert_accurate,
    dtypes,
    evaluate,
    extra_for,
    relative_errors,
    truth_of,
    upstream,
)
from ptx_checks import DTYPES as MMA_DTYPES
from ptx_checks import check_ldmatrix, check_mma
from sanitize_emulation import EMULATION
from ssl_fast import ops
from ssl_fast.benchmarks.measure import peak_cuda
from ssl_fast.ops import checks, cuda_chunks
from ssl_fast.ops import kernels as launches

DEVICE = "cuda"

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not getattr(checks.extension, "cuda_architectures", ""), reason="built without CUDA"),
]

every_op = pytest.mark.parametrize("name", OPS)
PAIR_OPS = [name for name in OPS if name not in ("mean", "masked-mean", "cosine-map")]


def inputs(name, shape, dtype=torch.float32, layout="contiguous", device=DEVICE):
    op = OPS[name]
    features = [LAYOUTS[layout](x.to(device)) for x in op.features(shape, dtype)]
    return op, features, Extra(*(x.to(device) for x in extra_for(shape)))


@pytest.fixture(scope="module")
def ptx_wrappers(tmp_path_factory):
    """The library of ptx_wrappers.cu, for this GPU."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    path = tmp_path_factory.mktemp("ptx") / "libptx_wrappers.so"
    major, minor = torch.cuda.get_device_capability()
    options = ["-std=c++17", f"-arch=sm_{major}{minor}", "-shared", "-Xcompiler", "-fPIC"]
    subprocess.run([nvcc, *options, str(EMULATION / "ptx_wrappers.cu"), "-o", str(path)], check=True)
    return ctypes.CDLL(path)


def test_cuda_ldmatrix(ptx_wrappers):
    check_ldmatrix(ptx_wrappers, DEVICE)


@pytest.mark.parametrize("dtype", MMA_DTYPES)
def test_cuda_mma(dtype, ptx_wrappers):
    check_mma(ptx_wrappers, DEVICE, dtype)


@pytest.mark.cuda(devices=2)
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@every_op
@dtypes(torch.float32, torch.bfloat16)
def test_cuda_of_another_device_than_the_current_one(name, dtype):
    current, other = torch.cuda.current_device(), (torch.cuda.current_device() + 1) % 2
    op, features, extra = inputs(name, Shape(9, 9, 64, 7, 7), dtype, device=f"cuda:{other}")
    assert_accurate(op, features, extra)
    assert {x.device.index for x in evaluate(op, features, extra).tensors()} == {other}
    assert torch.cuda.current_device() == current


def test_cuda_device_is_asked_without_a_trace():
    device = torch.cuda.current_device()
    assert all(checks.extension.cuda_error(index) is None for index in range(torch.cuda.device_count()))
    assert checks.extension.cuda_error(torch.cuda.device_count())[0] == "cudaErrorInvalidDevice"
    assert torch.cuda.current_device() == device
    assert_accurate(*inputs("mean", SHAPES["2x3"]))


LARGE = {"many-tiles": Shape(9, 300, 96, 5, 9), "wide": Shape(3, 140, 72, 17, 31), "batch": Shape(64, 64, 512, 7, 7)}


# With one channel all cosines are 1 or -1 but for rounding, which so would choose the cell of a maximum.
@pytest.mark.grid
@pytest.mark.parametrize(
    "name, shape",
    [(name, shape) for shape in (*SHAPES, *LARGE) for name in OPS if (name, shape) != ("max", "one-channel")],
)
@dtypes(*DTYPES)
def test_cuda_errs_at_most_twice_the_reference(name, dtype, shape):
    assert_accurate(*inputs(name, (SHAPES | LARGE)[shape], dtype))


@pytest.mark.grid
@every_op
@dtypes(*DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuda_layouts(name, dtype, layout):
    assert_accurate(*inputs(name, Shape(5, 5, 35, 5, 9), dtype, layout))


@pytest.mark.grid
@pytest.mark.parametrize("name", PAIR_OPS)
@dtypes(*DTYPES)
def test_cuda_chunks(name, dtype, monkeypatch):
    monkeypatch.setattr(cuda_chunks, "WORKSPACE_BYTES", 100_000)
    assert_accurate(*inputs(name, Shape(19, 150, 20, 5, 9), dtype))


@pytest.mark.grid
@pytest.mark.parametrize("name", PAIR_OPS)
@dtypes(*DTYPES)
def test_cuda_of_features_that_are_rows_as_they_are(name, dtype, monkeypatch):
    monkeypatch.setattr(cuda_chunks, "WORKSPACE_BYTES", 100_000)
    assert_accurate(*inputs(name, Shape(19, 150, 64, 5, 9), dtype, "channels-last"))


@pytest.mark.parametrize("name", PAIR_OPS)
def test_cuda_tf32(name):
    op, features, extra = inputs(name, Shape(20, 30, 512, 7, 7))
    truth = truth_of(op, features, extra)
    torch.set_float32_matmul_precision("high")
    try:
        score, *_ = relative_errors(evaluate(op, features, extra), truth)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert 2**-20 < score < 2**-10


@pytest.mark.grid
@every_op
@dtypes(torch.float32, torch.bfloat16)
def test_cuda_of_zero_vectors_and_nan(name, dtype):
    op, features, extra = inputs(name, Shape(4, 4, 33, 3, 5), dtype)
    visual, audio = features[0], features[op.spaces]
    visual[0, :, 1, 2] = 0
    audio[2] = 0
    result = evaluate(op, features, extra)
    assert all(x.isfinite().all() for x in result.tensors())
    assert (result.gradients[0][0, :, 1, 2] == 0).all() and (result.gradients[op.spaces][2] == 0).all()
    visual[1, 3, 0, 0] = float("nan")
    hit = evaluate(op, features, extra).outputs[0].isnan().flatten(1).any(1)
    assert hit[1] == (name != "masked-mean" or extra.mask[1, 0, 0] >= 0) and not hit[[0, 2, 3]].any()


@pytest.mark.grid
@every_op
@dtypes(torch.float32, torch.bfloat16)
def test_cuda_gives_the_same_bits_a_thousand_times(name, dtype):
    op, features, extra = inputs(name, Shape(40, 40, 128, 7, 7), dtype)
    first = evaluate(op, features, extra).tensors()
    for _ in range(1000):
        again = evaluate(op, features, extra).tensors()
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@every_op
def test_cuda_runs_on_the_current_stream(name):
    """Inputs that a busy side stream has yet to write."""
    op, features, extra = inputs(name, Shape(30, 30, 64, 7, 7))
    want = evaluate(op, features, extra).tensors()
    late = [torch.zeros_like(x) for x in features]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        for x, value in zip(late, features, strict=True):
            x.copy_(value)
        got = evaluate(op, late, extra).tensors()
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# the check of the mask synchronises
@pytest.mark.parametrize("name", [name for name in OPS if name != "masked-mean"])
def test_cuda_graph(name):
    op, features, extra = inputs(name, Shape(20, 20, 64, 7, 7), torch.bfloat16)
    static = [torch.randn_like(x).requires_grad_() for x in features]

    def step():
        outputs = op.call(*static, extra, "compiled")
        return [*outputs, *torch.autograd.grad(outputs, static, grads)]

    grads = [x.to(DEVICE) for x in upstream(op.call(*static, extra, "compiled"))]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    with torch.no_grad():
        for x, value in zip(static, features, strict=True):
            x.copy_(value)
    graph.replay()
    want = step()
    assert all(torch.equal(a, b) for a, b in zip(results, want, strict=True))


@pytest.mark.parametrize("name", ["soft-threshold", "max", "product-sum-audio", "mean", "cosine-map"])
def test_cuda_compiled_with_reduced_overhead(name):
    op, features, extra = inputs(name, Shape(20, 20, 64, 7, 7), torch.bfloat16)
    want = evaluate(op, features, extra)
    torch._dynamo.reset()
    step = torch.compile(lambda *features: op.call(*features, extra, "auto"), fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        leaves = [x.detach().requires_grad_() for x in features]
        outputs = step(*leaves)
        gradients = torch.autograd.grad(outputs, leaves, upstream(outputs))
        for a, b in zip((*outputs, *gradients), want.tensors(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", PAIR_OPS)
def test_cuda_autocast(name):
    op, features, extra = inputs(name, Shape(12, 12, 64, 7, 7))
    want = evaluate(op, [x.bfloat16() for x in features], extra)
    with torch.autocast("cuda", torch.bfloat16):
        got = evaluate(op, features, extra)
    for a, b in zip(got.outputs, want.outputs, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert all(gradient.dtype == torch.float32 for gradient in got.gradients)


@pytest.mark.parametrize("name", ["soft-threshold", "max", "product-sum-audio", "mean", "cosine-map"])
def test_cuda_of_more_than_2_31_numbers(name):
    """The last images of a batch of 2.3e9 numbers, and their gradients, are those of these images alone."""
    op, shape = OPS[name], Shape(1100, 3, 512, 64, 64)
    if torch.cuda.mem_get_info()[0] < 16 * 2 * shape.images * shape.channels * 64 * 64:
        pytest.skip("too little memory")
    generator = torch.Generator(DEVICE).manual_seed(0)
    count = shape.images if op.paired else shape.audios
    visual = [
        torch.randn(shape.images, 512, 64, 64, device=DEVICE, dtype=torch.bfloat16, generator=generator)
        for _ in range(op.spaces)
    ]
    audio = [
        torch.randn(count, 512, device=DEVICE, dtype=torch.bfloat16, generator=generator) for _ in range(op.spaces)
    ]
    last = slice(shape.images - 2, None)

    def run(visual, audio):
        leaves = [x.requires_grad_() for x in visual]
        (scores,) = op.call(*leaves, *audio, None, "compiled")
        weights = torch.linspace(1, 2, scores[-2:].numel(), device=DEVICE).view_as(scores[-2:])
        gradients = torch.autograd.grad((scores[-2:] * weights).sum(), leaves)
        return [scores[-2:].detach(), *(g[-2:].float() for g in gradients)]

    got = run(visual, audio)
    want = run([x.detach()[last].clone() for x in visual], [x[last] for x in audio] if op.paired else audio)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


def test_cuda_of_more_than_2_31_pairs():
    count, few = 46_400, 100
    if torch.cuda.mem_get_info()[0] < 3 * 4 * count**2:
        pytest.skip("too little memory")
    visual = torch.randn(count, 64, 1, 2, device=DEVICE, dtype=torch.bfloat16)
    audio = torch.randn(count, 64, device=DEVICE, dtype=torch.bfloat16)
    scores = ops.pooled_similarity(visual, audio, ops.Max())
    want = ops.pooled_similarity(visual[-few:], audio[-few:], ops.Max())
    torch.testing.assert_close(scores[-few:, -few:], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PAIR_OPS)
@pytest.mark.parametrize("cached", [0, 20 * 2**20])
def test_cuda_memory_does_not_grow_with_the_map(name, cached, monkeypatch):
    """Beyond inputs, outputs and gradients: what may be cached, the workspace, norms and pairs, not N x M x h w
    numbers."""
    monkeypatch.setattr(launches, "CUDA_CACHED_ALPHA_BYTES", cached)
    monkeypatch.setattr(cuda_chunks, "WORKSPACE_BYTES", 32 * 2**20)
    count, cells = 512, 196
    op, extra = OPS[name], Extra(*(x.to(DEVICE) for x in extra_for(Shape(count, count, 1, 14, 14))))
    features = [torch.randn(count, 512, 14, 14, device=DEVICE) for _ in range(op.spaces)]
    features += [torch.randn(count, 512, device=DEVICE) for _ in range(op.spaces)]

    def step():
        leaves = [x.requires_grad_() for x in features]
        outputs = op.call(*leaves, extra, "compiled")
        return (*outputs, *torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs]))

    step()
    limit = cached + cuda_chunks.WORKSPACE_BYTES + 16 * 2**20 * op.spaces
    assert peak_cuda(step) < limit < count * count * cells * 4 / 2
