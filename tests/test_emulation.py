"""The CUDA kernels, compiled as C++ and run on the CPU: every op, against the truth in numpy."""

import contextlib
import ctypes
import platform
import re
import shutil
import types

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from op_checks import (
    DTYPES,
    LAYOUTS,
    OPS,
    SHAPES,
    Shape,
    assert_accurate,
    dtypes,
    evaluate,
    extra_for,
    planted,
    relative_errors,
    soft_op,
    truth_of,
)
from ptx_checks import DTYPES as MMA_DTYPES
from ptx_checks import check_ldmatrix, check_mma
from sanitize_emulation import SOURCES, build, load
from ssl_fast import ops
from ssl_fast.cli import main as cli
from ssl_fast.ops import checks, cuda_chunks, product, similarity
from ssl_fast.ops import kernels as launches
from token_checks import check_late_interaction, check_layout

emulated_ops = pytest.mark.parametrize("name", OPS)

pytestmark = [
    pytest.mark.skipif(not SOURCES.exists(), reason="the sources are not here"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulation switches stacks of x86-64"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
]


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """The module of emulated kernels."""
    path = tmp_path_factory.mktemp("emulation") / "ssl_fast_emulation.so"
    warnings = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
    build(path, warnings, warnings)
    return load(path)


STREAM = 0x51EA0  # not the default stream, which is 0


def add_product(sums, a, b, beta):
    """cuda_chunks.add_product for torch's CPU, which has no product of 16-bit matrices in float32."""
    torch.addmm(sums, a.to(sums.dtype), b.to(sums.dtype), beta=beta, out=sums)


@pytest.fixture
def emulated(kernels, monkeypatch):
    """From here on, ops on CPU tensors run the CUDA kernels, of this module. All are launched on STREAM."""

    @contextlib.contextmanager
    def launch_on(tensor, flops=0):
        with checks.without_autocast(tensor):
            yield launches.Launch(kernels, {"stream": STREAM})

    monkeypatch.setattr(launches, "launch_on", launch_on)
    monkeypatch.setattr(launches, "runs_on_cuda", lambda tensor: True)
    monkeypatch.setattr(cuda_chunks, "add_product", add_product)
    kernels.take_streams()
    yield kernels
    assert set(kernels.take_streams()) <= {STREAM}


def features_of(name, shape, dtype, layout="contiguous"):
    op = OPS[name]
    return op, [LAYOUTS[layout](x) for x in op.features(shape, dtype)]


@pytest.mark.grid
@emulated_ops
@dtypes(*DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_emulation_errs_at_most_twice_the_reference(name, dtype, shape, emulated):
    if name == "max" and shape == "one-channel":
        pytest.skip("all cosines are 1 or -1 but for rounding, which so chooses the cell")
    op, features = features_of(name, SHAPES[shape], dtype)
    extra = extra_for(SHAPES[shape])
    assert_accurate(op, features, extra)


@pytest.mark.grid
@emulated_ops
@dtypes(torch.float32, torch.float16)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_emulation_of_layouts(name, dtype, layout, emulated):
    shape = Shape(5, 5, 35, 5, 9)
    op, features = features_of(name, shape, dtype, layout)
    extra = extra_for(shape)
    assert_accurate(op, features, extra)


@pytest.mark.grid
@dtypes(torch.float64, torch.float32, torch.bfloat16, torch.float16)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("pooling", [ops.Max(), ops.LogMeanExp(0.5)], ids=["max", "lme"])
def test_emulation_of_heads_and_tokens(dtype, layout, heads, pooling, emulated):
    visual, audio = (LAYOUTS[layout](torch.randn(size).to(dtype)) for size in ((3, 42, 3, 5), (4, 42, 7)))
    check_layout(visual, audio, pooling, heads, normalize=heads == 1)
    if isinstance(pooling, ops.Max):
        check_late_interaction(visual, audio, heads, normalize=heads == 1)


@pytest.mark.grid
@emulated_ops
@pytest.mark.parametrize("wanted", [(0,), (1,)])
def test_emulation_of_single_gradients(name, wanted, emulated):
    shape = Shape(4, 4, 33, 3, 5)
    op, features = features_of(name, shape, torch.float32)
    extra = extra_for(shape)
    both, one = evaluate(op, features, extra), evaluate(op, features, extra, wanted=wanted)
    for i in wanted:
        assert torch.equal(one.gradients[i], both.gradients[i])


@pytest.mark.grid
@emulated_ops
@dtypes(torch.float32, torch.bfloat16)
def test_emulation_of_zero_vectors_and_nan(name, dtype, emulated):
    shape = Shape(4, 4, 33, 3, 5)
    op, features = features_of(name, shape, dtype)
    spaces, extra = op.spaces, extra_for(shape)
    visual, audio = features[0], features[spaces]
    visual[0, :, 1, 2] = 0
    audio[2] = 0
    result = evaluate(op, features, extra)
    assert all(x.isfinite().all() for x in result.tensors())
    assert (result.gradients[0][0, :, 1, 2] == 0).all() and (result.gradients[spaces][2] == 0).all()
    visual[1, 3, 0, 0] = float("nan")
    scores = evaluate(op, features, extra).outputs[0]
    hit = scores.isnan().flatten(1).any(1)
    assert hit[1] == (name != "masked-mean" or extra.mask[1, 0, 0] >= 0) and not hit[[0, 2, 3]].any()


def test_emulation_of_tied_cells(emulated):
    """The first of equal cells gets the gradient, in whatever thread, warp or tile each of them lies."""
    visual = torch.zeros(3, 4, 15, 20, requires_grad=True)
    first = torch.tensor([[7, 5, 290, 224], [30, 8, 299, 223], [2, 9, 17, 100]])  # of image n, seen by audio m
    with torch.no_grad():
        for n in range(3):
            for m in range(4):
                visual[n, m].view(-1)[[int(first[n, m]), 299 - m, 299]] += 2.0**m
    scores = ops.pooled_similarity(visual, torch.eye(4), ops.Max())
    expected = torch.einsum(
        "nchw,mc->nmhw", torch.nn.functional.normalize(visual.detach(), dim=1), torch.eye(4)
    ).flatten(2)
    weights = torch.arange(1.0, 13.0).view(3, 4)
    (scores * weights).sum().backward()
    reference = visual.detach().requires_grad_()
    (ops.pooled_similarity(reference, torch.eye(4), ops.Max(), backend="reference") * weights).sum().backward()
    torch.testing.assert_close(scores, expected.amax(2))
    torch.testing.assert_close(visual.grad, reference.grad)


pair_ops = pytest.mark.parametrize("name", [name for name in OPS if name not in ("mean", "masked-mean", "cosine-map")])


@pytest.mark.grid
@pair_ops
@dtypes(*DTYPES)
def test_emulation_of_cells_that_do_not_fit_shared_memory(name, dtype, emulated):
    """They are loaded again for each tile of audios: four images side by side, 270 channels."""
    shape = Shape(5, 131, 270, 7, 7)
    op, features = features_of(name, shape, dtype)
    assert_accurate(op, features, extra_for(shape))


@pytest.mark.grid
@pytest.mark.parametrize("name", ["mean", "masked-mean"])
@dtypes(*DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "offset"])
def test_emulation_of_means_of_images_in_shared_memory(name, dtype, layout, emulated):
    """Copied there, from whatever address, or read twice where they do not fit: the same sums in the same order."""
    shape = Shape(3, 5, 135, 5, 9)
    op, features = features_of(name, shape, dtype, layout)
    extra = extra_for(shape)
    assert_accurate(op, features, extra)
    once = evaluate(op, features, extra)
    emulated.set_device(3, 9 * 2**10)  # sums of float64 take 8.25 KiB
    try:
        twice = evaluate(op, features, extra)
    finally:
        emulated.set_device(3, 99 * 2**10)
    assert all(map(torch.equal, once.tensors(), twice.tensors()))


@pytest.mark.grid
@pytest.mark.parametrize("name", ["soft-threshold", "max", "product-sum-audio"])
@dtypes(torch.bfloat16, torch.float32)
@pytest.mark.parametrize("shape", [Shape(2, 150, 512, 14, 14), Shape(9, 70, 512, 7, 7), Shape(2, 200, 256, 14, 15)])
def test_emulation_of_an_h200(name, dtype, shape, emulated):
    """132 multiprocessors that grant a block 227 KiB: of 512 channels in bfloat16 the cells of an image just fit, as
    test_plans asserts."""
    emulated.set_device(132, 227 * 2**10)
    try:
        op, features = features_of(name, shape, dtype)
        assert_accurate(op, features, extra_for(shape))
    finally:
        emulated.set_device(3, 99 * 2**10)


DEVICES = {"H100, H200": (132, 227), "A100": (108, 163), "RTX 4090": (128, 99)}  # multiprocessors, KiB of a block


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cells", [7 * 7, 14 * 14, 16 * 16, 28 * 28])
@pytest.mark.parametrize("channels", [256, 512, 1024])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "tf32"])
def test_plans(dtype, channels, cells, device, kernels):
    """Of 1,024 images and audios. Shared memory by a count of what lies in it, blocks by trial of all numbers that
    share a tile of cells."""
    (processors, kib), size, images, audios = DEVICES[device], 4 if dtype == "tf32" else 2, 1024, 1024
    columns = 224  # of a tile of cells: 4 warps side by side, each with 7 tiles of the tensor cores' 8 columns
    rows = 2 * 64  # of audios: 4 tiles of 16 rows a warp; two groups of warps with 64 each, or one with all
    side_by_side = max(1, columns // cells)
    audio_stages = 3 * rows * 64  # stages of the pipeline, of 64 bytes a row
    states = 4 * rows * 2 * 4  # two floats that each of the warps has pooled
    norms = 2 * columns * 4  # of the cells of a tile and of the next one
    of_image = channels * size * cells * side_by_side
    beyond = 7 * 64  # of the last 8 columns
    resident = cells <= columns and audio_stages + states + norms + of_image + beyond <= kib * 1024
    shared = audio_stages + states + norms + (of_image + beyond if resident else 3 * columns * 64)
    groups, tiles = -(-images // side_by_side), -(-audios // rows)
    time = {splits: -(-groups * splits // processors) * (2 * -(-tiles // splits) + 1) for splits in range(1, tiles + 1)}
    splits = min(time, key=lambda splits: (time[splits], splits))
    assert kernels.plan(
        dtype=kernels.DType.float32 if dtype == "tf32" else getattr(kernels.DType, dtype),
        tf32=dtype == "tf32",
        audios=audios,
        images=images,
        cells=cells,
        k_blocks=channels * size // 64,
        multiprocessors=processors,
        shared=kib * 1024,
    ) == {
        "resident": resident,
        "warp_groups": 2 if resident else 1,
        "splits": splits,
        "blocks": groups * splits,
        "shared": shared,
    }
    if size == 2 and channels <= 512 and cells in (49, 196) and kib == 227:
        assert resident


def test_doctor_prints_plans(kernels, monkeypatch, capsys):
    monkeypatch.setattr(checks, "extension", types.SimpleNamespace(cuda=kernels))
    assert cli.main(["doctor", "--plan"]) == 0
    hopper, ampere, _ = re.split(r"^(?=\S)", capsys.readouterr().out, flags=re.MULTILINE)[-3:]
    assert hopper.startswith("H100, H200\n") and ampere.startswith("A100\n")
    for text, where in ((hopper, "resident"), (ampere, "streamed")):
        [line] = [line for line in text.splitlines() if "bfloat16 14x14" in line]
        assert f"cells {where}, {1 + (where == 'resident')} warp group(s), " in line
    monkeypatch.setattr(
        checks, "extension", types.SimpleNamespace(cuda_architectures="", no_cuda="it was switched off")
    )
    assert cli.main(["doctor", "--plan"]) == 1
    assert capsys.readouterr().out == "no plan: CUDA code was built for none (it was switched off)\n"


@pytest.mark.grid
@pair_ops
@dtypes(*DTYPES)
@pytest.mark.parametrize("workspace", [cuda_chunks.WORKSPACE_BYTES, 40_000])
def test_emulation_of_many_tiles_and_chunks(name, dtype, workspace, emulated, monkeypatch):
    """More audios than a block has; images side by side in a tile, and alone in a chunk."""
    monkeypatch.setattr(cuda_chunks, "WORKSPACE_BYTES", workspace)
    shape = Shape(7, 150, 20, 5, 9)
    op, features = features_of(name, shape, dtype)
    assert_accurate(op, features, extra_for(shape))


@pytest.mark.parametrize(
    "audios, cells, most, spaces",
    [(700, 196, 20, 1), (700, 49, 40, 1), (100, 49, 9, 1), (1000, 900, 7, 1), (700, 196, 20, 2), (700, 49, 40, 2)],
)
def test_emulation_chooses_chunks_that_keep_its_multiprocessors_busy(audios, cells, most, spaces, kernels):
    """By trial of all numbers of images and of blocks that share them: blocks of 128 audios, 224 columns of whole
    images."""
    processors, tiles = 3, -(-audios // 128)

    def time_of_an_image(images):
        groups = spaces * -(-images // max(1, 224 // cells))
        return (
            min(-(-groups * splits // processors) * (2 * -(-tiles // splits) + 1) for splits in range(1, tiles + 1))
            / images
        )

    good = kernels.good_chunk(
        dtype=kernels.DType.bfloat16, tf32=False, audios=audios, cells=cells, k_blocks=4, most=most, spaces=spaces
    )
    choice = range(most // 2 + 1, most + 1)
    assert good in choice and time_of_an_image(good) == min(map(time_of_an_image, choice))
    assert time_of_an_image(good) < max(map(time_of_an_image, choice))


@pytest.mark.grid
@pair_ops
@dtypes(*DTYPES)
def test_emulation_of_features_that_are_rows_as_they_are(name, dtype, emulated, monkeypatch):
    """Channels last, 32 of them: no copy is made, and the chunks of the backward pass begin within the features."""
    monkeypatch.setattr(cuda_chunks, "WORKSPACE_BYTES", 40_000)
    shape = Shape(7, 21, 32, 5, 9)
    op, features = features_of(name, shape, dtype, "channels-last")
    assert_accurate(op, features, extra_for(shape))


class Recorder:
    """The kernels, with a record of the launches and of what they were given."""

    STRUCTS = ("Pack", "Unpack", "Pairs", "ProductChunk")
    PLAIN = (*STRUCTS, "plan", "good_chunk", "Shape", "DType", "Pooling", "Reduce", "Instances")

    def __init__(self, kernels, run=True):
        self.kernels, self.run, self.launches = kernels, run, []

    def __getattr__(self, name):
        found = getattr(self.kernels, name)
        if name in self.STRUCTS and not self.run:
            return lambda *_, **given: given
        if name in self.PLAIN:
            return found

        def launch(*args, **given):
            self.launches.append((name, args, given))
            if self.run:
                found(*args, **given)

        return launch


@pytest.fixture
def recorder(emulated, monkeypatch):
    recorder = Recorder(emulated)
    launch = launches.Launch(recorder, {"stream": STREAM})
    monkeypatch.setattr(launches, "launch_on", lambda tensor: contextlib.nullcontext(launch))
    return recorder


CACHING = [name for name in OPS if name.startswith(("soft", "log-mean-exp", "product"))]


@pytest.mark.grid
@pytest.mark.parametrize("name", CACHING)
@dtypes(*DTYPES)
@pytest.mark.parametrize("images", [0, 2, 5])
def test_emulation_of_cached_alphas(name, dtype, images, recorder, monkeypatch):
    """Alphas of all images are cached, of the first ones, or of none, and then computed again."""
    shape = Shape(5, 21, 34, 5, 9)
    op, features = features_of(name, shape, dtype)
    per_number = 2 if dtype == torch.bfloat16 or (dtype == torch.float16 and op.spaces == 1) else max(4, dtype.itemsize)
    budget = images * op.spaces * 45 * 24 * per_number  # rows of 21 audios are filled up to 24
    monkeypatch.setattr(launches, "CUDA_CACHED_ALPHA_BYTES", budget)
    assert_accurate(op, features, extra_for(shape))
    recorder.launches.clear()
    evaluate(op, features, extra_for(shape))
    if op.spaces == 1:
        [(_, _, forward)] = [one for one in recorder.launches if one[0] == "pool_forward"]
        assert forward["cached_images"] == images
        backward = [given["cached"] is not None for name, _, given in recorder.launches if name == "pool_slopes"]
        assert backward == [True] * (images > 0) + [False] * (images < 5)
    else:  # cosines of two spaces: those that are not cached once more in every later pass
        again = 0 if images == 5 else 3 if name.endswith("image") else 1
        first = 2 if 0 < images < 5 else 1
        assert sum(name == "alphas" for name, *_ in recorder.launches) == first + again


@dtypes(torch.bfloat16, torch.float16)
@pytest.mark.parametrize("epsilon", [0.0, 0.45])
@pytest.mark.parametrize("beta", [1e-20, 1e-6, 9e-4, 1e-3, 1e20])
def test_emulation_of_steep_thresholds(epsilon, beta, dtype, recorder):
    """Of steep ones no alphas are cached: steps of 16 bits would take those next to epsilon to the other side."""
    shape = Shape(2, 21, 34, 5, 6)
    op = soft_op(epsilon, beta)
    features = op.features(shape, dtype)
    assert_accurate(op, features, extra_for(shape))
    used = {given["cached"] is not None for name, _, given in recorder.launches if name == "pool_slopes"}
    assert used == {beta >= 1e-3}


@dtypes(*DTYPES)
def test_opcheck_of_cached_alphas(dtype, emulated):
    """What a compiled graph expects of their dtype and shape is what the kernels return."""
    visual, audio = (x.detach().to(dtype).requires_grad_() for x in planted(Shape(3, 10, 34, 2, 3), seed=2))
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    soft = visual, audio, "soft_threshold", [0.65, 0.03], True, None, True, 1
    torch.library.opcheck(torch.ops.ssl_fast.pooled_similarity.default, soft, test_utils=tests)
    product = visual, visual, audio, audio, 0.1, "sum", "image", True
    torch.library.opcheck(torch.ops.ssl_fast.product_log_scores.default, product, test_utils=tests)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cached_alphas_are_cut_off_at_one(dtype, kernels):
    """Rounding takes cosines beyond 1, which 16-bit fixed point has no room for; NaN stays NaN."""
    stored = {"bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    cells, audios = torch.zeros(4, 32, dtype=stored), torch.zeros(8, 32, dtype=stored)
    cells[:, 0], audios[:, 0] = torch.tensor([1.0, -1.0, 0.5, float("nan")]), 1
    audio_norm, cell_norm = torch.full((8,), 1.001), torch.ones(4)
    cached, scores, residual = torch.empty(4, 8, dtype=torch.int16), torch.empty(1, 8), torch.empty(1, 8)
    pairs = kernels.Pairs(
        dtype=getattr(kernels.DType, dtype),
        tf32=False,
        audios=8,
        images=1,
        cells=4,
        k_blocks=1,
        packed_audios=launches.buffer(audios),
        packed_cells=launches.buffer(cells),
        audio_norm=launches.buffer(audio_norm),
        cell_norm=launches.buffer(cell_norm),
    )
    kernels.pool_forward(
        pairs,
        pooling=kernels.Pooling.soft_threshold,
        parameters=[0.65, 0.03],
        scores=launches.buffer(scores),
        residual=launches.buffer(residual),
        cached=launches.buffer(cached),
        cached_images=1,
    )
    assert cached.T.tolist() == [[32767, -32767, round(0.5 * 1.001 * 32767), -32768]] * 8
    assert scores.isnan().all()


@pytest.mark.parametrize("resident", [True, False])
def test_emulation_packs_features_as_it_loads_them(resident, recorder):
    """Where the cells of images stay in shared memory, no copy of them is made before."""
    recorder.kernels.set_device(3, (227 if resident else 99) * 2**10)
    try:
        shape = Shape(5, 9, 270, 7, 7)
        op, features = features_of("soft-threshold", shape, torch.bfloat16)
        assert_accurate(op, features, extra_for(shape))
        recorder.launches.clear()
        ops.pooled_similarity(*features, ops.SoftThreshold())
    finally:
        recorder.kernels.set_device(3, 99 * 2**10)
    [(_, [packed], _), _] = recorder.launches
    assert [name for name, *_ in recorder.launches] == ["pack", "pool_forward"]
    assert len(packed) == (1 if resident else 2)  # audios, alone or with the cells


class TorchLaunches(TorchDispatchMode):
    """Counts torch's operations on tensors; views and allocations launch nothing."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ("empty", "empty_like", "new_empty", "empty_strided", "detach"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def add_product_without_storage(sums, a, b, beta):
    """One launch, as addmm with out_dtype, which torch 2.11 cannot do without storage."""
    sums.mul_(beta)


@pytest.mark.parametrize(
    "count, side, op, most",
    [
        (256, 7, "soft_threshold", 8),
        (256, 7, "max", 8),
        (256, 7, "log_mean_exp", 8),
        (256, 14, "soft_threshold", 8),
        (1024, 14, "soft_threshold", 23),
        (1024, 14, "max", 12),
        (256, 7, "product of audio", 11),
        (256, 14, "product of audio", 11),
        (1024, 14, "product of audio", 38),
        (256, 7, "product of image", 12),
        (1024, 14, "product of image", 46),
    ],
)
def test_launches_of_a_step(count, side, op, most, kernels, monkeypatch):
    """Forward and backward, bfloat16 of 512 channels on an H200: each call of a kernel is one launch. Nothing is
    computed: tensors are without storage."""
    recorder = Recorder(kernels, run=False)
    monkeypatch.setattr(launches, "launch_on", lambda tensor: contextlib.nullcontext(launches.Launch(recorder, {})))
    monkeypatch.setattr(launches, "runs_on_cuda", lambda tensor: True)
    monkeypatch.setattr(cuda_chunks, "add_product", add_product_without_storage)
    visual = torch.empty(count, 512, side, side, dtype=torch.bfloat16, device="meta")
    audio = torch.empty(count, 512, dtype=torch.bfloat16, device="meta")
    kernels.set_device(132, 227 * 2**10)
    try:
        with TorchLaunches() as torch_launches:
            if op.startswith("product"):
                features, options = (visual, visual, audio, audio), (0.07, "sum", op.split()[-1])
                saved = product._product.function(*features, *options, True)
                grad = torch.empty_like(saved[0])
                product._product_backward.function(grad, *features, *options, list(saved), True, True)
            else:
                options = op, [0.65, 0.03][: kernels.poolings[op][0]], True, None
                saved = similarity._pooled_similarity.function(visual, audio, *options, op != "max", 1)
                grad = torch.empty_like(saved[0])
                similarity._pooled_similarity_backward.function(
                    grad, None, visual, audio, *options, *saved, True, True, 1
                )
    finally:
        kernels.set_device(3, 99 * 2**10)
    names = [name for name, *_ in recorder.launches] + torch_launches.names
    assert len(names) <= most, names


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)], ids=["channels-first", "tokens-first"])
@pytest.mark.parametrize("kind", ["max", "log_mean_exp"])
def test_heads_and_tokens_are_not_copied(kind, order, kernels, monkeypatch):
    """Packing reads them from the features, and gradients are written where they belong."""
    recorder = Recorder(kernels, run=False)
    monkeypatch.setattr(launches, "launch_on", lambda tensor: contextlib.nullcontext(launches.Launch(recorder, {})))
    monkeypatch.setattr(launches, "runs_on_cuda", lambda tensor: True)
    monkeypatch.setattr(cuda_chunks, "add_product", add_product_without_storage)
    visual = torch.empty(8, 64, 7, 7, dtype=torch.bfloat16, device="meta")
    audio = torch.empty([(8, 64, 50)[i] for i in order], dtype=torch.bfloat16, device="meta").permute(order)
    options = kind, [0.1][: kernels.poolings[kind][0]], False, None
    with TorchLaunches() as torch_launches:
        saved = similarity._pooled_similarity.function(visual, audio, *options, False, 2)
        similarity._pooled_similarity_backward.function(
            torch.empty_like(saved[0]), None, visual, audio, *options, *saved, True, True, 2
        )
    names = [name for name, *_ in recorder.launches]
    assert names.count("pack") == 4 and names.count("unpack") in (2, 4)  # forward and backward of each head
    assert not {"copy_", "clone", "_to_copy", "cat"} & set(torch_launches.names)


@pytest.fixture
def tf32():
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pair_ops
def test_emulation_of_tf32(name, emulated, tf32):
    """Where torch may, float32 features are rounded to tf32, 11 bits: so much error, and not more."""
    shape = Shape(4, 6, 130, 5, 9)
    op, features = features_of(name, shape, torch.float32)
    extra = extra_for(shape)
    truth = truth_of(op, features, extra, np.float64)
    score, *_ = relative_errors(evaluate(op, features, extra), truth)
    assert 2**-20 < score < 2**-10


@dtypes(*DTYPES)
@pytest.mark.parametrize("pooling", [ops.Max(), ops.SoftThreshold(0.2, 0.1), ops.LogMeanExp(0.3)])
def test_emulation_of_dot_products(pooling, dtype, emulated):
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(3, 40, 5, 6, generator=generator).div(6).to(dtype).requires_grad_()
    audio = torch.randn(7, 40, generator=generator).to(dtype).requires_grad_()
    upstream = torch.randn(3, 7, generator=generator)
    scores = ops.pooled_similarity(visual, audio, pooling, normalize=False)
    alpha = torch.einsum("ncp,mc->nmp", visual.flatten(2).double(), audio.double())
    want = pooling.reference(alpha)
    torch.testing.assert_close(scores.double(), want, rtol=2e-5, atol=2e-5)
    found = torch.autograd.grad(scores, (visual, audio), upstream.to(scores.dtype))
    for one, other in zip(found, torch.autograd.grad(want, (visual, audio), upstream.double()), strict=True):
        tolerance = 2e-5 if dtype.itemsize > 2 else 2e-2
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


def test_emulation_sums_float32_products_in_groups(emulated):
    """Of 512 positive products, four at a time: the error is that of 128 additions of a sum that grows steadily,
    each at most half a unit in the last place, not that of 512, twice as much."""
    generator = torch.Generator().manual_seed(1)
    visual, audio = (torch.rand(*shape, generator=generator) + 0.5 for shape in ((60, 512, 1, 1), (90, 512)))
    scores = ops.pooled_similarity(visual, audio, ops.Max(), normalize=False).double()
    error = scores / (visual[:, :, 0, 0].double() @ audio.double().t()) - 1
    assert error.square().mean().sqrt() < 2**-23 * (128 / 3 / 12) ** 0.5


@pytest.mark.parametrize("largest", [0.0, 2.0**-149, 3e-39, 2.0**-126, 1.5e-7, 1.0, 2.0, 65519.0, 2.0**127 * 1.99])
def test_float16_slopes_are_scaled_by_a_power_of_two(largest):
    slopes = torch.linspace(-1, 1, 21).view(7, 3).double().mul(largest).float()
    scaled, reciprocal = cuda_chunks.float16_of(slopes)
    mantissa, _ = torch.frexp(reciprocal)
    assert scaled.dtype == torch.float16 and reciprocal.dtype == torch.float32 and mantissa.item() == 0.5
    want = slopes.double() / reciprocal.double()  # a float32 quotient could leave its range
    assert want.abs().max() < 2**15 and (want.abs().max() >= 2**14 or largest < 2.0**-112)
    assert torch.equal(scaled, want.half())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_float16_slopes_beside_one_that_is_not_finite_keep_their_values(bad):
    slopes = torch.tensor([[0.25, bad], [-3.0, 7e4]])
    scaled, reciprocal = cuda_chunks.float16_of(slopes)
    assert reciprocal == 1 and torch.equal(scaled.nan_to_num(-1), slopes.half().nan_to_num(-1))


# Lengths of images and of audios, and of upstream gradients, as exponents of 2: what float16 slopes without a scale
# would lose, and what would overflow.
@pytest.mark.parametrize("visual_exponent, audio_exponent, upstream_exponent", [(-8, 10, -20), (-8, -8, 6), (0, 0, 0)])
@pytest.mark.parametrize("pooling", [ops.SoftThreshold(0.2, 0.1), ops.LogMeanExp(0.3), ops.Max()])
@pytest.mark.parametrize("workspace", [cuda_chunks.WORKSPACE_BYTES, 20_000])
def test_emulation_of_float16_gradients_far_from_one(
    pooling, visual_exponent, audio_exponent, upstream_exponent, workspace, emulated, monkeypatch
):
    monkeypatch.setattr(cuda_chunks, "WORKSPACE_BYTES", workspace)
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(6, 40, 5, 6, generator=generator).mul(2.0**visual_exponent).half().requires_grad_()
    audio = torch.randn(9, 40, generator=generator).mul(2.0**audio_exponent).half().requires_grad_()
    upstream = torch.randn(6, 9, generator=generator).mul(2.0**upstream_exponent)
    found = torch.autograd.grad(ops.pooled_similarity(visual, audio, pooling), (visual, audio), upstream)
    exact = [x.detach().double().requires_grad_() for x in (visual, audio)]
    alpha = torch.einsum(
        "ncp,mc->nmp", *(torch.nn.functional.normalize(x.flatten(2) if x.dim() > 2 else x, dim=1) for x in exact)
    )
    want = torch.autograd.grad(pooling.reference(alpha), exact, upstream.double())
    for one, other in zip(found, want, strict=True):
        smallest = 2.0**-25 * other.numel() ** 0.5  # half of float16's last step
        assert (one.double() - other).norm() <= 2**-10 * other.norm() + smallest


def test_launches_are_recorded_with_their_stream(emulated):
    visual, audio = torch.randn(3, 8, 2, 3, requires_grad=True), torch.randn(5, 8)
    ops.pooled_similarity(visual, audio, ops.SoftThreshold()).sum().backward()
    streams = emulated.take_streams()
    assert len(streams) >= 4 and set(streams) == {STREAM}  # packing, scores, slopes, gradients


def test_static_shared_memory_is_found(kernels):
    """The linker's script goes by names: at least the arrays of pack_kernel and channel_sums, in float64."""
    assert kernels.static_shared_bytes() > 8 * (2 * 16 * 32 + 32 * 65)


def test_ldmatrix_wrapper_in_the_emulation(kernels):
    check_ldmatrix(ctypes.CDLL(kernels.__file__), "cpu")


@pytest.mark.parametrize("dtype", MMA_DTYPES)
def test_mma_wrapper_in_the_emulation(dtype, kernels):
    check_mma(ctypes.CDLL(kernels.__file__), "cpu", dtype)


def test_emulation_of_empty_batches(emulated):
    visual, audio = torch.randn(0, 5, 2, 3), torch.randn(0, 5)
    assert ops.cosine_map(visual, audio).shape == (0, 2, 3)
    assert ops.pooled_similarity(visual, torch.randn(4, 5), ops.Mean()).shape == (0, 4)
    assert ops.pooled_similarity(torch.randn(4, 5, 2, 3), audio, ops.Mean()).shape == (4, 0)
