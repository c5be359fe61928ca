"""The boundary of the ops: errors name the argument, what was expected and what came; and the choice of a backend."""

import re
import types
import warnings

import pytest
import torch

from op_checks import OPS, Shape, dtypes, extra_for, needs_compiled
from ssl_fast import losses, ops
from ssl_fast.ops import checks
from ssl_fast.ops.similarity import similarity_and_map

N, M, C, H, W = 4, 6, 5, 2, 3


def visual(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(shape or (N, C, H, W), dtype=dtype, device=device)


def audio(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(shape or (M, C), dtype=dtype, device=device)


def pooled(visual, audio, pooling=None, **options):
    return ops.pooled_similarity(visual, audio, pooling or ops.Max(), **options)


def product(visual_loc=None, visual_avc=None, audio_loc=None, audio_avc=None, tau=0.1, **options):
    given = (visual_loc, visual), (visual_avc, visual), (audio_loc, audio), (audio_avc, audio)
    return ops.product_log_scores(*(make() if x is None else x for x, make in given), tau=tau, **options)


both_backends = pytest.mark.parametrize("backend", ["auto", "reference"])

# features, error, message
PAIRS = {
    "wrong C": (visual(), audio(8, 256), ValueError, "audio: expected (M, 5) to match visual's C=5, got (8, 256)"),
    "1-D audio": (visual(), audio(C), ValueError, "audio: expected (M, 5) to match visual's C=5, got (5,)"),
    "3-D visual": (
        visual(N, C, H),
        audio(),
        ValueError,
        "visual: expected (N, C, h, w) with C, h, w >= 1, got (4, 5, 2)",
    ),
    "no channels": (
        visual(N, 0, H, W),
        audio(M, 0),
        ValueError,
        "visual: expected (N, C, h, w) with C, h, w >= 1, got (4, 0, 2, 3)",
    ),
    "no cells": (
        visual(N, C, H, 0),
        audio(),
        ValueError,
        "visual: expected (N, C, h, w) with C, h, w >= 1, got (4, 5, 2, 0)",
    ),
    "two dtypes": (
        visual(),
        audio(dtype=torch.bfloat16),
        TypeError,
        "audio: expected torch.float32 to match visual, got torch.bfloat16",
    ),
    "float64 with float32": (
        visual(dtype=torch.float64),
        audio(),
        TypeError,
        "audio: expected torch.float64 to match visual, got torch.float32",
    ),
    "integers": (
        visual(dtype=torch.int64),
        audio(dtype=torch.int64),
        TypeError,
        "visual: expected float32, bfloat16, float16 or float64, got torch.int64",
    ),
    "complex": (
        visual(dtype=torch.complex64),
        audio(dtype=torch.complex64),
        TypeError,
        "visual: expected float32, bfloat16, float16 or float64, got torch.complex64",
    ),
    "two devices": (visual(), audio(device="meta"), ValueError, "audio: expected device cpu to match visual, got meta"),
    "two devices, reversed": (
        visual(device="meta"),
        audio(),
        ValueError,
        "audio: expected device meta to match visual, got cpu",
    ),
}


def test_clips_of_tokens_where_there_is_no_pooling_for_them():
    message = r": expected \(M, 5\) to match .*, got \(6, 5, 1\)"
    with pytest.raises(ValueError, match="audio" + message):
        similarity_and_map(visual(), audio(M, C, 1), ops.SoftThreshold(), torch.zeros(N, dtype=torch.int64))
    with pytest.raises(ValueError, match="audio_loc" + message):
        product(audio_loc=audio(M, C, 1))


@both_backends
@pytest.mark.parametrize("case", PAIRS)
def test_pairs_that_do_not_match(case, backend):
    v, a, error, message = PAIRS[case]
    positives = torch.zeros(N, dtype=torch.int64)
    for call in (
        lambda: pooled(v, a, backend=backend),
        lambda: similarity_and_map(v, a, ops.SoftThreshold(), positives, backend=backend),
    ):
        with pytest.raises(error, match=re.escape(message)):
            call()
    with pytest.raises(error, match=re.escape(message.replace("visual", "visual_loc").replace("audio", "audio_loc"))):
        product(visual_loc=v, audio_loc=a, backend=backend)
    with pytest.raises(error, match=re.escape(message.replace("visual", "visual_avc").replace("audio", "audio_avc"))):
        product(visual_avc=v, audio_avc=a, backend=backend)


def slavc(visual_loc, visual_avc, audio_loc, audio_avc, **momentum):
    copies = [
        momentum.get(name, x) for name, x in zip(MOMENTUM, (visual(), visual(), audio(N, C), audio(N, C)), strict=True)
    ]
    return losses.slavc(visual_loc, visual_avc, audio_loc, audio_avc, momentum=copies)


def ssl_tie(visual, audio, transformed_visual):
    return losses.ssl_tie(visual, audio, transformed_visual, lambda maps: maps)


SPACES = "visual_loc", "visual_avc", "audio_loc", "audio_avc"
MOMENTUM = tuple(f"momentum {name}" for name in SPACES)
# a call by keywords, and the names under which it is given features; those that its messages use
TAKE_FEATURES = {
    "pooled_similarity": (lambda **x: ops.pooled_similarity(**x, pooling=ops.Max()), ("visual", "audio")),
    "cosine_map": (ops.cosine_map, ("visual", "audio")),
    "product_log_scores": (lambda **x: ops.product_log_scores(**x, tau=0.1), SPACES),
    "similarity_and_map": (
        lambda visual, audio: similarity_and_map(visual, audio, ops.SoftThreshold(), torch.arange(N)),
        ("visual", "audio"),
    ),
    "margin_nce": (losses.margin_nce, ("visual", "audio")),
    "lvs": (lambda visual, audio: losses.LVS()(visual, audio), ("visual", "audio")),
    "ez_vsl": (losses.ez_vsl, ("visual", "audio")),
    "fnac": (lambda visual, audio: losses.FNAC()(visual, audio), ("visual", "audio")),
    "slavc": (slavc, (*SPACES, *MOMENTUM)),
    "hard_positives": (losses.hard_positives, ("visual", "audio", "similar_visual", "similar_audio")),
    "sspl": (
        lambda **x: losses.sspl([visual(), x["visuals[1]"]], x["audio"], lambda found: (found, found)),
        ("visuals[1]", "audio"),
    ),
    "ssl_tie": (ssl_tie, ("visual", "audio", "transformed_visual")),
    "ssl_align": (
        lambda **x: losses.ssl_align([visual(), x["visuals[1]"]], [audio(N, C), x["audios[1]"]]),
        ("visuals[1]", "audios[1]"),
    ),
    "projections of ssl_align": (
        lambda **x: losses.ssl_align(
            [visual()],
            [audio(N, C)],
            projected_visuals=[x["projected_visuals[0]"]],
            projected_audios=[x["projected_audios[0]"]],
        ),
        ("projected_visuals[0]", "projected_audios[0]"),
    ),
}


@pytest.mark.parametrize(
    "call, argument", [(call, name) for call, (_, names) in TAKE_FEATURES.items() for name in names]
)
def test_features_that_are_no_tensors(call, argument):
    function, names = TAKE_FEATURES[call]
    features = {name: visual() if "visual" in name and "projected" not in name else audio(N, C) for name in names}
    function(**features)
    for other in (features[argument].numpy(), features[argument].tolist(), None, 1.5):
        message = f"{argument}: expected a tensor, got {type(other).__name__}"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            function(**features | {argument: other})


@both_backends
def test_paired_features_that_do_not_match(backend):
    for wrong in (audio(M, C), audio(N, 7), audio(N)):
        message = f"audio: expected (4, 5) to match visual's (N, C, h, w), got {tuple(wrong.shape)}"
        with pytest.raises(ValueError, match=re.escape(message)):
            ops.cosine_map(visual(), wrong, backend=backend)
    with pytest.raises(TypeError, match="audio: expected torch.float32 to match visual, got torch.float64"):
        ops.cosine_map(visual(), audio(N, C, dtype=torch.float64), backend=backend)


@both_backends
def test_the_two_spaces_of_a_product(backend):
    def fails(message, **features):
        with pytest.raises(ValueError, match=re.escape(message)):
            product(backend=backend, **features)

    loc = "expected torch.float32 (4, 5, 2, 3) on cpu as in the loc space"
    fails(f"visual_avc: {loc}, got torch.float32 (4, 5, 3, 3) on cpu", visual_avc=visual(N, C, 3, W))
    fails(
        "audio_avc: expected torch.float32 (6, 5) on cpu as in the loc space, got torch.float32 (7, 5) on cpu",
        audio_avc=audio(7, C),
    )
    double = {"visual_avc": visual(dtype=torch.float64), "audio_avc": audio(dtype=torch.float64)}
    fails(f"visual_avc: {loc}, got torch.float64 (4, 5, 2, 3) on cpu", **double)


@both_backends
@pytest.mark.parametrize("tau", [0, -0.1, float("nan")])
def test_tau(tau, backend):
    with pytest.raises(ValueError, match=f"tau: expected > 0, got {tau}"):
        product(tau=tau, backend=backend)


@both_backends
def test_unknown_options(backend):
    with pytest.raises(ValueError, match=r"reduce: expected one of \('sum', 'max'\), got 'mean'"):
        product(reduce="mean", backend=backend)
    with pytest.raises(ValueError, match=r"instances: expected one of \('audio', 'image'\), got 'both'"):
        product(instances="both", backend=backend)


@pytest.mark.parametrize("beta", [0, -0.03, float("nan")])
def test_beta(beta):
    with pytest.raises(ValueError, match=f"beta: expected > 0, got {beta}"):
        ops.SoftThreshold(beta=beta)


@pytest.mark.parametrize("tau", [0, -0.1, float("nan"), float("inf")])
def test_tau_of_log_mean_exp(tau):
    with pytest.raises(ValueError, match=f"tau: expected (> 0|from 1e-20 to 1e\\+20), got {tau}"):
        ops.LogMeanExp(tau)


@both_backends
@pytest.mark.parametrize("pooling", [ops.Max, "max", None, torch.nn.AdaptiveMaxPool2d(1)])
def test_pooling_of_wrong_type(pooling, backend):
    with pytest.raises(TypeError, match=r"pooling: expected ops.Mean, ops.SoftThreshold.* or ops\.\w+, got "):
        ops.pooled_similarity(visual(), audio(), pooling, backend=backend)


@both_backends
def test_map_with_another_pooling(backend):
    with pytest.raises(TypeError, match="pooling: expected ops.SoftThreshold"):
        similarity_and_map(visual(), audio(), ops.Mean(), torch.zeros(N, dtype=torch.int64), backend=backend)


# ---- masks ----


def full_mask():
    return torch.ones(N, H, W)


def negative():
    mask = full_mask()
    mask[1, 0, 2] = -0.5
    return mask


def empty_for_one():
    mask = full_mask()
    mask[2] = 0
    return mask


MASKS = {
    "flat": (lambda: torch.ones(N, H * W), "mask: expected (N, h, w) = (4, 2, 3), got (4, 6)"),
    "of one image": (lambda: torch.ones(H, W), "mask: expected (N, h, w) = (4, 2, 3), got (2, 3)"),
    "with channels": (lambda: torch.ones(N, 1, H, W), "mask: expected (N, h, w) = (4, 2, 3), got (4, 1, 2, 3)"),
    "transposed": (lambda: torch.ones(N, W, H), "mask: expected (N, h, w) = (4, 2, 3), got (4, 3, 2)"),
    "with gradient": (
        lambda: full_mask().requires_grad_(),
        "mask: expected a tensor without gradient; there is none with respect to the mask",
    ),
    "negative": (negative, "mask: expected weights >= 0, got a minimum of -0.5"),
    "empty": (empty_for_one, "mask: expected at least one cell with weight in every image, none in image 2"),
    "elsewhere": (lambda: full_mask().to("meta"), "mask: expected device cpu to match visual, got meta"),
    "not a number": (lambda: full_mask() * float("nan"), "mask: expected"),
    "infinite": (lambda: full_mask() * float("inf"), "mask: expected"),
}


@both_backends
@pytest.mark.parametrize("case", MASKS)
def test_masks(case, backend):
    make, message = MASKS[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        pooled(visual(), audio(), ops.Mean(make()), backend=backend)


@both_backends
def test_mask_that_is_no_tensor(backend):
    with pytest.raises(TypeError, match="mask: expected"):
        pooled(visual(), audio(), ops.Mean([[1.0]]), backend=backend)


# ---- backends ----


def test_unknown_backend():
    calls = [
        lambda: pooled(visual(), audio(), backend="cuda"),
        lambda: product(backend="cuda"),
        lambda: ops.cosine_map(visual(), audio(N, C), backend="cuda"),
        lambda: pooled(visual(), audio(), ops.Mean(), backend="cuda"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="backend: expected 'auto', 'compiled' or 'reference', got 'cuda'"):
            call()


@pytest.mark.filterwarnings("ignore:ssl_fast")
@pytest.mark.parametrize("name", OPS)
def test_without_the_compiled_module(name, monkeypatch):
    """Then "auto" is the reference, and "compiled" says why it cannot be."""
    monkeypatch.setattr(checks, "extension", None)
    monkeypatch.setattr(checks, "extension_error", "no such file")
    shape = Shape(3, 4, 5, 2, 3)
    op, extra = OPS[name], extra_for(shape)
    features = op.features(shape)
    message = "backend='compiled': the compiled module did not load (no such file)"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        op.call(*features, extra, "compiled")
    for got, want in zip(op.call(*features, extra, "auto"), op.call(*features, extra, "reference"), strict=True):
        assert torch.equal(got, want)


# ---- devices without kernels ----

CARDS = {"GTX": ("NVIDIA GeForce GTX 1080", 6, 1), "B300": ("NVIDIA B300", 10, 3), "H100": ("NVIDIA H100", 9, 0)}
NO_IMAGE = "cudaErrorNoKernelImageForDevice", "no kernel image is available for execution on the device", 13000, 13000
INSTALL = "pip install --force-reinstall --no-deps ."
FOR_B300 = f"`SSL_FAST_CUDA_ARCHS=103 {INSTALL}` in the source folder builds them for it"
# card, what the module finds, what is told
UNUSABLE = {
    "old card": ("GTX", NO_IMAGE, "the kernels need sm_80 or newer, found NVIDIA GeForce GTX 1080 (sm_61)"),
    "old card, other code": (
        "GTX",
        ("cudaErrorInvalidDeviceFunction", "invalid device function", 12080, 13000),
        "the kernels need sm_80 or newer, found NVIDIA GeForce GTX 1080 (sm_61)",
    ),
    "new card": (
        "B300",
        NO_IMAGE,
        f"the kernels were built for 80-real 90a-real, found NVIDIA B300 (sm_103); {FOR_B300}",
    ),
    "old driver": (
        "H100",
        ("cudaErrorInsufficientDriver", "CUDA driver version is insufficient", 13000, 12020),
        "driver too old: CUDA 13.0 kernels need driver 580 or newer, found one of CUDA 12.2: update the driver",
    ),
    "old driver for later PTX": (
        "B300",
        ("cudaErrorUnsupportedPtxVersion", "unsupported toolchain", 12090, 12080),
        "the driver, of CUDA 12.8, cannot compile the PTX of CUDA 12.9 for NVIDIA B300 (sm_103): "
        f"update the driver, or {FOR_B300}",
    ),
    "no driver": (
        "H100",
        ("cudaErrorInsufficientDriver", "CUDA driver version is insufficient", 13000, 0),
        "no kernel loads on cuda:0: CUDA driver version is insufficient (cudaErrorInsufficientDriver)",
    ),
    "full card": (
        "H100",
        ("cudaErrorMemoryAllocation", "out of memory", 13000, 13000),
        "no kernel loads on cuda:0: out of memory (cudaErrorMemoryAllocation)",
    ),
}


def on(device):
    return types.SimpleNamespace(device=torch.device(device))


def machine(monkeypatch, *devices, architectures="80-real 90a-real"):
    """A compiled module on a machine with these (card, error) as CUDA devices, and a list of the devices that it was
    asked about."""

    def cuda_error(index):
        asked.append(index)
        return devices[index][1]

    def properties(index):
        return types.SimpleNamespace(**dict(zip(("name", "major", "minor"), CARDS[devices[index][0]])))

    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    return types.SimpleNamespace(cuda_architectures=architectures, cuda_error=cuda_error, no_cuda="no nvcc"), asked


def warnings_of(*devices, backend="auto", calls=100):
    """What is warned of by so many calls on each of the devices, all of which have to find no kernel."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        assert not any([checks.use_compiled(backend, on(device)) for _ in range(calls) for device in devices])  # noqa: C419, every call
    assert all(warning.category is RuntimeWarning for warning in found)
    return [str(warning.message) for warning in found]


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_device_without_kernels(case, set_extension, monkeypatch):
    card, error, reason = UNUSABLE[case]
    extension, asked = machine(monkeypatch, (card, error))
    set_extension(extension)
    assert warnings_of("cuda:0", backend="reference") == [] and asked == []
    assert warnings_of("cuda:0") == [f"ssl_fast: CUDA tensors run plain PyTorch: {reason}"]
    for _ in range(2):
        with pytest.raises(RuntimeError) as raised:
            checks.use_compiled("compiled", on("cuda:0"))
        assert str(raised.value) == f"backend='compiled': {reason}"
    assert set(asked) == {0} and len(asked) == (102 if case == "full card" else 1)


def test_a_device_is_used_when_an_error_has_passed(set_extension, monkeypatch):
    extension, _ = machine(monkeypatch, ("H100", None))
    errors = [("cudaErrorMemoryAllocation", "out of memory", 13000, 13000), None]
    extension.cuda_error = lambda index: errors.pop(0)
    set_extension(extension)
    assert len(warnings_of("cuda:0", calls=1)) == 1
    assert all(checks.use_compiled(backend, on("cuda:0")) for backend in ("auto", "compiled") for _ in range(5))


def test_each_reason_is_told_once(set_extension, monkeypatch):
    extension, asked = machine(monkeypatch, ("GTX", NO_IMAGE), ("GTX", NO_IMAGE), ("B300", NO_IMAGE), ("H100", None))
    set_extension(extension)
    assert len(warnings_of("cuda:0", "cuda:1")) == 1
    assert len(warnings_of("cuda:1", "cuda:2")) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(checks.use_compiled(backend, on("cuda:3")) for backend in ("auto", "compiled") for _ in range(50))
    assert asked == [0, 1, 2, 3]


def test_no_cuda_device_is_asked_for_other_tensors(set_extension, monkeypatch):
    extension, asked = machine(monkeypatch)
    set_extension(extension)
    assert checks.use_compiled("auto", on("cpu")) and checks.use_compiled("compiled", on("meta"))
    assert warnings_of("mps") == [
        "ssl_fast: mps tensors run plain PyTorch: there is no compiled kernel for device type 'mps'"
    ]
    assert asked == []


WITHOUT_CUDA = (
    f"the package was built without CUDA kernels (no nvcc); `SSL_FAST_CUDA=ON {INSTALL}` in its source folder "
    "builds them, or says why it cannot"
)


def test_a_build_without_cuda(set_extension, monkeypatch):
    extension, asked = machine(monkeypatch, ("H100", None), ("H100", None), architectures="")
    set_extension(extension)
    assert (
        warnings_of("cuda:0", "cuda:1") == [f"ssl_fast: CUDA tensors run plain PyTorch: {WITHOUT_CUDA}"] and asked == []
    )
    with pytest.raises(RuntimeError, match=re.escape(f"backend='compiled': {WITHOUT_CUDA}")):
        checks.use_compiled("compiled", on("cuda:1"))


@needs_compiled
def test_cuda_tensors_of_this_build(set_extension):
    """Without a GPU: either there are no CUDA kernels, or none of them loads."""
    if torch.cuda.is_available():
        pytest.skip("a GPU: see test_cuda.py")
    (sentence,) = warnings_of("cuda:0")
    if checks.extension.cuda_architectures:
        assert re.search(r"no kernel loads on cuda:0: .+ \(cudaError\w+\)|driver too old", sentence)
    else:
        assert sentence == f"ssl_fast: CUDA tensors run plain PyTorch: {WITHOUT_CUDA}".replace(
            "no nvcc", checks.extension.no_cuda
        )


def test_the_absent_module_is_told_once(set_extension, monkeypatch):
    set_extension(None)
    monkeypatch.setattr(checks, "extension_error", "no such file")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        ops.cosine_map(visual(), audio(N, C), backend="reference")
        assert not found
        for pooling in (ops.Max(), ops.Mean(), ops.SoftThreshold()):
            pooled(visual(), audio(), pooling)
        product(), ops.cosine_map(visual(), audio(N, C))
    (warning,) = found
    assert str(warning.message) == (
        "ssl_fast: all ops run plain PyTorch or numpy: the compiled module did not load "
        f"(no such file); `{INSTALL}` in its source folder builds it"
    )


@needs_compiled
@pytest.mark.parametrize("name", OPS)
def test_auto_is_the_compiled_kernel(name):
    shape = Shape(3, 4, 300, 2, 3)
    op, extra = OPS[name], extra_for(shape)
    features = op.features(shape, torch.bfloat16)
    auto, compiled, reference = (op.call(*features, extra, x)[0] for x in ("auto", "compiled", "reference"))
    assert torch.equal(auto, compiled) and not torch.equal(auto, reference)


@needs_compiled
@pytest.mark.parametrize("name", [name for name in OPS if name != "masked-mean"])  # whose values are checked
@dtypes(torch.float32, torch.float64)
def test_meta_tensors_give_shapes(name, dtype):
    shape = Shape(3, 4, 5, 2, 3)
    op, extra = OPS[name], extra_for(shape)
    features = op.features(shape, dtype)
    extra = type(extra)(*(x.to("meta") for x in extra))
    want = op.call(*features, extra_for(shape), "auto")
    for got, expected in zip(op.call(*(x.to("meta") for x in features), extra, "auto"), want, strict=True):
        assert got.is_meta and got.shape == expected.shape and got.dtype == expected.dtype


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_features_on_two_devices():
    with pytest.raises(ValueError, match="audio: expected device cuda:0 to match visual, got cpu"):
        pooled(visual(device="cuda"), audio())
    with pytest.raises(ValueError, match="audio: expected device cpu to match visual, got cuda:0"):
        pooled(visual(), audio(device="cuda"))
    with pytest.raises(ValueError, match="mask: expected device cuda:0 to match visual, got cpu"):
        pooled(visual(device="cuda"), audio(device="cuda"), ops.Mean(full_mask()))
